"""The world: an SO-101 lifts a cube, told by the six absolute joint targets that a real SO-101 records and executes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from statevla.errors import UserError
from statevla.robots.so101 import SO101
from statevla.types import Observation, Rendering
from statevla.worlds.so101.drawing import Drawing
from statevla.worlds.so101.scene import CAMERA, CUBE_HALF_M, JOINTS, PAN_AXIS_X, SUBSTEPS, load_model, mujoco
from statevla.worlds.so101.task import INSTRUCTION, MAX_STEPS

CUBE_X_M = (0.15, 0.40)
CUBE_Y_M = (-0.15, 0.15)
CUBE_REACH_M = 0.375
"""Cubes lie in the rectangle and within this distance from the shoulder's axis. It contains the ranges of the package's
two environments, x 0.15 to 0.30 and 0.2 to 0.4 and y ±0.1; the corners beyond are out of the arm's reach."""
CUBE_YAW_RAD = np.pi / 4
"""Yaw is uniform in ± this: all there are, as a cube's sides look alike."""
START_JOINTS = (0.0, -1.5, 0.9, 1.3, -1.57, 0.2)
"""Arm raised and drawn back, so that it hides no cube; jaw ajar (rad)."""
START_NOISE_RAD = 0.02
LIFT_M = 0.1
HAND_DISTANCE_M = 0.05
"""Lift and greatest distance to the hand for success, both of the package's `SO101PickCube`."""
HELD_STEPS = 6
"""Control steps in a row (0.2 s) for which the cube must be up and in the hand: no throw counts."""
_SETTLE_STEPS = 3
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


