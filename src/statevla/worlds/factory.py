"""Worlds out of a user's own code: `module:factory`.

The factory is called without arguments, or with `image_size` (pixels) and `cameras` (names) if it has such parameters,
and returns one of: a world (see `protocol`), a gymnasium environment that declares what it is (see `gym`), or a suite
of several tasks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from statevla.errors import UserError
from statevla.robots import RobotSpec
from statevla.worlds.gym import GymWorld
from statevla.worlds.named import check_options, parameters
from statevla.worlds.protocol import Suite, Task, World

_DECLARED_AT_PX = 128


def suite_of_factory(name: str, factory: Any, options: Mapping[str, Any]) -> Suite:
    """The suite of a factory; it is called once here, for what it makes says which task it is.

    Args:
        name: as the user typed it.
        factory: the function, or a class.
        options: further arguments of the factory.

    Raises:
        UserError: it cannot be called so, or returns something else.
    """
    if not callable(factory):
        raise UserError(f"world '{name}': expected a function that makes a world, got {type(factory).__name__}")
    arguments = _frames(factory, _DECLARED_AT_PX, None)
    made = factory(**check_options(factory, {**options, **arguments}, name))
    if isinstance(made, Suite):
        return made
    world = _as_world(made, name, None)
    try:
        return FactorySuite(name, factory, options, world)
    finally:
        world.close()


class FactorySuite:
    """The one task of a world that a factory makes.

    Args:
        name: as the user typed it.
        factory: makes the world or environment.
        options: further arguments of the factory.
        world: a world that it has made, for what it declares.
    """

    def __init__(self, name: str, factory: Callable[..., Any], options: Mapping[str, Any], world: World) -> None:
        self.name, self.options = name, dict(options)
        self._factory = factory
        self.robot: RobotSpec = world.robot
        title = re.sub(r"[^A-Za-z0-9]+", "_", name.partition(":")[2] or name).strip("_") or "task"
        self.tasks: Sequence[Task] = (Task(name, 0, title, world.instruction, world.max_steps),)

    def make(self, task: Task, image_size: int, cameras: Sequence[str]) -> World:
        """The world, with frames of these cameras; their size is the factory's if it takes no `image_size`.

        Raises:
            UserError: the robot has no such camera.
        """
        made = self._factory(**self.options, **_frames(self._factory, image_size, cameras))
        return _as_world(made, self.name, cameras)

    def versions(self) -> Mapping[str, str]:
        """Of the package that the factory comes from, where it is an installed one, and of gymnasium."""
        top = str(getattr(self._factory, "__module__", "")).partition(".")[0]
        found = {}
        for package in (*packages_distributions().get(top, ()), "gymnasium"):
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
        return found


def _frames(factory: Callable[..., Any], image_size: int, cameras: Sequence[str] | None) -> dict[str, Any]:
    """Those of the arguments `image_size` and `cameras` that the factory names."""
    taken = parameters(factory)
    arguments: dict[str, Any] = {"image_size": image_size} if "image_size" in taken else {}
    if cameras is not None and "cameras" in taken:
        arguments["cameras"] = tuple(cameras)
    return arguments


def _as_world(made: Any, name: str, cameras: Sequence[str] | None) -> World:
    if isinstance(made, World):
        return made
    if all(hasattr(made, part) for part in ("reset", "step", "action_space")):
        return GymWorld(made, name, cameras)
    raise UserError(
        f"world '{name}': expected a gymnasium environment, a world or a suite, got {type(made).__name__}; return one "
        "of these (docs/worlds.md)"
    )
