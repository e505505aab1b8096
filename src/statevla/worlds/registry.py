"""Worlds by name: what comes along, what installed packages offer, and anything as `module:factory`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from statevla.errors import UserError
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
        return _open_factory(name, load_named(name, "world"), options)
    if name in _BUILT_IN:
        opener = load_named(_BUILT_IN[name], f"world '{name}'")
        suite: Suite = opener(**check_options(opener, options, name))
        return suite
    if name in (plugins := _plugins()):
        return _open_factory(name, plugins[name].load(), options)
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


def load_named(text: str, source: str) -> Any:
    """The object `module:attribute`; modules in the current folder count too.

    Raises:
        UserError: there is no such module or attribute; `source` begins the message.
    """
    module_name, _, attribute = text.partition(":")
    if not module_name or not attribute:
        raise UserError(f"{source} {text}: expected module:name, such as my_world:make")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise UserError(
                f"{source} {text}: there is no module '{error.name}' here, in PYTHONPATH or installed; run it from "
                "the module's folder, or add that to PYTHONPATH"
            ) from None
        raise UserError(f"{source} {text}: needs the package '{error.name}', which is not installed") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in vars(found) if not name.startswith("_")] if hasattr(found, "__dict__") else []
            near = difflib.get_close_matches(part, names, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{source} {text}: module '{module_name}' has no '{attribute}'{hint}")
        found = getattr(found, part)
    return found


def check_options(function: Callable[..., Any], options: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """`options`, if `function` takes them.

    Raises:
        UserError: it does not, or it needs more.
    """
    taken = parameters(function)
    kinds = {each.kind for each in taken.values()}
    for option in options:
        if option not in taken and inspect.Parameter.VAR_KEYWORD not in kinds:
            known = ", ".join(taken) or "none"
            raise UserError(f"world '{name}': takes no option '{option}'; its options are: {known}")
    for each in taken.values():
        must = each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if must and each.name not in options:
            raise UserError(f"world '{name}': needs the option '{each.name}'; give it a default")
    return options


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Of a function; none of one that does not say."""
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return {}


def _open_factory(name: str, factory: Any, options: Mapping[str, Any]) -> Suite:
    from statevla.worlds.factory import suite_of_factory

    return suite_of_factory(name, factory, options)


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
