"""Worlds by name as gymnasium environments: what the ids of `statevla.worlds.gym_ids` make."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from statevla.errors import UserError
from statevla.robots import RobotSpec
from statevla.worlds.factory import FactorySuite
from statevla.worlds.gym_env import WorldEnv, space_of
from statevla.worlds.registry import is_libero, open_suite
from statevla.worlds.task_indices import check_index


class NamedEnv(WorldEnv):
    """A world by its name: what `gymnasium.make("statevla/World-v0", world=…)` makes.

    Args:
        world: as `--world` has it: `so101`, a suite of LIBERO, a package's world or `module:factory`.
        task: index of the task.
        image_size: side of the frames (pixels).
        cameras: whose frames to draw; all of the robot's by default.
        images: see `as_gymnasium`.
        render_mode: "rgb_array", or none.
        options: of the world, such as LIBERO's `init_states` and `rendering`.

    Raises:
        UserError: there is no such world, task, camera, option or render mode, or what it needs is not installed.
    """

    def __init__(
        self,
        world: str,
        task: int = 0,
        image_size: int = 128,
        cameras: Sequence[str] | None = None,
        images: bool = True,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        suite = open_suite(world, **options)
        chosen = suite.tasks[check_index(task, len(suite.tasks), world)]
        names = suite.robot.camera_names if cameras is None else tuple(cameras)
        if cameras is not None and not names:
            raise UserError(f"world '{world}': cameras: expected at least one; leave pictures out with images=False")
        for name in names:
            suite.robot.camera(name)
        # The frames of a factory's world may have a size of their own.
        is_known = not isinstance(suite, FactorySuite)
        space = _declared_space(suite.robot, names if images else None, image_size) if is_known else None
        make = partial(suite.make, chosen, image_size, names)
        super().__init__(make, chosen, suite.robot, space, images, render_mode)


class LiberoEnv(NamedEnv):
    """A task of LIBERO or LIBERO-PRO: what `gymnasium.make("statevla/LIBERO-v0", suite=…, task=…)` makes.

    Args:
        suite: such as "libero_object".
        options: see `NamedEnv`.
    """

    def __init__(self, suite: str = "libero_object", **options: Any) -> None:
        if not is_libero(suite):
            raise UserError(f"suite '{suite}': LIBERO has no such suite; libero_object is one (docs/worlds.md)")
        super().__init__(suite, **options)


def _declared_space(robot: RobotSpec, cameras: Sequence[str] | None, image_size: int) -> gymnasium.Space[Any]:
    """Of a world with square frames that reports all fields of its robot."""
    state = {field.name: np.zeros(field.size) for field in robot.state}
    if cameras is None:
        return space_of({"robot_state": state})
    frame = np.zeros((image_size, image_size, 3), np.uint8)
    return space_of({"images": dict.fromkeys(cameras, frame), "robot_state": state})
