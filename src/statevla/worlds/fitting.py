"""Whether a policy and a world fit together: found before anything moves."""

from __future__ import annotations

from statevla.errors import UserError
from statevla.robots import RobotSpec
from statevla.worlds.protocol import Suite


def check_fit(robot: RobotSpec, policy: str, suite: Suite) -> None:
    """Check that a policy can act in the worlds of a suite.

    The world reports all its state fields and the policy picks its own, so that a world may have more of them; of
    several ways of saying the same one is enough.

    Args:
        robot: the policy's; its cameras are those that the policy looks through.
        policy: its name, for messages.
        suite: where it is to act.

    Raises:
        UserError: it cannot.
    """
    robot = robot.with_ways(field.name for field in suite.robot.state)
    difference = robot.difference(_as_seen(suite.robot, robot))
    if difference is not None:
        raise UserError(
            f"policy '{policy}' (robot '{robot.name}') does not fit world '{suite.name}' (robot '{suite.robot.name}'): "
            f"{difference}; evaluate it in a world of its own robot, or train it on data of this one"
        )
    for camera in robot.camera_names:
        if camera not in suite.robot.camera_names:
            raise UserError(
                f"policy '{policy}' looks through camera '{camera}', world '{suite.name}' has "
                f"{', '.join(suite.robot.camera_names) or 'none'}; name the world's camera so, or train with "
                "model.cameras that it has"
            )


def _as_seen(world: RobotSpec, by: RobotSpec) -> RobotSpec:
    """The world's robot as the other's policy would see it: with its fields, in its order; as it is if one lacks."""
    fields = [world.find_field(field.name) for field in by.policy_fields]
    seen = tuple(field.model_copy(update={"policy": True}) for field in fields if field is not None)
    return world if len(seen) < len(fields) else world.model_copy(update={"state": seen, "state_ways": by.state_ways})
