"""Operator entry points: each file is one command and holds no logic of its own."""
