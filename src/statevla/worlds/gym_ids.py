"""Worlds under gymnasium's ids: `import statevla`, then `gymnasium.make("statevla/LIBERO-v0", suite=…, task=…)`.

Gymnasium has no entry points for packages to announce their environments; they register when they are imported. Here
that costs nothing: the ids are there as soon as somebody has imported gymnasium, before `statevla` or after it, and no
simulator is loaded before an environment is made.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

GYM_IDS: dict[str, tuple[str, dict[str, Any]]] = {
    "statevla/LIBERO-v0": ("statevla.worlds.gym_named:LiberoEnv", {}),
    "statevla/SO101-v0": ("statevla.worlds.gym_named:NamedEnv", {"world": "so101"}),
    "statevla/World-v0": ("statevla.worlds.gym_named:NamedEnv", {}),
}
"""Id → what makes it, and with which arguments."""


def register_when_imported() -> None:
    """Register `GYM_IDS` with gymnasium, now if it is imported already, else when it is."""
    if "gymnasium" in sys.modules:
        _register()
    elif not any(isinstance(finder, _Gymnasium) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Gymnasium())


def _register() -> None:
    import gymnasium

    for name, (maker, arguments) in GYM_IDS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=maker, kwargs=arguments)


class _Gymnasium(importlib.abc.MetaPathFinder):
    """Finds gymnasium as the others do, and registers once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "gymnasium":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for each in others if (found := each.find_spec(fullname, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            sys.meta_path.remove(self)
            _register()

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec
