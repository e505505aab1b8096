"""Unitree G1 humanoid with two Inspire hands: 26 absolute joint targets at 30 Hz (`Unitree_G1_Inspire`)."""

from statevla.robots.declaration import ActionGroup, Camera, StateField
from statevla.robots.spec import RobotSpec

_ARM = ("ShoulderPitch", "ShoulderRoll", "ShoulderYaw", "Elbow", "WristRoll", "WristPitch", "WristYaw")
_HAND = ("HandPinky", "HandRing", "HandMiddle", "HandIndex", "HandThumbBend", "HandThumbRotation")
_PARTS = {
    "left_arm": tuple(f"kLeft{joint}" for joint in _ARM),
    "right_arm": tuple(f"kRight{joint}" for joint in _ARM),
    "left_hand": tuple(f"kLeft{joint}" for joint in _HAND),
    "right_hand": tuple(f"kRight{joint}" for joint in _HAND),
}

UNITREE_G1 = RobotSpec(
    name="unitree_g1",
    control_freq_hz=30.0,
    # No group is declared a gripper: twelve finger joints close by degrees.
    actions=tuple(ActionGroup(name=name, dims=dims, state=name) for name, dims in _PARTS.items()),
    # Inspire hands report the share of each finger's way, 0 to 1.
    state=tuple(
        StateField(name=name, dims=dims, units="rad" if name.endswith("arm") else "0 to 1")
        for name, dims in _PARTS.items()
    ),
    cameras=(Camera(name="cam_high"),),
)
