"""A gymnasium environment for LIBERO tasks: named, upright, typed observations, and frames only when asked for.

The evaluation protocol (openpi, OpenVLA-OFT): `reset` with an official initial state, ten idle steps, then at most
`task.max_steps` actions. On one CPU core a control step takes about 10 ms and a pair of frames about 50 ms, so a
policy that executes chunks should ask for frames once per chunk: `observe()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from statevla.errors import UserError
from statevla.types import ACTION_DIM, Observation, Rendering, RobotStateLayout
from statevla.worlds.libero.rendering import CAMERAS
from statevla.worlds.libero.simulation import SETTLE_STEPS, Simulation
from statevla.worlds.libero.tasks import TaskSpec, load_init_states

_RESET_OPTIONS = ("init_state", "init_state_index", "init_states", "settle_steps")


class LiberoEnv(gymnasium.Env):
    """One LIBERO task.

    `reset` and `step` return an `Observation` whose `images` are empty unless `render_every_step`; `observe()` renders
    the current state. `observation_space` describes the observation's fields.

    Args:
        task: the task, from `tasks.find_task`.
        image_size: frames are `[image_size, image_size, 3]`.
        cameras: names out of "agentview" and "eye_in_hand".
        robot_state_layout: which numbers `Observation.robot_state` holds.
        render_every_step: put frames into every observation.
        initialization_noise: standard deviation (rad) of the arm's start posture where no initial state is given.
        rendering: how frames are drawn, see `rendering`.
        cull: skip meshes out of view; pixels are identical.

    Raises:
        UserError: the simulator is not installed, or a camera does not exist.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  (gymnasium's own attribute)

    def __init__(
        self,
        task: TaskSpec,
        image_size: int = 128,
        cameras: Sequence[str] = ("agentview", "eye_in_hand"),
        robot_state_layout: RobotStateLayout = RobotStateLayout.JOINT_GRIPPER,
        render_every_step: bool = False,
        initialization_noise: float = 0.0,
        rendering: Rendering = "fast",
        cull: bool = True,
    ) -> None:
        unknown = [name for name in cameras if name not in CAMERAS]
        if unknown:
            raise UserError(f"camera '{unknown[0]}': the simulator has {', '.join(CAMERAS)}; choose among them")
        self.task = task
        self.image_size = image_size
        self.cameras = tuple(cameras)
        self.robot_state_layout = RobotStateLayout(robot_state_layout)
        self.render_every_step = render_every_step
        self.render_mode = "rgb_array"
        self.simulation = Simulation(task, initialization_noise, rendering, cull)
        self.num_steps = 0
        frame = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        state = gymnasium.spaces.Box(-np.inf, np.inf, (self.robot_state_layout.dim,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float64)
        self.observation_space = gymnasium.spaces.Dict(
            {"images": gymnasium.spaces.Dict(dict.fromkeys(self.cameras, frame)), "robot_state": state}
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, a pure function of `seed` and `options`.

        Args:
            seed: draws the fixtures' poses, and the objects' where no initial state is given; 0 by default.
            options: `init_state_index` (i-th of the official states, or of `init_states="wide"`), or `init_state`
                (an array `[1 + nq + nv]`), and `settle_steps` (10).

        Returns:
            The observation after settling, and info: `success`.

        Raises:
            UserError: an option is unknown, or the index is out of range.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        unknown = [name for name in options if name not in _RESET_OPTIONS]
        if unknown:
            raise UserError(f"reset option '{unknown[0]}': expected {', '.join(_RESET_OPTIONS)}; rename it")
        self.simulation.reset(
            0 if seed is None else seed, self._init_state(options), int(options.get("settle_steps", SETTLE_STEPS))
        )
        self.num_steps = 0
        success = self.simulation.success()
        return self.observe(self.render_every_step), {"success": success}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Execute one action `[7]` (see `types.Gripper` for the last dimension).

        Returns:
            Observation, reward (1.0 on success), terminated (success), truncated (`task.max_steps` reached), and
            info: `success`, `num_steps`.
        """
        self.simulation.step(action)
        self.num_steps += 1
        success = self.simulation.success()
        truncated = not success and self.num_steps >= self.task.max_steps
        info = {"success": success, "num_steps": self.num_steps}
        return self.observe(self.render_every_step), float(success), success, truncated, info

    def observe(self, render: bool = True) -> Observation:
        """The current state as a policy sees it; with `render=False` without images."""
        images = {name: self.simulation.render(name, self.image_size) for name in self.cameras} if render else {}
        return Observation(images, self.robot_state(), self.robot_state_layout, self.task.instruction)

    def robot_state(self) -> np.ndarray:
        """Float64 `[S]` in `robot_state_layout`."""
        fingers = self.simulation.finger_positions()
        if self.robot_state_layout is RobotStateLayout.JOINT_GRIPPER:
            return np.concatenate([self.simulation.joint_positions(), fingers])
        return np.concatenate([self.simulation.ee_position(), self.simulation.ee_axis_angle(), fingers])

    def render(self) -> Any:
        """The first camera's frame, uint8 `[H, W, 3]`."""
        return self.simulation.render(self.cameras[0], self.image_size)

    def get_state(self) -> np.ndarray:
        """LIBERO's flattened state `[1 + nq + nv]`."""
        return self.simulation.state()

    def set_state(self, state: np.ndarray) -> None:
        """Show a recorded state (positions and velocities)."""
        self.simulation.set_state(state)

    def object_poses(self) -> Mapping[str, np.ndarray]:
        """Movable object → world position and quaternion (wxyz), `[7]`."""
        return dict(zip(self.simulation.object_names, self.simulation.object_states()))

    def close(self) -> None:
        """Free the simulator."""
        self.simulation.close()

    def _init_state(self, options: Mapping[str, Any]) -> np.ndarray | None:
        if options.get("init_state") is not None:
            return np.asarray(options["init_state"], dtype=np.float64)
        index = options.get("init_state_index")
        if index is None:
            return None
        states = load_init_states(self.task, str(options.get("init_states", "official")))
        if not 0 <= int(index) < len(states):
            raise UserError(
                f"init_state_index {index}: task {self.task.index} of '{self.task.suite}' has states 0 to "
                f"{len(states) - 1}; choose one of them"
            )
        return states[int(index)]
