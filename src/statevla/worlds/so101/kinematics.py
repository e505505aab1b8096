"""From a wanted hand pose to joint targets, by inverse kinematics.

The arm has five joints. Pan chooses a vertical plane; in it three joints place the grasp point and tilt the hand; roll
turns the jaws about the hand's axis. All is solved on a copy of the state: solving on the world's own would disturb it.
The solver is the package's `compute_ik_levenberg_marquardt`, number for number, in a fifth of its time: a control step
takes it sixteen iterations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from statevla.worlds.so101.scene import mujoco

if TYPE_CHECKING:
    from statevla.worlds.so101.world import So101LiftWorld

from lerobot_env_so101.ik_control import (  # isort: skip  (after MuJoCo, whose backend has to be chosen first)
    DEFAULT_ORIENTATION_WEIGHT,
    approach_tilt,
    control_point,
    roll_to_align_axis,
)
from lerobot_env_so101.mujoco_env import grasp_point_offset  # isort: skip

_OUT, _ACROSS = 0, 2  # axes of the hand's site: out of the gripper; from the fixed to the moving jaw
_POSITIONING = slice(4)  # pan, lift, elbow, wrist flex: dof and qpos numbers alike
_ROLL = 4
_ROUNDS = 3
_ITERATIONS = 8
_DAMPING = 1e-4 * np.eye(4)
_TOLERANCE = 2e-5
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
        self._hand_body = world.model.site_bodyid[self._hand]
        self._axes = self._scratch.site_xmat[self._hand].reshape(3, 3)
        self._low, self._high = world.model.jnt_range[_POSITIONING].T
        self._jacp, self._jacr = np.zeros((3, world.model.nv)), np.zeros((3, world.model.nv))

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
            joints[_POSITIONING] = self._place(pose.point, direction, joints[_POSITIONING])
        return joints

    def _place(self, point: np.ndarray, direction: np.ndarray, start: np.ndarray) -> np.ndarray:
        """The positioning joints `[4]` that bring the grasp point to a place and turn the hand's axis to a direction:
        Levenberg-Marquardt's method, from `start` `[4]` on."""
        joints = start.copy()
        for _ in range(_ITERATIONS):
            self._scratch.qpos[_POSITIONING] = joints
            mujoco.mj_kinematics(self._world.model, self._scratch)
            mujoco.mj_comPos(self._world.model, self._scratch)
            error, jacobian = self._miss(point, direction)
            if np.sqrt(error.dot(error)) < _TOLERANCE:
                break
            joints = joints + np.linalg.solve(jacobian.T @ jacobian + _DAMPING, jacobian.T @ error)
            joints = np.minimum(np.maximum(joints, self._low), self._high)
        return joints

    def _miss(self, point: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far the hand is from a place and a direction, `[5]`, and how that changes with the joints, `[5, 4]`."""
        here = control_point(self._scratch, self._hand, self._offset)
        mujoco.mj_jac(self._world.model, self._scratch, self._jacp, self._jacr, here, self._hand_body)
        axis = self._axes[:, _OUT]
        (a, b, c), (u, v, w) = axis.tolist(), direction.tolist()
        rotation = np.array([b * w - c * v, c * u - a * w, a * v - b * u])
        sine = np.sqrt(rotation.dot(rotation))
        if sine > 1e-9:
            rotation *= np.arctan2(sine, axis @ direction) / sine
        # What turns about the axis itself is free. Arrays lie in memory as the package's do: BLAS adds accordingly.
        tangent = self._axes[:, _OUT + 1 :].copy().T
        error, jacobian = np.empty(5), np.empty((5, 4))
        error[:3], error[3:] = point - here, DEFAULT_ORIENTATION_WEIGHT * (tangent @ rotation)
        turning = np.asfortranarray(self._jacr[:, _POSITIONING])
        jacobian[:3], jacobian[3:] = self._jacp[:, _POSITIONING], DEFAULT_ORIENTATION_WEIGHT * (tangent @ turning)
        return error, jacobian

    def roll_toward(self, joints: np.ndarray, direction: np.ndarray) -> float:
        """How far to turn the roll joint (rad) so that the jaws close along a horizontal direction, from `joints`."""
        self._show(joints)
        return roll_to_align_axis(self._scratch, self._hand, self._roll_joint, _ACROSS, direction)

    def targets(self, joints: np.ndarray) -> np.ndarray:
        """Targets `[6]` (rad) that hold the arm at `joints` against gravity."""
        self._show(joints)
        # At rest, as the scratch is, forces are those of gravity.
        mujoco.mj_comPos(self._world.model, self._scratch)
        mujoco.mj_comVel(self._world.model, self._scratch)
        mujoco.mj_rne(self._world.model, self._scratch, 0, self._scratch.qfrc_bias)
        return joints + self._world.gravity_lead(self._scratch)

    def _show(self, joints: np.ndarray) -> None:
        self._scratch.qpos[:6] = joints
        mujoco.mj_kinematics(self._world.model, self._scratch)
