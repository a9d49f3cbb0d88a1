"""Fixtures that every tier may use: shared data, prepared small models, and the guard that keeps tests on this machine."""
