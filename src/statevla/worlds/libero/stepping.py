"""Control steps of robosuite's arm without its overhead: the same numbers, bit for bit, in about half the time.

robosuite 1.4 evaluates the full dynamics three times per physics substep (environment, controller, integrator) and
looks names up in dictionaries in between. Kinematics, collisions and bias forces are the same each time, so that
`mj_step1` does them once; only the constraint solver has to run as often, because each run starts from the last one's
result. The operational-space control law (Khatib 1987) is robosuite's own, with the same operands in the same order.
"""

from __future__ import annotations

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
        self._controller = robot.controller
        self._gripper = robot.gripper
        names = robosuite_env.sim.model
        self._site = names.site_name2id(self._controller.eef_name)
        self._arm_actuators = np.array(robot._ref_joint_actuator_indexes)
        self._finger_actuators = np.array([names.actuator_name2id(name) for name in robot.gripper.actuators])
        limits = self._model.actuator_ctrlrange
        self._torque_low, self._torque_high = (limits[self._arm_actuators, side].copy() for side in (0, 1))
        fingers = limits[self._finger_actuators]
        self._finger_bias = 0.5 * (fingers[:, 1] + fingers[:, 0])
        self._finger_weight = 0.5 * (fingers[:, 1] - fingers[:, 0])
        self._num_substeps = int(robosuite_env.control_timestep / robosuite_env.model_timestep)
        num_dofs = self._model.nv
        self._jacp = np.zeros((3, num_dofs))
        self._jacr = np.zeros((3, num_dofs))
        self._full_mass = np.zeros((num_dofs, num_dofs))

    def step(self, action: np.ndarray) -> None:
        """Run one control step (25 substeps of 2 ms).

        Args:
            action: `[7]`, six OSC_POSE deltas in [-1, 1] and the gripper.
        """
        assert action.shape == (_NUM_DIMS,), action.shape
        model, data, controller = self._model, self._data, self._controller
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
            data.ctrl[self._arm_actuators] = np.clip(self._torques(), self._torque_low, self._torque_high)
            fingers = self._gripper.format_action(action[_NUM_POSE_DIMS:])
            data.ctrl[self._finger_actuators] = self._finger_bias + self._finger_weight * fingers
            controller.new_update = True
            mujoco.mj_step2(model, data)
        self._env.cur_time += self._env.control_timestep
        self._env.timestep += 1
        self._env._post_process()

    def _measure(self) -> None:
        """Fill in what the controller knows of the arm, as `Controller.update` does after a full evaluation."""
        model, data, controller = self._model, self._data, self._controller
        mujoco.mj_jacSite(model, data, self._jacp, self._jacr, self._site)
        controller.ee_pos = np.array(data.site_xpos[self._site])
        controller.ee_ori_mat = np.array(data.site_xmat[self._site].reshape([3, 3]))
        controller.ee_pos_vel = np.dot(self._jacp, data.qvel)
        controller.ee_ori_vel = np.dot(self._jacr, data.qvel)
        controller.joint_pos = data.qpos[controller.qpos_index]
        controller.joint_vel = data.qvel[controller.qvel_index]
        controller.J_pos = np.array(self._jacp[:, controller.qvel_index])
        controller.J_ori = np.array(self._jacr[:, controller.qvel_index])
        controller.J_full = np.vstack([controller.J_pos, controller.J_ori])
        mujoco.mj_fullM(model, self._full_mass, data.qM)
        controller.mass_matrix = self._full_mass[controller.qvel_index, :][:, controller.qvel_index]
        controller.new_update = False  # else the controller would evaluate the full dynamics again

    def _torques(self) -> np.ndarray:
        """The control law of `OperationalSpaceController.run_controller`: position and rotation decoupled."""
        c = self._controller
        force = np.multiply(c.goal_pos - c.ee_pos, c.kp[0:3]) + np.multiply(-c.ee_pos_vel, c.kd[0:3])
        rotation_error = orientation_error(c.goal_ori, c.ee_ori_mat)
        torque = np.multiply(rotation_error, c.kp[3:6]) + np.multiply(-c.ee_ori_vel, c.kd[3:6])
        _, lambda_pos, lambda_ori, nullspace = opspace_matrices(c.mass_matrix, c.J_full, c.J_pos, c.J_ori)
        wrench = np.concatenate([np.dot(lambda_pos, force), np.dot(lambda_ori, torque)])
        torques = np.dot(c.J_full.T, wrench) + self._data.qfrc_bias[c.qvel_index]
        torques += nullspace_torques(c.mass_matrix, nullspace, c.initial_joint, c.joint_pos, c.joint_vel)
        return torques
