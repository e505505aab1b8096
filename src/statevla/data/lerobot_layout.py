"""How our writer lays a robot out in a LeRobotDataset.

What the policy sees is `observation.state`, other state fields lie beside it, and features have the dims' names.
LIBERO's robots get the keys, the state (hand and fingers) and, for LIBERO's two cameras, the mirrored frames of
`lerobot/libero`, so that policies and tools made for it take the data set as it is. All other frames are upright.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from statevla.data.hdf5_keys import has_libero_fields
from statevla.data.lerobot_robot import FIELD_PREFIX, IMAGE_PREFIX, STATE_KEYS
from statevla.robots import ImageOrientation, RobotSpec, StateField

STATE_KEY = STATE_KEYS[0]
_HUB_STATE = ("hand_position", "hand_orientation", "finger_positions")
_HUB_FIELDS = {"joint_positions": FIELD_PREFIX + "joint_state", "finger_positions": FIELD_PREFIX + "gripper_state"}
_HUB_CAMERAS = {"agentview": "image", "eye_in_hand": "image2"}


@dataclass(frozen=True)
class Layout:
    """Where a robot's numbers and frames go.

    Attributes:
        robot: the declaration of what is written, with the orientation that each camera's frames are written in.
        columns: feature → state fields, one after the other.
        cameras: camera → feature.
    """

    robot: RobotSpec
    columns: Mapping[str, tuple[StateField, ...]]
    cameras: Mapping[str, str]

    def names(self, key: str) -> list[str]:
        """One name per number of a state feature: that of the dim, with its field's where dims repeat."""
        fields = tuple(field.model_copy(update={"policy": True}) for field in self.columns[key])
        return list(self.robot.model_copy(update={"state": fields}).state_names)


def layout_of(robot: RobotSpec) -> Layout:
    """The layout for a robot."""
    is_libero = has_libero_fields(robot)
    by_name = {field.name: field for field in robot.state}
    if is_libero and all(name in by_name for name in _HUB_STATE):
        columns = {STATE_KEY: tuple(by_name[name] for name in _HUB_STATE)}
        if "joint_positions" in by_name:
            columns |= {key: (by_name[name],) for name, key in _HUB_FIELDS.items()}
    else:
        columns = {STATE_KEY: robot.policy_fields} if robot.policy_fields else {}
        columns |= {FIELD_PREFIX + field.name: (field,) for field in robot.state if not field.policy}
    hub_cameras = _HUB_CAMERAS if is_libero else {}
    cameras = {name: IMAGE_PREFIX + hub_cameras.get(name, name) for name in robot.camera_names}
    keys = _keys(columns)
    declared = robot.model_copy(
        update={
            "state": tuple(field.model_copy(update={"key": keys[field.name]}) for field in robot.state),
            "cameras": tuple(
                camera.model_copy(
                    update={
                        "key": cameras[camera.name],
                        "orientation": ImageOrientation.MIRRORED
                        if camera.name in hub_cameras
                        else ImageOrientation.UPRIGHT,
                    }
                )
                for camera in robot.cameras
            ),
        }
    )
    return Layout(declared, columns, cameras)


def _keys(columns: Mapping[str, tuple[StateField, ...]]) -> dict[str, str]:
    """State field → its feature, or its part of one."""
    keys = {}
    for column, fields in columns.items():
        start = 0
        for field in fields:
            keys[field.name] = column if len(fields) == 1 else f"{column}[{start}:{start + field.size}]"
            start += field.size
    return keys
