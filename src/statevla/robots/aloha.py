"""ALOHA: two arms of six joints with a gripper each, absolute targets at 50 Hz (Zhao et al. 2023, arXiv 2304.13705)."""

from statevla.robots.declaration import ActionGroup, Camera, StateField
from statevla.robots.spec import RobotSpec

_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")


def _arm(side: str) -> tuple[ActionGroup, ActionGroup]:
    return (
        ActionGroup(name=f"{side}_arm", dims=_JOINTS, state=f"{side}_arm"),
        ActionGroup(name=f"{side}_gripper", dims=("gripper",), state=f"{side}_gripper", role="gripper"),
    )


def _state(side: str) -> tuple[StateField, StateField]:
    return (
        StateField(name=f"{side}_arm", dims=_JOINTS, units="rad"),
        StateField(name=f"{side}_gripper", dims=("gripper",), role="gripper_opening"),
    )


ALOHA = RobotSpec(
    name="aloha",
    control_freq_hz=50.0,
    actions=(*_arm("left"), *_arm("right")),
    state=(*_state("left"), *_state("right")),
    cameras=(Camera(name="top"),),
)
