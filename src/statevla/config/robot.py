"""The dimensions of a model are those of its robot."""

from __future__ import annotations

from statevla.config.tree import Config
from statevla.errors import UserError
from statevla.robots import Camera, RobotSpec


def fit_to_robot(config: Config, robot: RobotSpec) -> tuple[Config, RobotSpec]:
    """The configuration with the robot's dimensions and cameras, and the robot with the model's cameras in its order.

    Raises:
        UserError: a number or a camera in the configuration is not the robot's.
    """
    model = config.model
    found = (
        ("action_dim", model.action_dim, robot.action_dim, robot.describe_actions()),
        ("robot_state_dim", model.robot_state_dim, robot.state_dim, robot.describe_state()),
    )
    for key, written, own, described in found:
        if written not in (0, own):
            raise UserError(
                f"model.{key} is {written}, robot '{robot.name}' has {own}: {described}; set model.{key} to auto, or "
                "declare another robot (data.robot)"
            )
    cameras = model.cameras or list(robot.camera_names)
    if not cameras:
        raise UserError(f"robot '{robot.name}' has no camera; a policy needs at least one, declare it under cameras")
    fitted = robot.model_copy(update={"cameras": tuple(_camera(robot, name) for name in cameras)})
    dims = {"action_dim": robot.action_dim, "robot_state_dim": robot.state_dim, "cameras": cameras}
    return config.model_copy(update={"model": model.model_copy(update=dims)}), fitted


def _camera(robot: RobotSpec, name: str) -> Camera:
    if name not in robot.camera_names:
        raise UserError(
            f"model.cameras: no camera '{name}', robot '{robot.name}' has {', '.join(robot.camera_names) or 'none'}; "
            "set model.cameras to auto, or to some of these"
        )
    return robot.camera(name)
