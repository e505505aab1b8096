"""Control steps of robosuite's arm without its overhead: the same numbers, bit for bit, in about half the time.

robosuite 1.4 evaluates the full dynamics three times per physics substep (environment, controller, integrator) and
looks names up in dictionaries in between. Kinematics, collisions and bias forces are the same each time, so that
`mj_step1` does them once; only the constraint solver has to run as often, because each run starts from the last one's
result. The operational-space control law (Khatib 1987) is robosuite's own, with the same operands in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

from statevla.robots import LIBERO

_NUM_DIMS, _NUM_POSE_DIMS = LIBERO.action_dim, LIBERO.num_continuous


class FastStepper:
    """Advances one robosuite environment with an OSC_POSE arm and a Panda gripper.

    Make it anew after each reset: robosuite replaces its controller there.
    """

    def __init__(self, robosuite_env: Any) -> None:
        self._env = robosuite_env
        self._model = robosuite_env.sim.model._model
        self._data = robosuite_env.sim.data._data
        robot = robosuite_env.robots[0]
        self._controller = controller = robot.controller
        self._gripper = robot.gripper
        names = robosuite_env.sim.model
        self._site = names.site_name2id(controller.eef_name)
        arm_actuators = _span(robot._ref_joint_actuator_indexes)
        finger_actuators = _span([names.actuator_name2id(name) for name in robot.gripper.actuators])
        limits = self._model.actuator_ctrlrange
        self._torque_low, self._torque_high = (limits[arm_actuators, side].copy() for side in (0, 1))
        fingers = limits[finger_actuators]
        self._finger_bias = 0.5 * (fingers[:, 1] + fingers[:, 0])
        self._finger_weight = 0.5 * (fingers[:, 1] - fingers[:, 0])
        self._num_substeps = int(robosuite_env.control_timestep / robosuite_env.model_timestep)
        # Windows on MuJoCo's memory: looking an array up costs as much as working on it.
        data, self._arm = self._data, _span(controller.qvel_index)
        self._position, self._rotation = data.site_xpos[self._site], data.site_xmat[self._site].reshape(3, 3)
        self._qvel, self._arm_velocities = data.qvel, data.qvel[self._arm]
        self._arm_positions, self._bias = data.qpos[_span(controller.qpos_index)], data.qfrc_bias[self._arm]
        self._arm_commands, self._finger_commands = data.ctrl[arm_actuators], data.ctrl[finger_actuators]
        num_dofs = self._model.nv
        self._jacp, self._jacr = np.zeros((3, num_dofs)), np.zeros((3, num_dofs))
        self._full_mass = np.zeros((num_dofs, num_dofs))
        # In memory as robosuite's own: BLAS adds in an order that depends on it.
        size = self._arm.stop - self._arm.start
        self._j_pos, self._j_ori = np.zeros((3, size), order="F"), np.zeros((3, size), order="F")
        self._j_full, self._mass = np.zeros((6, size), order="F"), np.zeros((size, size), order="F")
        self._wrench = np.zeros(6)

    def step(self, action: np.ndarray) -> None:
        """Run one control step (25 substeps of 2 ms).

        Args:
            action: `[7]`, six OSC_POSE deltas in [-1, 1] and the gripper.
        """
        assert action.shape == (_NUM_DIMS,), action.shape
        model, data, controller = self._model, self._data, self._controller
        # What `PandaGripper.format_action` adds at every substep.
        finger_step = np.array([-1.0, 1.0]) * self._gripper.speed * np.sign(action[_NUM_POSE_DIMS:])
        fingers = self._gripper.current_action
        for substep in range(self._num_substeps):
            mujoco.mj_step1(model, data)
            mujoco.mj_fwdActuation(model, data)
            mujoco.mj_fwdAcceleration(model, data)
            mujoco.mj_fwdConstraint(model, data)
            if controller.new_update:  # false right after a reset: the first goal is relative to the reset's own pose
                mujoco.mj_fwdConstraint(model, data)
                self._measure()
            if substep == 0:
                controller.set_goal(action[:_NUM_POSE_DIMS])
            np.minimum(np.maximum(self._torques(), self._torque_low), self._torque_high, out=self._arm_commands)
            fingers = np.minimum(np.maximum(fingers + finger_step, -1.0), 1.0)
            self._finger_commands[:] = self._finger_bias + self._finger_weight * fingers
            controller.new_update = True
            mujoco.mj_step2(model, data)
        self._gripper.current_action = fingers
        self._env.cur_time += self._env.control_timestep
        self._env.timestep += 1
        self._env._post_process()

    def _measure(self) -> None:
        """Fill in what the controller knows of the arm, as `Controller.update` does after a full evaluation."""
        controller, arm = self._controller, self._arm
        mujoco.mj_jacSite(self._model, self._data, self._jacp, self._jacr, self._site)
        mujoco.mj_fullM(self._model, self._full_mass, self._data.qM)
        self._j_pos[:] = self._j_full[:3] = self._jacp[:, arm]
        self._j_ori[:] = self._j_full[3:] = self._jacr[:, arm]
        self._mass[:] = self._full_mass[arm, arm]
        controller.ee_pos = self._position.copy()
        controller.ee_ori_mat = self._rotation.copy()
        controller.ee_pos_vel = np.dot(self._jacp, self._qvel)
        controller.ee_ori_vel = np.dot(self._jacr, self._qvel)
        controller.joint_pos = self._arm_positions.copy()
        controller.joint_vel = self._arm_velocities.copy()
        controller.J_pos, controller.J_ori, controller.J_full = self._j_pos, self._j_ori, self._j_full
        controller.mass_matrix = self._mass
        controller.new_update = False  # else the controller would evaluate the full dynamics again

    def _torques(self) -> np.ndarray:
        """The control law of `OperationalSpaceController.run_controller`: position and rotation decoupled."""
        c, kp, kd, wrench = self._controller, self._controller.kp, self._controller.kd, self._wrench
        force = (c.goal_pos - c.ee_pos) * kp[0:3] + -c.ee_pos_vel * kd[0:3]
        torque = orientation_error(c.goal_ori, c.ee_ori_mat) * kp[3:6] + -c.ee_ori_vel * kd[3:6]
        _, lambda_pos, lambda_ori, nullspace = opspace_matrices(c.mass_matrix, c.J_full, c.J_pos, c.J_ori)
        np.dot(lambda_pos, force, out=wrench[:3])
        np.dot(lambda_ori, torque, out=wrench[3:])
        torques: np.ndarray = np.dot(c.J_full.T, wrench) + self._bias
        torques += nullspace_torques(c.mass_matrix, nullspace, c.initial_joint, c.joint_pos, c.joint_vel)
        return torques


def _span(indices: Sequence[int]) -> slice:
    """The slice of indices that follow one another, as those of an arm's joints and fingers do."""
    first, count = int(indices[0]), len(indices)
    assert list(indices) == list(range(first, first + count)), indices
    return slice(first, first + count)
