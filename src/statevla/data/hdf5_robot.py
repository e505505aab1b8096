"""Which robot an HDF5 file holds: as declared in it or by the user, LIBERO's by custom, else a proposal to edit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from statevla.data.hdf5_keys import camera_key, camera_names, field_key, is_libero_layout
from statevla.errors import UserError
from statevla.robots import LIBERO, ActionGroup, Camera, ImageOrientation, RobotSpec, StateField

ROBOT_ATTRIBUTE = "robot"
"""Of `data`: a declaration as JSON (`RobotSpec.to_dict`)."""
ORIENTATION_ATTRIBUTE = "image_orientation"
_MAX_STATE_SIZE = 64
"""A proposal takes what is larger for something else than a state."""
_MAX_GRIPPER_SIZE = 4
"""Numbers of a command that robosuite's largest gripper takes (`RobotiqThreeFingerDexterousGripper`)."""
_LOW_DIM = ("robot{}_eef_pos", "robot{}_eef_quat", "robot{}_gripper_qpos")
"""What robomimic's policies see of a robot."""


class UndeclaredRobotError(UserError):
    """A file that neither declares its robot nor is LIBERO's.

    Attributes:
        proposal: a declaration to begin with.
    """

    def __init__(self, message: str, proposal: RobotSpec) -> None:
        super().__init__(message)
        self.proposal = proposal


def robot_of_file(
    data: h5py.Group, file: Path, explicit: RobotSpec | None, orientation: ImageOrientation | None, notes: list[str]
) -> RobotSpec:
    """The robot of a file, with the cameras and the state fields that every episode has.

    Args:
        data: the file's group of that name.
        explicit: as the user declared it, or None.
        orientation: how all frames are stored, as the user said; or None.
        notes: what is assumed is added.

    Raises:
        UserError: nothing says which robot it is, or the file contradicts the declaration.
    """
    episodes = [set(obs) for demo in data.values() if isinstance(obs := _get(demo, "obs"), h5py.Group)]
    present = set.union(*episodes) if episodes else set()
    everywhere = set.intersection(*episodes) if episodes else set()
    freq_hz = _control_freq_hz(data)
    declared = explicit or _declared(data, file)
    if declared is None and not is_libero_layout(present):
        raise _undeclared(data, present, file)
    robot = declared or LIBERO.model_copy(update={"control_freq_hz": freq_hz or LIBERO.control_freq_hz})
    if freq_hz is not None and not robot.may_say(freq_hz):
        raise UserError(
            f"data {file}: robot '{robot.name}' declares {robot.control_freq_hz:g} Hz, env_args say {freq_hz:g} Hz; "
            f"declare 'control_freq_hz: {freq_hz:g}' in a YAML file"
        )
    cameras = _cameras(robot, declared is not None, everywhere, file)
    cameras = _oriented(cameras, data, file, orientation, is_libero_layout(present), notes)
    state = (field for field in robot.state if field.policy or field_key(field, everywhere))
    return robot.with_state(state).model_copy(update={"cameras": cameras})


def joined_robot(robots: Sequence[RobotSpec], files: Sequence[Path], path: Path) -> RobotSpec:
    """The robot of a folder of files: one, with the cameras and state fields that all of them have.

    Raises:
        UserError: the files hold different robots, or store frames differently.
    """
    first = robots[0]
    for robot, file in zip(robots[1:], files[1:]):
        difference = first.difference(robot)
        if difference is not None:
            raise UserError(
                f"data {path}: {files[0].name} and {file.name} hold different robots ({difference}); "
                "keep them in separate folders"
            )
    fields = tuple(field for field in first.state if all(robot.find_field(field.name) for robot in robots))
    cameras = tuple(c for c in first.cameras if all(c.name in robot.camera_names for robot in robots))
    for camera in cameras:
        stored = {robot.camera(camera.name).orientation.value for robot in robots}
        if len(stored) > 1:
            raise UserError(
                f"data {path}: files declare different orientations of camera '{camera.name}' "
                f"({', '.join(sorted(stored))}); set data.orientation, or keep them in separate folders"
            )
    return first.with_state(fields).model_copy(update={"cameras": cameras})


