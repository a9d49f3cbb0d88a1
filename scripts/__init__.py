"""Thin entry points for operators; the work is done in the packages beside this one."""
