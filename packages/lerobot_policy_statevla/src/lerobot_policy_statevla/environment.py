"""A world as LeRobot's commands see environments, under an id of gymnasium's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np

from statevla.data.lerobot_layout import STATE_KEY, Layout, layout_of
from statevla.data.lerobot_robot import FIELD_PREFIX, IMAGE_PREFIX
from statevla.transforms import from_upright
from statevla.worlds.gym_env import space_of
from statevla.worlds.gym_named import NamedEnv
from statevla.worlds.registry import open_suite

GYM_ID = "lerobot_policy_statevla/World-v0"


class LeRobotWorld(NamedEnv):
    """A world whose observations LeRobot turns into the features that `statevla data convert` writes for its robot.

    `pixels` are its cameras, with their frames stored as there, `agent_pos` is `observation.state`, and `robot_state`
    holds what lies beside it. An episode that has initial states to choose from begins with the one of its seed: seeds
    that follow each other, as LeRobot gives them, take one after the other.

    Args:
        world, task, image_size, options: as `NamedEnv` has them.
        max_steps: control steps of an episode; the task's own limit by default.

    Raises:
        UserError: as `NamedEnv`.
    """

    def __init__(
        self,
        world: str,
        task: int = 0,
        image_size: int = 128,
        max_steps: int | None = None,
        render_mode: str | None = "rgb_array",
        **options: Any,
    ) -> None:
        super().__init__(world, task, image_size, render_mode=render_mode, **options)
        self._num_init_states = open_suite(world, **options).tasks[task].num_init_states
        if max_steps is not None:
            self.max_steps = max_steps
        # LeRobot writes its videos at a whole number of frames a second.
        self.metadata = {**self.metadata, "render_fps": max(round(self.robot.control_freq_hz), 1)}
        # What LeRobot asks by name.
        self.task = self.task_description = self.instruction
        self._max_episode_steps = self.max_steps
        declared = self.observation_space
        # A known world declares its space; a factory's was seen as it is here.
        if isinstance(declared, gymnasium.spaces.Dict) and "images" in declared.spaces:
            self.observation_space = space_of(self._laid_out(declared.sample()))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; without a seed, one is drawn from those before."""
        gymnasium.Env.reset(self, seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        chosen = {"init_state_index": seed % self._num_init_states} if self._num_init_states else None
        return super().reset(seed=seed, options=chosen)

    def _look(self) -> dict[str, Any]:
        return self._laid_out(super()._look())

    def _laid_out(self, seen: Mapping[str, Any]) -> dict[str, Any]:
        robot = self._layout.robot
        pixels = {
            str(camera.key).removeprefix(IMAGE_PREFIX): from_upright(seen["images"][camera.name], camera.orientation)
            for camera in robot.cameras
        }
        columns = {
            key: np.concatenate([seen["robot_state"][field.name] for field in fields])
            for key, fields in self._layout.columns.items()
        }
        laid_out: dict[str, Any] = {"pixels": pixels}
        if STATE_KEY in columns:
            laid_out["agent_pos"] = columns.pop(STATE_KEY)
        if columns:
            laid_out["robot_state"] = {key.removeprefix(FIELD_PREFIX): values for key, values in columns.items()}
        return laid_out

    @cached_property
    def _layout(self) -> Layout:
        return layout_of(self.robot)

    def _info(self) -> dict[str, Any]:
        info = super()._info()
        return {**info, "is_success": info["success"]}


# Unwrapped: LeRobot 0.4 looks for `task_description` on the outermost environment, and gymnasium's wrappers hide it.
gymnasium.register(GYM_ID, "lerobot_policy_statevla.environment:LeRobotWorld", order_enforce=False)
