"""The robots of a robosuite environment as a declaration: one action group for each hand and each gripper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from statevla.errors import UserError
from statevla.robots import ActionGroup, Camera, RobotSpec, StateField

_POSE = ("x", "y", "z", "rx", "ry", "rz")
_GRIPPER = (-1.0, 1.0)
"""Open and close."""


def declare_robot(
    env: Any, actions: np.ndarray, control_freq_hz: float, cameras: Sequence[str], source: str
) -> RobotSpec:
    """Declare the robots of an environment.

    Args:
        env: robosuite's environment.
        actions: float `[T, A]`, all recorded ones: a gripper is binary if they are nothing but -1 and 1.
        control_freq_hz: how often they were taken.
        cameras: names of the cameras that are drawn.
        source: begins messages.

    Raises:
        UserError: a robot is not driven by the pose of one hand.
    """
    groups: list[ActionGroup] = []
    fields: list[StateField] = []
    start = 0
    for robot in env.robots:
        prefix = robot.robot_model.naming_prefix  # robot0_
        own = prefix if len(env.robots) > 1 else ""
        _check_controller(robot, source)
        groups.append(
            ActionGroup(name=f"{own}hand", dims=_POSE[: robot.controller.control_dim], mode="delta", low=-1, high=1)
        )
        start += robot.controller.control_dim
        fields.append(
            StateField(name=f"{prefix}joint_pos", dims=_numbered("joint", len(robot.robot_joints)), units="rad")
        )
        if robot.gripper.dof:
            commands = actions[:, start : start + robot.gripper.dof]
            groups.append(_gripper_group(f"{own}gripper", commands))
            start += robot.gripper.dof
            fingers = _numbered("finger", len(robot._ref_gripper_joint_pos_indexes))
            fields.append(StateField(name=f"{prefix}gripper_qpos", dims=fingers, units="m", role="gripper_opening"))
        fields.append(
            StateField(name=f"{prefix}eef_pos", dims=("x", "y", "z"), units="m", role="hand_position", policy=False)
        )
        # A quaternion and its negative are the same turn: joints tell a policy better.
        quaternion = StateField(name=f"{prefix}eef_quat", dims=("x", "y", "z", "w"), units="quaternion", policy=False)
        fields.append(quaternion)
    names = [type(robot.robot_model).__name__.lower() for robot in env.robots]
    return RobotSpec(
        name="_".join(["robosuite", *names]),
        control_freq_hz=control_freq_hz,
        actions=tuple(groups),
        state=tuple(fields),
        cameras=tuple(Camera(name=name) for name in cameras),
    )


def _gripper_group(name: str, commands: np.ndarray) -> ActionGroup:
    dims = ("gripper",) if commands.shape[1] == 1 else _numbered("gripper", commands.shape[1])
    if np.isin(commands, _GRIPPER).all():
        return ActionGroup(name=name, dims=dims, kind="binary", values=_GRIPPER, role="gripper")
    # robosuite's grippers take the sign of a command as the way to move, and hold at zero.
    return ActionGroup(name=name, dims=dims, mode="delta", low=-1.0, high=1.0, role="gripper")


def _check_controller(robot: Any, source: str) -> None:
    controller = getattr(robot, "controller", None)
    name = getattr(controller, "name", type(robot).__name__)
    fixed = getattr(controller, "impedance_mode", "fixed") == "fixed" and getattr(controller, "use_delta", False)
    if name not in ("OSC_POSE", "OSC_POSITION") or not fixed:
        raise UserError(
            f"{source}: its robot is driven by {name} (or by absolute poses, or with changing stiffness), expected "
            "OSC_POSE or OSC_POSITION with deltas; other controllers are not supported"
        )


def _numbered(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}_{number}" for number in range(1, count + 1))
