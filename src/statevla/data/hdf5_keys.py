"""Where in an HDF5 episode a robot's state and pictures are: as declared, by their names, or by LIBERO's."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import h5py
import numpy as np

from statevla.data.keys import split_key
from statevla.errors import UserError
from statevla.robots import LIBERO, Camera, RobotSpec, StateField

LIBERO_KEYS = {
    "joint_positions": ("joint_states",),
    "finger_positions": ("gripper_states",),
    "hand_position": ("ee_states[0:3]", "ee_pos"),
    "hand_orientation": ("ee_states[3:6]", "ee_ori"),
}
"""State field of LIBERO's robots → its keys in LIBERO's files."""
CAMERA_SUFFIXES = ("_rgb", "_image")
"""How LIBERO and robomimic name the frames of a camera."""
_MAX_BYTES = 64 * 2**30
_LIBERO_STATE = {split_key(key)[0] for keys in LIBERO_KEYS.values() for key in keys}


def has_libero_fields(robot: RobotSpec) -> bool:
    """Whether a robot's actions and state fields are LIBERO's, some of them, under whatever name of the robot."""
    known = {field.name: field.dims for field in LIBERO.state}
    same_fields = all(known.get(field.name) == field.dims for field in robot.state)
    return same_fields and bool(robot.state) and robot.actions == LIBERO.actions


def is_libero_layout(keys: Collection[str]) -> bool:
    """Whether `obs` holds one of LIBERO's state keys."""
    return not _LIBERO_STATE.isdisjoint(keys)


def field_key(field: StateField, keys: Collection[str]) -> str | None:
    """The key of a state field, one of `keys` or a part of it; None where there is none."""
    candidates = (field.key,) if field.key else (field.name, *LIBERO_KEYS.get(field.name, ()))
    return next((key for key in candidates if split_key(key)[0] in keys), None)


def camera_key(camera: Camera, keys: Collection[str]) -> str | None:
    """The key of a camera's frames, one of `keys`; None where there is none."""
    candidates = (camera.key,) if camera.key else tuple(camera.name + suffix for suffix in CAMERA_SUFFIXES)
    return next((key for key in candidates if key in keys), None)


def camera_names(keys: Collection[str]) -> dict[str, str]:
    """Camera → key, of all keys that are named like a camera's."""
    found: dict[str, str] = {}
    for key in sorted(keys):
        for suffix in CAMERA_SUFFIXES:
            if key.endswith(suffix) and key != suffix:
                found.setdefault(key.removesuffix(suffix), key)
    return found


def find_dataset(group: h5py.Group, key: str, source: str) -> h5py.Dataset:
    """The dataset `key` of a group, of a size that an episode may have; `source` begins the errors.

    Raises:
        UserError: there is none, it is a single value, or it declares more than any memory holds.
    """
    found = group.get(key)
    if not isinstance(found, h5py.Dataset):
        raise UserError(f"{source} has no dataset '{key}'; it has {', '.join(group) or 'nothing'}")
    if not found.shape:
        raise UserError(f"{source}: '{key}' is a single {found.dtype}, expected an array with a row per step")
    # What was never written takes no room on the disk, so a small file may declare anything.
    num_bytes = math.prod(found.shape) * found.dtype.itemsize
    if num_bytes > _MAX_BYTES:
        raise UserError(
            f"{source}: '{key}' declares {list(found.shape)} values, {num_bytes / 1e9:,.0f} GB in one episode; the "
            "file is damaged, copy it again"
        )
    return found


def find_numbers(group: h5py.Group, key: str, source: str, *num_dims: int) -> h5py.Dataset:
    """As `find_dataset`, of numbers in one of so many dimensions.

    Raises:
        UserError: as `find_dataset`; or it is something else.
    """
    found = find_dataset(group, key, source)
    if not is_numeric(found) or found.ndim not in num_dims:
        shapes = " or ".join(("[steps]", "[steps, n]", "[steps, n, m]")[count - 1] for count in num_dims)
        raise UserError(f"{source}: '{key}' holds {found.dtype} {list(found.shape)}, expected numbers {shapes}")
    return found


def is_numeric(dataset: h5py.Dataset) -> bool:
    return dataset.dtype.kind in "fiub"


def field_values(field: StateField, robot: RobotSpec, obs: h5py.Group, observed: Any, source: str) -> np.ndarray:
    """Read a state field, float32 `[T, n]`.

    Args:
        observed: key → array, with a row per action.

    Raises:
        UserError: the field is missing or has another number of values.
    """
    key = field_key(field, obs)
    if key is None:
        wanted = field.key or " or ".join((field.name, *LIBERO_KEYS.get(field.name, ())))
        raise UserError(
            f"{source}: no state field '{field.name}' of robot '{robot.name}' (obs/{wanted}), obs has "
            f"{', '.join(obs) or 'nothing'}; declare the robot that it is (data.robot)"
        )
    name, part = split_key(key)
    values = observed(name)
    try:
        chosen = np.asarray(values.reshape(len(values), -1)[:, part], np.float32)
    except (TypeError, ValueError):
        raise UserError(f"{source}: obs/{name} holds {values.dtype} {list(values.shape)}, expected numbers") from None
    if chosen.shape[1] != field.size:
        raise UserError(
            f"{source}: obs/{key} has {chosen.shape[1]} numbers, expected {field.size} for state field '{field.name}' "
            f"of robot '{robot.name}' ({', '.join(field.dims)}); declare the robot that it is (data.robot)"
        )
    return chosen
