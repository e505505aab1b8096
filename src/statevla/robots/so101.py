"""SO-101 (and SO-100) follower arm: five joints and a gripper, all absolute targets."""

from statevla.robots.declaration import ActionGroup, Camera, StateField
from statevla.robots.spec import RobotSpec

_JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")

SO101 = RobotSpec(
    name="so101",
    control_freq_hz=30.0,
    actions=(
        ActionGroup(name="arm", dims=_JOINTS, state="arm"),
        # How far the jaw opens is a matter of degree: continuous.
        ActionGroup(name="gripper", dims=("gripper",), state="gripper", role="gripper"),
    ),
    state=(
        StateField(name="arm", dims=_JOINTS, units="rad"),
        StateField(name="gripper", dims=("gripper",), units="rad", role="gripper_opening"),
    ),
    cameras=(Camera(name="front"),),
)
