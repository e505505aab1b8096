"""Worlds by name: what comes along, what installed packages offer, and anything as `module:factory`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from statevla.errors import UserError
from statevla.worlds.factory import suite_of_factory
from statevla.worlds.named import check_options, load_named
from statevla.worlds.protocol import Suite, World
from statevla.worlds.task_indices import check_index

ENTRY_POINT_GROUP = "statevla.worlds"
"""Installed packages name their worlds here: `my_world = "my_package.module:factory"`."""
_BUILT_IN = {"so101": "statevla.worlds.so101.suite:So101Suite"}
"""Name → what opens the suite. LIBERO's suites, of which there are many, go by their own names."""


def open_suite(name: str, **options: Any) -> Suite:
    """The suite of that name.

    Args:
        name: a suite of LIBERO or LIBERO-PRO, `so101`, the name of an entry point, or `module:factory` (see
            `statevla.worlds.factory`).
        options: of the suite or the factory; LIBERO's are `init_states` and `rendering`.

    Raises:
        UserError: there is no such world or option, or what it needs is not installed.
    """
    if ":" in name:
        return suite_of_factory(name, load_named(name, "world"), options)
    if name in _BUILT_IN:
        opener = load_named(_BUILT_IN[name], f"world '{name}'")
        suite: Suite = opener(**check_options(opener, options, name))
        return suite
    if name in (plugins := _plugins()):
        return suite_of_factory(name, plugins[name].load(), options)
    if is_libero(name):
        from statevla.worlds.libero.suite import LiberoSuite

        libero: Suite = LiberoSuite(**check_options(LiberoSuite, {"name": name, **options}, name))
        return libero
    raise UserError(_unknown(name, plugins))


def make_world(
    name: str, task: int = 0, image_size: int = 128, cameras: Sequence[str] | None = None, **options: Any
) -> World:
    """The world of one task, ready for `reset`.

    Args:
        name: as in `open_suite`.
        task: index of the task.
        image_size: side of the frames (pixels).
        cameras: whose frames to draw; all of the robot's by default.
        options: as in `open_suite`.

    Raises:
        UserError: as in `open_suite`; or there is no such task or camera.
    """
    suite = open_suite(name, **options)
    chosen = suite.tasks[check_index(task, len(suite.tasks), name)]
    return suite.make(chosen, image_size, suite.robot.camera_names if cameras is None else tuple(cameras))


def is_libero(name: str) -> bool:
    """Whether this is the name of a suite of LIBERO or LIBERO-PRO; false where the simulator is not installed, unless
    the name leaves no doubt."""
    return name in _libero_names() or (name.startswith("libero_") and find_spec("libero") is None)


def _plugins() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=ENTRY_POINT_GROUP)}


def _libero_names() -> list[str]:
    if find_spec("libero") is None:
        return []
    from statevla.worlds.libero.tasks import known_names

    return known_names()


def _unknown(name: str, plugins: Mapping[str, Any]) -> str:
    known = list(_known(plugins))
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(repr(each) for each in near)}?" if near else f"there are {_shown(known)}"
    return f"world '{name}': there is no such world; {hint} An own one is named module:factory (docs/worlds.md)"


def _shown(known: list[str]) -> str:
    return ", ".join(known[:8]) + (f" and {len(known) - 8} more;" if len(known) > 8 else ";")


def _known(plugins: Mapping[str, Any]) -> Iterator[str]:
    yield from _BUILT_IN
    yield from plugins
    yield from _libero_names()
