"""DROID: a Franka Panda told joint velocities at 15 Hz (Khazatsky et al. 2024, arXiv 2403.12945), in openpi's keys."""

from statevla.robots.declaration import ActionGroup, Camera, StateField
from statevla.robots.spec import RobotSpec

_JOINTS = tuple(f"joint_{i}" for i in range(1, 8))

DROID = RobotSpec(
    name="droid",
    control_freq_hz=15.0,
    actions=(
        # Fractions of the greatest velocity: zero is rest.
        ActionGroup(name="joint_velocity", dims=_JOINTS, mode="delta", low=-1.0, high=1.0),
        ActionGroup(name="gripper", dims=("gripper",), low=0.0, high=1.0, state="gripper_position", role="gripper"),
    ),
    state=(
        StateField(name="joint_position", dims=_JOINTS, units="rad", key="joint_position"),
        # How far it is closed, which is no opening: the field has no role.
        StateField(name="gripper_position", dims=("gripper",), units="0 open, 1 closed", key="gripper_position"),
    ),
    cameras=(Camera(name="exterior_image_1_left"), Camera(name="wrist_image_left")),
)
"""As openpi's script converts DROID to LeRobot's format, and as its example client sends and executes it."""
