"""Worlds to act in: one protocol, and LIBERO behind it."""
