"""LIBERO's Panda: six OSC_POSE deltas and a parallel gripper, two cameras."""

from enum import IntEnum

from statevla.robots.declaration import ActionGroup, Camera, ImageOrientation, StateField
from statevla.robots.spec import RobotSpec


class Gripper(IntEnum):
    """Gripper command, the last number of an action (robosuite's convention)."""

    OPEN = -1
    CLOSE = 1


_POSE = ("x", "y", "z", "rx", "ry", "rz")
_ACTIONS = (
    # Fractions of 0.05 m and 0.5 rad a step, in the robot's base frame.
    ActionGroup(name="hand", dims=_POSE, mode="delta", low=-1.0, high=1.0),
    ActionGroup(name="gripper", dims=("gripper",), kind="binary", values=(Gripper.OPEN, Gripper.CLOSE), role="gripper"),
)
_JOINTS = StateField(name="joint_positions", dims=tuple(f"joint_{i}" for i in range(1, 8)), units="rad")
_FINGERS = StateField(name="finger_positions", dims=("left", "right"), units="m", role="gripper_opening")
_HAND = StateField(name="hand_position", dims=("x", "y", "z"), units="m", role="hand_position")
_TURN = StateField(name="hand_orientation", dims=("rx", "ry", "rz"), units="rad, axis-angle")
_CAMERAS = (Camera(name="agentview"), Camera(name="eye_in_hand"))


def _unseen(field: StateField) -> StateField:
    return field.model_copy(update={"policy": False})


LIBERO = RobotSpec(
    name="libero",
    control_freq_hz=20.0,
    actions=_ACTIONS,
    state=(_JOINTS, _FINGERS, _unseen(_HAND), _unseen(_TURN)),
    cameras=_CAMERAS,
)
"""The specification's robot: the policy sees 7 joints and 2 fingers."""

LIBERO_HAND = LIBERO.model_copy(update={"name": "libero_hand", "state": (_HAND, _TURN, _FINGERS, _unseen(_JOINTS))})
"""The same arm by its hand's pose and its fingers, 8 numbers, as openpi and most published VLA models see it."""

LIBERO_EITHER = LIBERO.model_copy(
    update={
        "name": "libero_either",
        "state": (_JOINTS, _HAND, _TURN, _FINGERS),
        "state_ways": ((_JOINTS.name,), (_HAND.name, _TURN.name)),
    }
)
"""The same arm by its joints, or by its hand's pose, or by both: for a policy that serves clients of either kind."""

LIBERO_HUB = LIBERO_HAND.model_copy(
    update={
        "name": "libero_hub",
        # Its metadata say 10 Hz, but a step is the simulator's.
        "recorded_freq_hz": 10.0,
        "state": (_HAND, _TURN, _FINGERS),
        "cameras": (
            Camera(name="agentview", key="observation.images.image", orientation=ImageOrientation.MIRRORED),
            Camera(name="eye_in_hand", key="observation.images.image2", orientation=ImageOrientation.MIRRORED),
        ),
    }
)
"""`lerobot/libero` of the Hugging Face hub, which says nothing of what its numbers mean and stores mirrored frames."""

LIBERO_OPENPI = LIBERO_HUB.model_copy(
    update={
        "name": "libero_openpi",
        "cameras": (
            Camera(name="agentview", key="image", orientation=ImageOrientation.MIRRORED),
            Camera(name="eye_in_hand", key="wrist_image", orientation=ImageOrientation.MIRRORED),
        ),
    }
)
"""`physical-intelligence/libero`, as openpi's script writes it: the same numbers and frames under other keys."""
