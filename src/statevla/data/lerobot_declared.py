"""What a LeRobotDataset declares of its robot, where LeRobot's own tools keep it.

`lerobot-edit-dataset` writes `meta/info.json` anew from the keys that LeRobot knows; what it does not change are the
entries of `features` (datasets/dataset_tools.py, LeRobot 0.4 to 0.6). So our writer declares the robot twice, at the
top and in the feature of the actions, and how frames are stored in the feature of every camera besides:

    statevla: {robot: …}
    features:
      action: {info: {statevla: {robot: …}}}
      observation.images.image: {info: {statevla: {image_orientation: …}}}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statevla.data.lerobot_meta import Metadata
from statevla.errors import UserError
from statevla.robots import LIBERO, Camera, ImageOrientation, RobotSpec

DECLARATION_KEY, ROBOT_KEY = "statevla", "robot"
_ORIENTATION_KEY = "image_orientation"
"""Beside or instead of a robot: how all frames are stored, or those of a camera."""
_INFO = "info"
_LIBERO_CAMERAS = ({"observation.images.image", "observation.images.image2"}, {"image", "wrist_image"})
"""Features of `lerobot/libero` and of openpi's: neither says that its frames are mirrored."""


@dataclass(frozen=True)
class Declaration:
    """What a data set says of itself.

    Attributes:
        robot: whose data it is, or None.
        orientations: feature → how its frames are stored, where that is said beside the robot.
        orientation: how all others are; None where that is not said.
    """

    robot: RobotSpec | None
    orientations: Mapping[str, ImageOrientation]
    orientation: ImageOrientation | None

    def stored(self, feature: str) -> ImageOrientation | None:
        """How the frames of a feature are stored, where that is said beside the robot."""
        return self.orientations.get(feature, self.orientation)

    def check_camera(self, camera: Camera, feature: str, file: Path) -> None:
        """Raise a UserError if the declared robot's `camera` is stored otherwise than its `feature` says."""
        stored = self.stored(feature)
        if stored not in (None, camera.orientation):
            raise UserError(
                f"data {file}: the declared robot has camera '{camera.name}' {camera.orientation.value}, "
                f"{_ORIENTATION_KEY} of '{feature}' says {stored.value}; make them the same, or delete the wrong one"
            )


def read_declaration(meta: Metadata, action_key: str) -> Declaration:
    """What a data set declares; `action_key` is the feature of its actions.

    Raises:
        UserError: it is malformed, or says two things.
    """
    top, features = _part(meta.info), {key: _part(feature.get(_INFO)) for key, feature in meta.features.items()}
    top_path = f"{DECLARATION_KEY}.{ROBOT_KEY}"
    robots = {
        path: RobotSpec.from_dict(part[ROBOT_KEY], f"{meta.file}: {path}")
        for path, part in (
            (top_path, top),
            (f"features.{action_key}.{_INFO}.{top_path}", features[action_key]),
        )
        if ROBOT_KEY in part
    }
    if len(robots) == 2 and len({repr(robot.to_dict()) for robot in robots.values()}) == 2:
        raise UserError(f"data {meta.file}: {' and '.join(robots)} differ; make them the same, or delete the wrong one")
    return Declaration(
        next(iter(robots.values()), None),
        {key: _orientation(part, meta.file) for key, part in features.items() if _ORIENTATION_KEY in part},
        _orientation(top, meta.file) if _ORIENTATION_KEY in top else None,
    )


def top_declaration(robot: RobotSpec) -> dict[str, Any]:
    """What belongs at the top of `meta/info.json`; keys of the robot's state fields and cameras are features."""
    return {DECLARATION_KEY: {ROBOT_KEY: robot.to_dict()}}


def declare_in_features(features: Mapping[str, dict[str, Any]], robot: RobotSpec, action_key: str) -> None:
    """Write what belongs into the `features` of `meta/info.json`, in place."""
    said: dict[str, dict[str, Any]] = {action_key: {ROBOT_KEY: robot.to_dict()}}
    said |= {str(camera.key): {_ORIENTATION_KEY: camera.orientation.value} for camera in robot.cameras}
    for key, part in said.items():
        if key in features:
            features[key][_INFO] = {**(features[key].get(_INFO) or {}), DECLARATION_KEY: part}


def require_orientation(meta: Metadata, cameras: list[str], action_names: tuple[str, ...] | None) -> None:
    """Raise a UserError where frames of unknown orientation are as likely mirrored as upright: in LIBERO's data sets.

    Everybody else's are taken as upright, as LeRobot's cameras record them.
    """
    named = action_names == LIBERO.action_names
    if not named and not any(keys <= set(cameras) for keys in _LIBERO_CAMERAS):
        return
    raise UserError(
        f"data {meta.file}: nothing says how the frames of {', '.join(cameras)} are stored; LIBERO's data sets have "
        "them mirrored (lerobot/libero) or upright; look, and set data.orientation (policy.image_orientation in "
        "LeRobot), or declare them by data.robot, such as libero_hub"
    )


def _part(tree: Any) -> Mapping[str, Any]:
    """Our part of a tree; empty where there is none."""
    part = tree.get(DECLARATION_KEY) if isinstance(tree, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _orientation(part: Mapping[str, Any], file: Path) -> ImageOrientation:
    stored = part[_ORIENTATION_KEY]
    try:
        return ImageOrientation(stored)
    except ValueError:
        allowed = ", ".join(o.value for o in ImageOrientation)
        raise UserError(f"data {file}: {_ORIENTATION_KEY} '{stored}', expected one of {allowed}") from None
