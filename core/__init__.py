"""The shared ground: errors, logging, on-disk contracts, offline switch and the training-data format.

Imports nothing of ours and nothing heavy, so that every entry point can load it in a moment.
"""