class So101LiftWorld:
    """Lift a cube 0.1 m off the table; one step is 1/30 s.

    Args:
        image_size: side of the square frames (pixels).
        cameras: those that `observe` draws; there is only "front".
        rendering: see `drawing`.
        max_steps: control steps after which an episode has failed.
        is_thrifty: see `drawing`.

    Raises:
        UserError: an unknown camera or a size that is not positive.
    """

    def __init__(
        self,
        image_size: int = 128,
        cameras: Sequence[str] = (CAMERA,),
        rendering: Rendering = "fast",
        max_steps: int = MAX_STEPS,
        is_thrifty: bool | None = None,
    ) -> None:
        for camera in cameras:
            _check_camera(camera)
        if image_size < 1:
            raise UserError(f"image_size {image_size}: expected a positive number of pixels; pass 128, for instance")
        self.robot = SO101
        self.instruction = INSTRUCTION
        self.max_steps = max_steps
        self.image_size = image_size
        self.cameras = tuple(cameras)
        self.model = load_model()
        self.data = mujoco.MjData(self.model)
        self._drawing = Drawing(self.model, self.data, rendering, is_thrifty)
        self._joints = [int(self.model.joint(name).qposadr[0]) for name in JOINTS]
        self._cube = int(self.model.joint("block").qposadr[0])
        self._hand = self.model.site("gripperframe").id
        self._held = 0
        self.reset(0)

    # The protocol -----------------------------------------------------------------------------------------------------

    def reset(self, seed: int, options: Mapping[str, Any] | None = None) -> Observation:
        """Begin an episode, a pure function of the arguments; an observation without images.

        Args:
            seed: draws the cube's position and yaw and the arm's start (`START_JOINTS` with noise).
            options: `cube`: x, y (m) and yaw (rad) of the cube instead of those drawn.

        Raises:
            UserError: an unknown option, or a malformed `cube`.
        """
        rng = np.random.default_rng(seed)
        cube = _draw_cube(rng)
        start = np.array(START_JOINTS)
        start[:5] += np.clip(rng.normal(0.0, START_NOISE_RAD, 5), -2 * START_NOISE_RAD, 2 * START_NOISE_RAD)
        for name, value in (options or {}).items():
            if name != "cube":
                raise UserError(f"reset option '{name}': the SO-101 world knows only 'cube' (x, y, yaw); leave it out")
            cube = _checked(value, 3, "reset option 'cube'", "pass x and y (m) and yaw (rad)")
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self._joints] = start
        x, y, yaw = cube
        pose = (x, y, CUBE_HALF_M, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        self.data.qpos[self._cube : self._cube + 7] = pose
        mujoco.mj_forward(self.model, self.data)
        self._held = 0
        targets = self.clipped(start + self.gravity_lead(self.data))  # so that the arm does not sink
        for _ in range(_SETTLE_STEPS):
            self.step(targets)
        self.data.time = 0.0
        return self.observe(render=False)

    def step(self, action: np.ndarray) -> None:
        """One control step with six absolute joint targets `[6]` (rad), clipped to the actuators' ranges.

        Raises:
            UserError: another shape, NaN or an infinite number.
        """
        targets = _checked(action, len(JOINTS), "action", f"pass targets of {', '.join(JOINTS)} in radians")
        self.data.ctrl[:] = self.clipped(targets)
        mujoco.mj_step(self.model, self.data, nstep=SUBSTEPS)
        mujoco.mj_kinematics(self.model, self.data)  # positions are one substep old
        up = self.cube_position()[2] - CUBE_HALF_M > LIFT_M
        self._held = min(self._held + 1, HELD_STEPS) if up and self.hand_distance() < HAND_DISTANCE_M else 0

    def observe(self, render: bool = True) -> Observation:
        """Joint and jaw angles (rad), and frames unless `render` is false."""
        images = {camera: self.draw(camera, self.image_size) for camera in self.cameras} if render else {}
        angles = self.joints()
        state = {"arm": angles[:5].astype(np.float32), "gripper": angles[5:].astype(np.float32)}
        return Observation(images, state, self.instruction)

    def success(self) -> bool:
        """Whether the cube has been up and in the hand for the last `HELD_STEPS` control steps."""
        return self._held >= HELD_STEPS

    def close(self) -> None:
        """Free the OpenGL contexts."""
        self._drawing.close()

    # What it offers beside --------------------------------------------------------------------------------------------

    def state(self) -> np.ndarray:
        """Everything that decides what happens next, float64 `[n]`: MuJoCo's integration state (time, positions,
        velocities, targets, the solver's warm start) and for how long the cube has been held."""
        state = np.zeros(1 + mujoco.mj_stateSize(self.model, _STATE))
        state[0] = self._held
        mujoco.mj_getState(self.model, self.data, state[1:], _STATE)
        return state

    def set_state(self, state: np.ndarray) -> None:
        """Go back to a recorded moment; the same actions then have the same effects, bit for bit.

        Raises:
            UserError: the state has the wrong length.
        """
        size = 1 + mujoco.mj_stateSize(self.model, _STATE)
        numbers = _checked(state, size, "state", "pass what state() of this world returned")
        self._held = int(numbers[0])
        mujoco.mj_setState(self.model, self.data, numbers[1:], _STATE)
        mujoco.mj_kinematics(self.model, self.data)

    def draw(self, camera: str, size: int) -> np.ndarray:
        """An upright RGB frame of this moment, uint8 `[size, size, 3]`.

        Raises:
            UserError: there is no such camera.
        """
        _check_camera(camera)
        return self._drawing.frame(camera, size)

    def object_poses(self) -> dict[str, np.ndarray]:
        """The cube's position (m) and quaternion (wxyz), `[7]`."""
        return {"cube": self.data.qpos[self._cube : self._cube + 7].copy()}

    def joints(self) -> np.ndarray:
        """Measured angles `[6]` (rad) of the five joints and the jaw."""
        return self.data.qpos[self._joints]

    def cube_position(self) -> np.ndarray:
        """Centre of the cube `[3]` (m)."""
        return self.data.qpos[self._cube : self._cube + 3].copy()

    def hand_distance(self) -> float:
        """From the hand's site to the centre of the cube (m)."""
        return float(np.linalg.norm(self.cube_position() - self.data.site_xpos[self._hand]))

    def clipped(self, targets: np.ndarray) -> np.ndarray:
        """Joint targets `[6]` within the actuators' ranges."""
        return np.clip(targets, self.model.actuator_ctrlrange[:, 0], self.model.actuator_ctrlrange[:, 1])

    def gravity_lead(self, data: mujoco.MjData) -> np.ndarray:
        """How far ahead of the joints `[6]` (rad) their targets must be for the arm to stay: the servos are springs."""
        return data.qfrc_bias[:6] / self.model.actuator_gainprm[:6, 0]


def _draw_cube(rng: np.random.Generator) -> np.ndarray:
    """x, y (m) and yaw (rad) of a cube within reach, uniform."""
    while True:
        x, y = rng.uniform(*CUBE_X_M), rng.uniform(*CUBE_Y_M)
        if np.hypot(x - PAN_AXIS_X, y) <= CUBE_REACH_M:
            return np.array([x, y, rng.uniform(-CUBE_YAW_RAD, CUBE_YAW_RAD)])


def _checked(values: Any, size: int, what: str, fix: str) -> np.ndarray:
    """Finite float64 `[size]`."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{what}: expected {size} numbers, got {type(values).__name__}; {fix}") from None
    if numbers.shape != (size,):
        raise UserError(f"{what}: expected {size} numbers, got shape {list(numbers.shape)}; {fix}")
    if not np.isfinite(numbers).all():
        raise UserError(f"{what}: NaN or infinite at {int(np.argmin(np.isfinite(numbers)))}, expected numbers; {fix}")
    return numbers


def _check_camera(camera: str) -> None:
    if camera != CAMERA:
        raise UserError(f"camera '{camera}': the SO-101 world has only '{CAMERA}'; choose that")
