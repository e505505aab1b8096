"""Worlds to act in: one protocol, and LIBERO, the SO-101 and any gymnasium environment behind it."""

from statevla.worlds.gym import as_gymnasium
from statevla.worlds.registry import make_world, open_suite

__all__ = ["as_gymnasium", "make_world", "open_suite"]
