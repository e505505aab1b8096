"""Worlds to act in: one protocol, and LIBERO, the SO-101 and any gymnasium environment behind it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from statevla.worlds.gym import as_gymnasium as as_gymnasium
    from statevla.worlds.registry import make_world as make_world
    from statevla.worlds.registry import open_suite as open_suite

# Loaded on first use: `import statevla` passes through here, for `gym_ids`.
_PUBLIC = {
    "as_gymnasium": "statevla.worlds.gym",
    "make_world": "statevla.worlds.registry",
    "open_suite": "statevla.worlds.registry",
}
__all__ = ["as_gymnasium", "make_world", "open_suite"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'statevla.worlds' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
