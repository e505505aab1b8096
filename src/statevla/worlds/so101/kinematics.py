"""From a wanted hand pose to joint targets, through the package's inverse kinematics.

The arm has five joints. Pan chooses a vertical plane; in it three joints place the grasp point and tilt the hand; roll
turns the jaws about the hand's axis. All is solved on a copy of the state: solving on the world's own would disturb it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from statevla.worlds.so101.scene import mujoco

if TYPE_CHECKING:
    from statevla.worlds.so101.world import So101LiftWorld

from lerobot_env_so101.ik_control import (  # isort: skip  (after MuJoCo, whose backend has to be chosen first)
    approach_tilt,
    compute_ik_levenberg_marquardt,
    control_point,
    roll_to_align_axis,
)
from lerobot_env_so101.mujoco_env import grasp_point_offset  # isort: skip

_OUT, _ACROSS = 0, 2  # axes of the hand's site: out of the gripper; from the fixed to the moving jaw
_POSITIONING = np.arange(4)  # pan, lift, elbow, wrist flex: dof and qpos numbers alike
_ROLL = 4
_ROUNDS = 3
_FAR_AWAY = (2.0, 2.0, 0.5)


@dataclass(frozen=True)
class HandPose:
    """Where the hand is.

    Attributes:
        point: `[3]` (m), between the finger tips.
        tilt: angle (rad) between the hand's axis and straight down, in the arm's plane.
        roll: the roll joint's angle (rad).
    """

    point: np.ndarray
    tilt: float
    roll: float


class Kinematics:
    """Forward and inverse kinematics of one world's arm."""

    def __init__(self, world: So101LiftWorld) -> None:
        self._world = world
        self._scratch = mujoco.MjData(world.model)
        self._scratch.qpos[6:9] = _FAR_AWAY
        self._scratch.qpos[9] = 1.0
        self._hand = world.model.site("gripperframe").id
        self._roll_joint = world.model.joint("wrist_roll").id
        self._offset = grasp_point_offset(world.model, self._hand)

    def pose(self, joints: np.ndarray) -> HandPose:
        """The hand's pose with the arm at `joints` `[6]` (rad)."""
        self._show(joints)
        point = control_point(self._scratch, self._hand, self._offset)
        return HandPose(point, approach_tilt(self._scratch, self._hand, _OUT), float(joints[_ROLL]))

    def across(self, joints: np.ndarray) -> np.ndarray:
        """Unit vector `[3]` from the fixed to the moving jaw."""
        self._show(joints)
        return self._scratch.site_xmat[self._hand].reshape(3, 3)[:, _ACROSS].copy()

    def out(self, joints: np.ndarray) -> np.ndarray:
        """Unit vector `[3]` out of the gripper."""
        self._show(joints)
        return self._scratch.site_xmat[self._hand].reshape(3, 3)[:, _OUT].copy()

    def solve(self, pose: HandPose, seed: np.ndarray) -> np.ndarray:
        """Joints `[6]` (rad) for a hand pose, from `seed` `[6]` on; the jaw stays as in the seed."""
        joints = seed.copy()
        joints[_ROLL] = pose.roll
        self._show(joints)
        for _ in range(_ROUNDS):  # the arm's plane follows from pan, which the solution moves a little
            pan = -joints[0]
            sine = np.sin(pose.tilt)
            direction = np.array([sine * np.cos(pan), sine * np.sin(pan), -np.cos(pose.tilt)])
            joints[_POSITIONING] = compute_ik_levenberg_marquardt(
                self._world.model,
                self._scratch,
                self._hand,
                _POSITIONING,
                pose.point,
                joints[_POSITIONING],
                damping=1e-4,
                max_iterations=8,
                tolerance=2e-5,
                point_offset=self._offset,
                approach_axis=_OUT,
                approach_dir=direction,
            )
        return joints

    def roll_toward(self, joints: np.ndarray, direction: np.ndarray) -> float:
        """How far to turn the roll joint (rad) so that the jaws close along a horizontal direction, from `joints`."""
        self._show(joints)
        return roll_to_align_axis(self._scratch, self._hand, self._roll_joint, _ACROSS, direction)

    def targets(self, joints: np.ndarray) -> np.ndarray:
        """Targets `[6]` (rad) that hold the arm at `joints` against gravity."""
        self._show(joints)
        return joints + self._world.gravity_lead(self._scratch)

    def _show(self, joints: np.ndarray) -> None:
        self._scratch.qpos[:6] = joints
        mujoco.mj_forward(self._world.model, self._scratch)
