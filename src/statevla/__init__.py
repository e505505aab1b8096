"""StateVLA: a compact robot policy that learns how the world moves (Temporal JEPA), then acts (flow matching)."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from statevla.worlds.gym_ids import register_when_imported

if TYPE_CHECKING:
    from statevla.acting.policy import load_policy as load_policy
    from statevla.config import load_config as load_config
    from statevla.model.statevla_model import StateVLA as StateVLA
    from statevla.worlds import make_world as make_world

__version__ = "0.1.0"

# OpenMP's threads wait for one another spinning, 5 ms long: beside other work, that is time they take from each other.
# Shorter, and alone just as fast. It counts where PyTorch is not imported yet; a choice of the user's stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")

register_when_imported()

# Loaded on first use: the policy server's client needs no PyTorch.
_PUBLIC = {
    "StateVLA": "statevla.model.statevla_model",
    "load_config": "statevla.config",
    "load_policy": "statevla.acting.policy",
    "make_world": "statevla.worlds",
}
__all__ = ["StateVLA", "__version__", "load_config", "load_policy", "make_world"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'statevla' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
