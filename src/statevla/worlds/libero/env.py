"""LIBERO's tasks as worlds: upright frames only when asked for, all state fields, exact resets.

The evaluation protocol (openpi, OpenVLA-OFT): `reset` with an official initial state, ten idle steps, then at most
`max_steps` actions. On one CPU core a control step takes about 10 ms and a pair of frames about 50 ms, so a policy
that executes chunks should ask for frames once per chunk: `observe()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from statevla.errors import UserError
from statevla.robots import LIBERO
from statevla.types import Observation, Rendering
from statevla.worlds.libero.rendering import CAMERAS
from statevla.worlds.libero.simulation import SETTLE_STEPS, Simulation
from statevla.worlds.libero.tasks import TaskSpec, load_init_states

_RESET_OPTIONS = ("init_state", "init_state_index", "init_states", "settle_steps")


class LiberoWorld:
    """One LIBERO task.

    Args:
        task: the task, from `tasks.find_task`.
        image_size: frames are `[image_size, image_size, 3]`.
        cameras: names out of "agentview" and "eye_in_hand".
        init_states: which fixed states `reset` takes its `init_state_index` from, unless told otherwise.
        initialization_noise: standard deviation (rad) of the arm's start posture where no initial state is given.
        rendering: how frames are drawn, see `rendering`.

    Raises:
        UserError: the simulator is not installed, or a camera does not exist.
    """

    robot = LIBERO

    def __init__(
        self,
        task: TaskSpec,
        image_size: int = 128,
        cameras: Sequence[str] = LIBERO.camera_names,
        init_states: str = "official",
        initialization_noise: float = 0.0,
        rendering: Rendering = "fast",
    ) -> None:
        unknown = [name for name in cameras if name not in CAMERAS]
        if unknown:
            raise UserError(f"camera '{unknown[0]}': the simulator has {', '.join(CAMERAS)}; choose among them")
        self.task = task
        self.instruction = task.instruction
        self.max_steps = task.max_steps
        self.image_size = image_size
        self.cameras = tuple(cameras)
        self.init_states = init_states
        self.simulation = Simulation(task, initialization_noise, rendering)

    def reset(self, seed: int = 0, options: Mapping[str, Any] | None = None) -> Observation:
        """Start an episode, a pure function of `seed` and `options`; the observation, without images, after settling.

        Args:
            seed: draws the fixtures' poses, and the objects' where no initial state is given.
            options: `init_state_index` (i-th of the fixed states), with `init_states` to choose others than the
                world's ("official", "wide"); or `init_state` (an array `[1 + nq + nv]`); and `settle_steps` (10).

        Raises:
            UserError: an option is unknown, or the index is out of range.
        """
        options = dict(options or {})
        unknown = [name for name in options if name not in _RESET_OPTIONS]
        if unknown:
            raise UserError(f"reset option '{unknown[0]}': expected {', '.join(_RESET_OPTIONS)}; rename it")
        settle_steps = int(options.get("settle_steps", SETTLE_STEPS))
        self.simulation.reset(seed, self._init_state(options), settle_steps)
        return self.observe(render=False)

    def step(self, action: np.ndarray) -> None:
        """One control step (50 ms) with an action `[7]`, clipped to [-1, 1]; for the last number see `Gripper`."""
        self.simulation.step(action)

    def observe(self, render: bool = True) -> Observation:
        """The current state with all fields that LIBERO declares; without `render` no images."""
        images = {name: self.draw(name, self.image_size) for name in self.cameras} if render else {}
        state = {
            "joint_positions": self.simulation.joint_positions(),
            "finger_positions": self.simulation.finger_positions(),
            "hand_position": self.simulation.ee_position(),
            "hand_orientation": self.simulation.ee_axis_angle(),
        }
        return Observation(images, state, self.instruction)

    def success(self) -> bool:
        """LIBERO's own check of the task's goal."""
        return self.simulation.success()

    def draw(self, camera: str, size: int) -> np.ndarray:
        """An upright RGB frame, uint8 `[size, size, 3]`."""
        return self.simulation.render(camera, size)

    def state(self) -> np.ndarray:
        """LIBERO's flattened state `[1 + nq + nv]`."""
        return self.simulation.state()

    def set_state(self, state: np.ndarray) -> None:
        """Show a recorded state (positions and velocities); fixtures stand where the last reset put them."""
        self.simulation.set_state(state)

    def object_poses(self) -> dict[str, np.ndarray]:
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
        states = load_init_states(self.task, str(options.get("init_states", self.init_states)))
        if not 0 <= int(index) < len(states):
            raise UserError(
                f"init_state_index {index}: task {self.task.index} of '{self.task.suite}' has states 0 to "
                f"{len(states) - 1}; choose one of them"
            )
        return states[int(index)]