def json_attribute(data: h5py.Group, key: str, file: Path) -> Any:
    """An attribute of `data` that holds JSON; None where there is none.

    Raises:
        UserError: it is not JSON.
    """
    text = data.attrs.get(key)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise UserError(f"data {file}: attribute '{key}' of 'data' is not JSON; write it as LIBERO does") from None


def _get(group: Any, key: str) -> Any:
    return group.get(key) if isinstance(group, h5py.Group) else None


def _declared(data: h5py.Group, file: Path) -> RobotSpec | None:
    tree = json_attribute(data, ROBOT_ATTRIBUTE, file)
    return None if tree is None else RobotSpec.from_dict(tree, f"{file}: attribute '{ROBOT_ATTRIBUTE}'")


def _control_freq_hz(data: h5py.Group) -> float | None:
    try:
        return float(_env_kwargs(data)["control_freq"])
    except (KeyError, TypeError, ValueError):
        return None


def _env_kwargs(data: h5py.Group) -> dict[str, Any]:
    try:
        kwargs = json.loads(data.attrs["env_args"])["env_kwargs"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return kwargs if isinstance(kwargs, dict) else {}


def _cameras(robot: RobotSpec, is_declared: bool, keys: set[str], file: Path) -> tuple[Camera, ...]:
    """The robot's cameras that are there; all that are there if it is not declared or declares none of them."""
    cameras = {}
    for camera in robot.cameras:
        key = camera_key(camera, keys)
        if key is not None:
            cameras[key] = camera
        elif camera.key is not None:
            raise UserError(
                f"data {file}: no 'obs/{camera.key}' for camera '{camera.name}' of robot '{robot.name}', obs has "
                f"{', '.join(sorted(keys)) or 'nothing'}; correct its key"
            )
    if is_declared and cameras:
        return tuple(cameras.values())
    taken = {camera.name for camera in cameras.values()}
    for name, key in camera_names(keys).items():
        if key not in cameras and name not in taken:
            cameras[key] = Camera(name=name, key=None if key == camera_key(Camera(name=name), keys) else key)
    return tuple(cameras.values())


def _oriented(
    cameras: tuple[Camera, ...],
    data: h5py.Group,
    file: Path,
    orientation: ImageOrientation | None,
    is_libero: bool,
    notes: list[str],
) -> tuple[Camera, ...]:
    """Cameras with their orientation: the user's word, the declaration's, the file's, else the custom, noted."""
    if orientation is not None:
        return tuple(camera.model_copy(update={"orientation": orientation}) for camera in cameras)
    custom = ImageOrientation.FLIPPED_VERTICALLY if is_libero else ImageOrientation.UPRIGHT
    stored = data.attrs.get(ORIENTATION_ATTRIBUTE)
    try:
        of_file = custom if stored is None else ImageOrientation(stored)
    except ValueError:
        allowed = ", ".join(o.value for o in ImageOrientation)
        raise UserError(f"data {file}: {ORIENTATION_ATTRIBUTE} '{stored}', expected one of {allowed}") from None
    silent = [camera for camera in cameras if "orientation" not in camera.model_fields_set]
    if silent and stored is None:
        notes.append(f"{file.name} declares no orientation; frames are taken as {custom.value}")
    return tuple(c.model_copy(update={"orientation": of_file}) if c in silent else c for c in cameras)


# A proposal -----------------------------------------------------------------------------------------------------------


def _undeclared(data: h5py.Group, present: set[str], file: Path) -> UserError:
    if not present:
        return UserError(
            f"data {file}: its episodes have no 'obs', only {', '.join(_first_demo(data)) or 'nothing'}; render "
            "observations from the recorded states first (robomimic: dataset_states_to_obs.py)"
        )
    obs = _first_demo(data).get("obs")
    found = {k: v for k, v in obs.items() if isinstance(v, h5py.Dataset)} if isinstance(obs, h5py.Group) else {}
    shapes = ", ".join(f"{key} {list(values.shape[1:])}" for key, values in found.items())
    return UndeclaredRobotError(
        f"data {file}: it declares no robot and is not LIBERO's, obs has {shapes}; write a declaration with "
        f"'statevla data inspect {file} --write-robot robot.yaml', correct it and give it as data.robot",
        _proposal(data, found),
    )


def _first_demo(data: h5py.Group) -> h5py.Group:
    return next(demo for key, demo in sorted(data.items()) if key.startswith("demo"))


def _proposal(data: h5py.Group, obs: dict[str, h5py.Dataset]) -> RobotSpec:
    """What can be read off a file of robosuite or robomimic; everything else is said to be assumed."""
    assumed = ["cameras: frames are upright, as robomimic writes them"]
    actions = _get(_first_demo(data), "actions")
    size = actions.shape[1] if isinstance(actions, h5py.Dataset) and actions.ndim == 2 else 1
    groups = _osc_pose_groups(_env_kwargs(data), size)
    if groups is None:
        groups = (ActionGroup(name="action", dims=_numbered("action", size)),)
        assumed.append("actions: one continuous group of absolute targets")
    else:
        grips = " and a continuous gripper" if any(group.role == "gripper" for group in groups) else ""
        assumed.append(f"actions: deltas of the hand{grips}, as env_args' controller OSC_POSE takes")
    numeric = {k: v for k, v in obs.items() if np.issubdtype(v.dtype, np.floating) and v.ndim in (1, 2)}
    sizes = {key: 1 if values.ndim == 1 else values.shape[1] for key, values in numeric.items()}
    seen = [key.format(robot) for robot in range(4) for key in _LOW_DIM if key.format(robot) in sizes]
    fields = [
        StateField(name=key, dims=_numbered(key, n), policy=key in seen or not seen, role=_role(key, n))
        for key, n in sizes.items()
        if 0 < n <= _MAX_STATE_SIZE
    ]
    if fields:
        assumed.append("state: the policy sees the fields without 'policy: false'; units are not known")
    freq_hz = _control_freq_hz(data)
    if freq_hz is None:
        assumed.append("control_freq_hz: 20, robosuite's default")
    return RobotSpec(
        name="my_robot",
        control_freq_hz=freq_hz or 20.0,
        actions=groups,
        state=tuple(fields),
        cameras=tuple(Camera(name=name) for name in camera_names(obs)),
        assumed=tuple(assumed),
    )


def _osc_pose_groups(kwargs: dict[str, Any], size: int) -> tuple[ActionGroup, ...] | None:
    """Groups of robosuite's OSC_POSE: six deltas for every hand, then its gripper, if it has one.

    None for other controllers, and where the actions' numbers are not those of so many robots.
    """
    controllers = kwargs.get("controller_configs")
    configs = controllers if isinstance(controllers, list) else [controllers]
    if not all(isinstance(c, dict) and c.get("type") == "OSC_POSE" and c.get("control_delta", True) for c in configs):
        return None
    robots = kwargs.get("robots")
    count = len(robots) if isinstance(robots, list) and robots else 1
    each, rest = divmod(size, count)
    hand, gripper = LIBERO.actions
    num_deltas = len(hand.dims)
    if each == 2 * (num_deltas + 1):  # one with two arms, such as robosuite's Baxter
        count, each = 2 * count, num_deltas + 1
    if rest or not num_deltas <= each <= num_deltas + _MAX_GRIPPER_SIZE:
        return None
    dims = gripper.dims if each == num_deltas + 1 else _numbered("gripper", each - num_deltas)
    groups = []
    for number in range(count):
        suffix = str(number) if count > 1 else ""
        groups.append(hand.model_copy(update={"name": f"hand{suffix}"}))
        if dims:
            groups.append(ActionGroup(name=f"gripper{suffix}", dims=dims, role="gripper"))
    return tuple(groups)


def _role(key: str, size: int) -> Any:
    if key == "robot0_eef_pos" and size == 3:
        return "hand_position"
    return "gripper_opening" if key == "robot0_gripper_qpos" else None


def _numbered(name: str, size: int) -> tuple[str, ...]:
    return tuple(f"{name}_{number}" for number in range(size))
