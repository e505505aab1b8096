"""A robosuite environment that shows recorded states: positions, pictures, robot states, success."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from statevla.errors import UserError
from statevla.types import Rendering
from statevla.worlds.backend import prepare

BACKEND = prepare("sim")

import mujoco  # noqa: E402  (the backend has to be chosen first)
import robosuite  # noqa: E402

from statevla.worlds.libero.rendering import Renderer  # noqa: E402
from statevla.worlds.robosuite.demo_file import DemoFile, RecordedEpisode  # noqa: E402
from statevla.worlds.robosuite.recorded_xml import kinematic_model, with_recorded_scene  # noqa: E402

_MAX_DEVIATION_M = 1e-3


class RecordedScene:
    """The environment of a demonstration file.

    Args:
        demos: the file.
        rendering: see `statevla.worlds.libero.rendering.Renderer`.

    Raises:
        UserError: robosuite cannot make the environment.
    """

    def __init__(self, demos: DemoFile, rendering: Rendering = "fast") -> None:
        self._source = f"demonstrations {demos.path}"
        self._rendering = rendering
        self._renderer: Renderer | None = None
        settings = {
            "has_renderer": False,
            "has_offscreen_renderer": False,
            "use_camera_obs": False,
            "ignore_done": True,
        }
        try:
            self.env: Any = robosuite.make(demos.env_name, **demos.env_kwargs, **settings)
        except Exception as error:  # its checks raise whatever they like
            raise UserError(
                f"{self._source}: robosuite {robosuite.__version__} cannot make '{demos.env_name}' "
                f"({' '.join(str(error).split())[:160]}); correct 'env_args'"
            ) from None
        self._plain_xml: str = self.env.model.get_xml()
        self._xml = ""
        self._recorded: Any = None
        self._recorded_data: Any = None

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the model's cameras."""
        model = self.env.sim.model._model
        return tuple(model.camera(index).name for index in range(model.ncam))

    @property
    def default_cameras(self) -> tuple[str, ...]:
        """The scene's camera and the wrists'."""
        return tuple(name for name in self.cameras if name == "agentview" or name.endswith("eye_in_hand"))

    def actions(self, episode: RecordedEpisode) -> np.ndarray:
        """An episode's actions `[T, A]` as the controller took them: it clips what tools send, keyboards up to 3.75.

        Raises:
            UserError: the environment takes others.
        """
        if episode.actions.shape[1] != self.env.action_dim:
            raise UserError(
                f"{self._source}: {episode.key}: actions of {episode.actions.shape[1]} numbers, but the environment "
                f"takes {self.env.action_dim}; correct 'env_args'"
            )
        return np.clip(episode.actions, -1.0, 1.0)

    def load(self, episode: RecordedEpisode) -> None:
        """Set up an episode's scene.

        Raises:
            UserError: its XML or its states do not fit the environment.
        """
        source = f"{self._source}: {episode.key}"
        self._xml = with_recorded_scene(self._plain_xml, episode.model_xml, source)
        self._release()
        try:
            self.env.reset_from_xml_string(self._xml)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{source}: robosuite {robosuite.__version__} does not find its parts in the recorded scene "
                f"({' '.join(str(error).split())[:160]}); record it with this release"
            ) from None
        self._recorded = kinematic_model(episode.model_xml, source)
        self._recorded_data = mujoco.MjData(self._recorded)
        size = 1 + self.env.sim.model.nq + self.env.sim.model.nv
        if episode.states.shape[1] != size or self._recorded.nq != self.env.sim.model.nq:
            raise UserError(
                f"{source}: states of {episode.states.shape[1]} numbers, but the environment's have {size}; "
                "correct 'env_args'"
            )
        self._adopt_hammer()

    def show(self, state: np.ndarray) -> float:
        """Show a recorded state `[1 + nq + nv]`.

        Returns:
            The largest distance (m) of a body from where the recorded model has it.

        Raises:
            UserError: that distance is no rounding error: what would be shown is not what was recorded.
        """
        self.env.sim.set_state_from_flattened(state)
        self.env.sim.forward()
        # Wiped dirt is hidden where the reward is computed.
        self.env.reward(np.zeros(self.env.action_dim))
        deviation = self._deviation(state)
        if deviation > _MAX_DEVIATION_M:
            raise UserError(
                f"{self._source}: bodies stand {deviation * 1000:.1f} mm from where they were recorded; "
                f"the robots of robosuite {robosuite.__version__} are not those of the file"
            )
        return deviation

    def render(self, camera: str, size: int) -> np.ndarray:
        """An upright RGB frame, uint8 `[size, size, 3]`, of what is shown."""
        if self._renderer is None:
            self._renderer = Renderer(self.env.sim, self._rendering)
        return self._renderer.draw(camera, size)

    def robot_state(self) -> dict[str, np.ndarray]:
        """What robosuite observes of its robots, by its own names, float64 `[n]` each.

        `robot0_joint_pos` (rad), `robot0_gripper_qpos` (m), `robot0_eef_pos` (m), `robot0_eef_quat` (xyzw).
        """
        sim, found = self.env.sim, {}
        for robot in self.env.robots:
            prefix = robot.robot_model.naming_prefix
            found[f"{prefix}joint_pos"] = sim.data.qpos[robot._ref_joint_pos_indexes]
            if robot.gripper.dof:
                found[f"{prefix}gripper_qpos"] = sim.data.qpos[robot._ref_gripper_joint_pos_indexes]
            found[f"{prefix}eef_pos"] = sim.data.site_xpos[robot.eef_site_id]
            found[f"{prefix}eef_quat"] = np.roll(sim.data.get_body_xquat(robot.robot_model.eef_name), -1)
        return {key: np.array(values, np.float64) for key, values in found.items()}

    def success(self) -> bool:
        """robosuite's own check of the task's goal."""
        return bool(self.env._check_success())

    def model_xml(self) -> str:
        """The scene that is shown as MuJoCo XML; asset paths are relative to robosuite's package."""
        # Not by MuJoCo, which saves the XML that was read last, whatever the model.
        return re.sub(r'file="[^"]*/robosuite/models/assets/', 'file="robosuite/models/assets/', self._xml)

    def close(self) -> None:
        """Free the simulation and its rendering context."""
        self._release()
        self.env.close()

    def _release(self) -> None:
        if self._renderer is not None:
            self._renderer.release()
            self._renderer = None

    def _deviation(self, state: np.ndarray) -> float:
        model, data, shown = self._recorded, self._recorded_data, self.env.sim
        data.qpos[:] = state[1 : 1 + model.nq]
        mujoco.mj_kinematics(model, data)
        known = {shown.model.body_id2name(index): index for index in range(shown.model.nbody)}
        pairs = [(index, known[name]) for index in range(model.nbody) if (name := model.body(index).name) in known]
        here, there = np.array(pairs).T
        return float(np.linalg.norm(data.xpos[here] - shown.data.body_xpos[there], axis=1).max())

    def _adopt_hammer(self) -> None:
        """TwoArmHandover measures the hammer's height by the sizes that it drew itself, not by the recorded ones."""
        hammer = getattr(self.env, "hammer", None)
        if hammer is None:
            return
        model = self.env.sim.model._model
        radius, _, half_length = model.geom("hammer_handle").size
        hammer.handle_radius, hammer.handle_length = float(radius), 2 * float(half_length)
        hammer.head_halfsize = float(model.geom("hammer_head").size[2])
