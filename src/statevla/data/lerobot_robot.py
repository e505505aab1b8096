"""Which robot a LeRobotDataset holds, and which of its features are that robot's actions, state and cameras.

The user's declaration comes first, then the data set's own (`lerobot_declared`), then a known robot whose dims have the
features' names. Else the robot is derived from the names that the features have, and what these do not say is taken by
custom and said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from statevla.data.keys import split_key
from statevla.data.lerobot_commands import check_recorded_commands
from statevla.data.lerobot_declared import Declaration, read_declaration, require_orientation
from statevla.data.lerobot_frames import is_depth
from statevla.data.lerobot_meta import Metadata
from statevla.errors import UserError
from statevla.robots import KNOWN_ROBOTS, ROBOT_TYPES, ActionGroup, Camera, ImageOrientation, RobotSpec, StateField

IMAGE_PREFIX, FIELD_PREFIX = "observation.images.", "observation.states."
ACTION_KEYS, STATE_KEYS = ("action", "actions"), ("observation.state", "state")
_UPRIGHT = "frames are taken as upright"


@dataclass(frozen=True)
class Binding:
    """A robot and where its numbers and frames are.

    Attributes:
        robot: with the state fields and cameras that the data set has.
        action_key: feature of the actions.
        fields: state field → feature, and which of its numbers.
        cameras: camera → feature.
        is_declared: whether the data set itself declares a robot.
    """

    robot: RobotSpec
    action_key: str
    fields: Mapping[str, tuple[str, slice]]
    cameras: Mapping[str, str]
    is_declared: bool = False


def bind_robot(
    meta: Metadata, explicit: RobotSpec | None, orientation: ImageOrientation | None, notes: list[str]
) -> Binding:
    """Find the robot of a data set.

    Args:
        explicit: as the user declared it, or None.
        orientation: how all frames are stored, as the user said; or None.
        notes: what is left out is added.

    Raises:
        UserError: there are no actions, or a declared robot does not fit the features.
    """
    features = _Features(meta, notes)
    declared = read_declaration(meta, features.action_key)
    own = None if declared.robot is None else _own_binding(declared, declared.robot, features, notes)
    known: RobotSpec | None = None
    if explicit is not None:
        binding = _fit(explicit, features, own, notes)
    elif own is not None:
        binding = own
    else:
        known = _known_robot(features)
        binding = _fit(known or _derived_robot(features), features, None, notes)
    check_recorded_commands(meta, features.action_key, binding.robot)
    if orientation is not None:
        robot = binding.robot.with_orientation(orientation)
    elif explicit is None and own is not None:
        robot = own.robot
    else:
        robot = _oriented(binding, explicit or known, _stored(binding, declared, own), features, notes)
    return Binding(robot, binding.action_key, binding.fields, binding.cameras, is_declared=own is not None)


class _Features:
    """The features of a data set that may belong to a robot."""

    def __init__(self, meta: Metadata, notes: list[str]) -> None:
        self.meta, self.file = meta, meta.file
        self.all = meta.features
        pictures = {key: f for key, f in self.all.items() if f["dtype"] in ("video", "image")}
        depth = [key for key, feature in pictures.items() if is_depth(feature)]
        if depth:
            notes.append(f"left out, for they hold depth and not colours: {', '.join(depth)}")
        self.cameras = [key for key in pictures if key not in depth]
        self.sizes = {key: _size(f) for key, f in self.all.items() if key not in pictures and _is_numeric(f)}
        action = next((key for key in ACTION_KEYS if key in self.sizes), None)
        if action is None:
            raise UserError(f"data {self.file}: no feature '{ACTION_KEYS[0]}'; it has {', '.join(self.all)}")
        self.action_key = action
        self.state_key = next((key for key in STATE_KEYS if key in self.sizes), None)

    def names(self, key: str) -> tuple[str, ...] | None:
        """One name per number of a feature, where it has that many."""
        names = _flat_names(self.all[key].get("names"))
        return names if len(names) == self.sizes[key] else None


def _is_numeric(feature: Mapping[str, Any]) -> bool:
    return bool(re.match(r"(float|int|uint|bool)", str(feature["dtype"])))


def _size(feature: Mapping[str, Any]) -> int:
    try:
        return math.prod(int(n) for n in feature.get("shape") or [1])
    except (TypeError, ValueError):
        return 0


def _flat_names(names: Any) -> tuple[str, ...]:
    """Names as a list, a nested list, a mapping of lists or a mapping of names to positions."""
    if isinstance(names, Mapping):
        if names and all(isinstance(position, int) for position in names.values()):
            return tuple(sorted(map(str, names), key=lambda name: names[name]))
        return tuple(name for part in names.values() for name in _flat_names(part))
    if isinstance(names, (list, tuple)):
        return tuple(flat for name in names for flat in _flat_names(name))
    return () if names is None else (str(names),)


def _stored(binding: Binding, declared: Declaration, own: Binding | None) -> dict[str, ImageOrientation]:
    """Camera → how the data set says that its frames are stored, where it does."""
    of_own = {} if own is None else {own.cameras[camera.name]: camera.orientation for camera in own.robot.cameras}
    found = {name: of_own.get(key) or declared.stored(key) for name, key in binding.cameras.items()}
    return {name: stored for name, stored in found.items() if stored is not None}


def _oriented(
    binding: Binding,
    said: RobotSpec | None,
    stored: Mapping[str, ImageOrientation],
    features: _Features,
    notes: list[str],
) -> RobotSpec:
    """The robot with cameras as `said`, the user's robot or a known one, declares them, or else as they are `stored`.

    Raises:
        UserError: neither says it, and custom does not either.
    """
    cameras, unknown = [], []
    for camera in binding.robot.cameras:
        if "orientation" not in camera.model_fields_set:
            if camera.name in stored:
                camera = camera.model_copy(update={"orientation": stored[camera.name]})
            else:
                unknown.append(camera.name)
        cameras.append(camera)
    robot = binding.robot.model_copy(update={"cameras": tuple(cameras)})
    if unknown:
        keys = [binding.cameras[name] for name in unknown]
        require_orientation(features.meta, keys, features.names(features.action_key))
    if said is None and unknown:
        return robot.model_copy(update={"assumed": (*robot.assumed, _UPRIGHT)})
    if said is not None and any(name not in said.camera_names for name in unknown):
        notes.append(_UPRIGHT)
    return robot


# A declared robot -----------------------------------------------------------------------------------------------------


def _fit(robot: RobotSpec, features: _Features, own: Binding | None, notes: list[str]) -> Binding:
    """Bind a robot to features; where it gives no keys, `own`, the data set's declaration, is asked by name.

    Raises:
        UserError: the features are another robot's.
    """
    size = features.sizes[features.action_key]
    if size != robot.action_dim:
        raise UserError(
            f"data {features.file}: '{features.action_key}' has {_described(features, features.action_key)}, robot "
            f"'{robot.name}' declares {robot.action_dim}: {robot.describe_actions()}; declare the robot that made them"
        )
    if not robot.may_say(features.meta.fps):
        raise UserError(
            f"data {features.file}: robot '{robot.name}' declares {robot.control_freq_hz:g} Hz, fps is "
            f"{features.meta.fps:g}; declare 'control_freq_hz: {features.meta.fps:g}' in a YAML file"
        )
    fields = _fit_fields(robot, features, own)
    cameras = _fit_cameras(robot, features, own, notes)
    fitted = robot.with_state(field for field in robot.state if field.name in fields)
    return Binding(
        fitted.model_copy(update={"cameras": tuple(camera for camera, _ in cameras)}),
        features.action_key,
        fields,
        {camera.name: key for camera, key in cameras},
    )


def _own_binding(declared: Declaration, robot: RobotSpec, features: _Features, notes: list[str]) -> Binding:
    """The robot that a data set declares, without the cameras whose features were removed since.

    Raises:
        UserError: the features are another robot's, or say otherwise how frames are stored.
    """
    gone = [camera for camera in robot.cameras if camera.key is not None and camera.key not in features.cameras]
    if gone:
        notes.append(f"cameras that it declares and has no more: {', '.join(camera.name for camera in gone)}")
        robot = robot.model_copy(update={"cameras": tuple(camera for camera in robot.cameras if camera not in gone)})
    own = _fit(robot, features, None, notes)
    for camera in own.robot.cameras:
        declared.check_camera(camera, own.cameras[camera.name], features.file)
    return own


def _fit_fields(robot: RobotSpec, features: _Features, own: Binding | None) -> dict[str, tuple[str, slice]]:
    found: dict[str, tuple[str, slice]] = {}
    consecutive = []
    for field in robot.state:
        if field.key is not None:
            key, part = split_key(field.key)
            if key in features.sizes:
                found[field.name] = (key, part)
            elif field.policy:
                raise UserError(
                    f"data {features.file}: no feature '{key}' for state field '{field.name}' of robot '{robot.name}', "
                    f"it has {', '.join(features.sizes)}; correct its key"
                )
        elif own is not None and field.name in own.fields:
            found[field.name] = own.fields[field.name]
        else:
            consecutive.append(field)
    for name, place in _parts_of_state(robot, consecutive, features).items():
        found[name] = place
    for field in robot.state:
        if field.name not in found:
            continue
        key, part = found[field.name]
        size = len(range(*part.indices(features.sizes[key])))
        if size != field.size:
            raise UserError(
                f"data {features.file}: state field '{field.name}' of robot '{robot.name}' has {field.size} numbers "
                f"({', '.join(field.dims)}), '{field.key or key}' has {size}; correct its key or its dims"
            )
    return found


def _parts_of_state(robot: RobotSpec, fields: list[StateField], features: _Features) -> dict[str, tuple[str, slice]]:
    """Fields without a key: consecutive parts of the one state vector, all of it."""
    seen = [field for field in fields if field.policy]
    key = features.state_key
    size = 0 if key is None else features.sizes[key]
    parts = fields if key is not None and sum(field.size for field in fields) == size else seen
    if parts and sum(field.size for field in parts) != size:
        got = f"no feature '{STATE_KEYS[0]}'" if key is None else f"'{key}' has {_described(features, key)}"
        declared = ", ".join(f"{field.name} ({field.size})" for field in parts)
        raise UserError(
            f"data {features.file}: {got}, robot '{robot.name}' declares {sum(f.size for f in parts)}: {declared}; "
            "declare the robot that made them, or give its state fields keys"
        )
    found: dict[str, tuple[str, slice]] = {}
    start = 0
    for field in parts:
        found[field.name] = (str(key), slice(start, start + field.size))
        start += field.size
    for field in fields:
        if field.name not in found and features.sizes.get(FIELD_PREFIX + field.name) == field.size:
            found[field.name] = (FIELD_PREFIX + field.name, slice(None))
    return found


def _fit_cameras(
    robot: RobotSpec, features: _Features, own: Binding | None, notes: list[str]
) -> list[tuple[Camera, str]]:
    found = []
    for camera in robot.cameras:
        if camera.key is not None:
            if camera.key not in features.cameras:
                raise UserError(
                    f"data {features.file}: no feature '{camera.key}' for camera '{camera.name}' of robot "
                    f"'{robot.name}', its cameras are {', '.join(features.cameras) or 'none'}; correct its key"
                )
            found.append((camera, camera.key))
            continue
        if own is not None and camera.name in own.cameras:
            found.append((camera, own.cameras[camera.name]))
            continue
        candidates = (f"{IMAGE_PREFIX}{camera.name}", f"observation.{camera.name}", camera.name)
        key = next((key for key in candidates if key in features.cameras), None)
        if key is not None:
            found.append((camera, key))
    missing = [camera.name for camera in robot.cameras if camera.name not in {c.name for c, _ in found}]
    if found or not features.cameras:
        if missing:
            notes.append(f"robot '{robot.name}' has cameras that the data set has not: {', '.join(missing)}")
        return found
    others = _named_cameras(features)
    names = ", ".join(camera.name for camera, _ in others)
    notes.append(f"robot '{robot.name}' declares none of the cameras; {names} are taken")
    return others


def _described(features: _Features, key: str) -> str:
    names = features.names(key)
    size = features.sizes[key]
    return f"{size} numbers" if names is None else f"{size} numbers ({', '.join(names)[:200]})"


# An undeclared robot --------------------------------------------------------------------------------------------------


def _known_robot(features: _Features) -> RobotSpec | None:
    """The known robot of the data set's `robot_type`, if its dims have the features' names."""
    robot = KNOWN_ROBOTS.get(ROBOT_TYPES.get(str(features.meta.info.get("robot_type")), ""))
    if robot is None or features.state_key is None:
        return None
    actions = tuple(dim for group in robot.actions for dim in group.dims)
    state = tuple(dim for field in robot.policy_fields for dim in field.dims)
    fits = actions == features.names(features.action_key) and state == features.names(features.state_key)
    return robot.model_copy(update={"control_freq_hz": features.meta.fps}) if fits else None


def _derived_robot(features: _Features) -> RobotSpec:
    """The robot that the features' names describe."""
    names = features.names(features.action_key)
    dims = names or _numbered("action", features.sizes[features.action_key])
    assumed = [
        "actions are taken as absolute targets (mode: absolute)",
        "no number of an action is taken as binary, or as a gripper's",
    ]
    if names is None:
        assumed.append(f"'{features.action_key}' has no names; its numbers are counted")
    state: tuple[StateField, ...] = ()
    measures = False
    if features.state_key is not None:
        state_names = features.names(features.state_key)
        measures = names is not None and state_names == names
        fields = state_names or _numbered("state", features.sizes[features.state_key])
        state = (StateField(name="state", dims=fields),)
        assumed.append("units of the state are not known")
    cameras = tuple(camera for camera, _ in _named_cameras(features))
    return RobotSpec(
        name=_as_name(str(features.meta.info.get("robot_type") or "")) or "robot",
        control_freq_hz=features.meta.fps,
        actions=(ActionGroup(name="action", dims=dims, state="state" if measures else None),),
        state=state,
        cameras=cameras,
        assumed=tuple(assumed),
    )


def _named_cameras(features: _Features) -> list[tuple[Camera, str]]:
    """All cameras by the last part of their features' names, in alphabetical order."""
    found: dict[str, str] = {}
    for key in sorted(features.cameras):
        name = _as_name(key.removeprefix(IMAGE_PREFIX).removeprefix("observation.")) or "camera"
        while name in found:
            name += "_2"
        found[name] = key
    return [(Camera(name=name, key=key), key) for name, key in sorted(found.items())]


def _as_name(text: str) -> str:
    """`text` as a name of a declaration; empty if nothing of it can be one."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_.-")


def _numbered(name: str, size: int) -> tuple[str, ...]:
    return tuple(f"{name}_{number}" for number in range(size))
