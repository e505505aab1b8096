"""Writes episodes as HDF5, one file per task: LIBERO's official layout, for its robots exactly.

LIBERO's robots get LIBERO's keys and frames upside down, as its users expect them; others keep the names of their state
fields, and upright frames. What the official files leave open is declared in attributes of `data`: the robot, the
orientation, and that an observation is what was seen when its action was chosen. Simulator states cannot be recovered
from other formats and are left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np

from statevla.data.episodes import EpisodeArrays, EpisodeInfo, task_name
from statevla.data.hdf5_keys import CAMERA_SUFFIXES, has_libero_fields
from statevla.data.libero import (
    BEFORE_ACTION,
    INSTRUCTION_ATTRIBUTE,
    IS_SEEN_KEY,
    ORIENTATION_ATTRIBUTE,
    ROBOT_ATTRIBUTE,
    TIMING_ATTRIBUTE,
)
from statevla.errors import UserError
from statevla.machine.storage import writing
from statevla.robots import ImageOrientation, RobotSpec
from statevla.transforms import from_upright, to_upright

WRITE_FIX = "the source is untouched, and nothing of the copy is kept; make room or choose another folder"
_OBJECTS_KEY = "object_states"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")


def write_libero(folder: Path, robot: RobotSpec, episodes: Iterable[tuple[EpisodeInfo, EpisodeArrays]]) -> list[Path]:
    """Write episodes into `folder`, streaming.

    Args:
        folder: is made; files of the tasks must not exist yet.
        robot: whose episodes they are, with its cameras as the arrays hold their frames.
        episodes: all episodes of a task in a row.

    Returns:
        The files, one per task.

    Raises:
        UserError: a file exists, episodes of a task are not in a row, or the disk is full.
    """
    stored = _stored(robot)
    written: list[Path] = []
    current: h5py.File | None = None
    task = ""
    with writing(folder, WRITE_FIX):
        try:
            for info, arrays in episodes:
                if current is None or info.task != task:
                    _finish(current, written)
                    task = info.task
                    # Names come from data: they must not lead out of the folder.
                    name = task if _FILE_NAME.fullmatch(task) else task_name(task)
                    current = _start(folder / f"{name}_demo.hdf5", info, stored, written)
                _write_demo(current["data"], info, arrays, robot, stored)
            _finish(current, written)
        except BaseException:
            _discard(current, written)
            raise
    return written


def _stored(robot: RobotSpec) -> RobotSpec:
    """The declaration of what is written.

    Raises:
        UserError: a state field has a name that the layout uses otherwise.
    """
    for field in robot.state:
        if field.name in (IS_SEEN_KEY, _OBJECTS_KEY) or field.name.endswith(CAMERA_SUFFIXES):
            raise UserError(f"convert: state field '{field.name}' has a name that this layout uses; rename it")
    custom = ImageOrientation.FLIPPED_VERTICALLY if has_libero_fields(robot) else ImageOrientation.UPRIGHT
    fields = tuple(field.model_copy(update={"key": None}) for field in robot.state)
    cameras = tuple(c.model_copy(update={"key": None, "orientation": custom}) for c in robot.cameras)
    return robot.model_copy(update={"state": fields, "cameras": cameras})


def _start(path: Path, info: EpisodeInfo, robot: RobotSpec, written: list[Path]) -> h5py.File:
    if path in written:
        raise UserError(f"{path}: episodes of task '{info.task}' are not in a row; sort them by task")
    if path.exists():
        raise UserError(f"{path}: exists already; choose another folder or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    written.append(path)
    file = h5py.File(_part(path), "w")
    data = file.create_group("data")
    data.attrs["problem_info"] = json.dumps({"language_instruction": info.instruction})
    data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": robot.control_freq_hz}})
    data.attrs["bddl_file_name"] = f"{path.stem.removesuffix('_demo')}.bddl"
    data.attrs[ROBOT_ATTRIBUTE] = json.dumps(robot.to_dict())
    orientations = {camera.orientation for camera in robot.cameras}
    if orientations:
        data.attrs[ORIENTATION_ATTRIBUTE] = orientations.pop().value
    data.attrs[TIMING_ATTRIBUTE] = BEFORE_ACTION
    data.attrs["num_demos"] = data.attrs["total"] = 0
    return file


def _finish(file: h5py.File | None, written: list[Path]) -> None:
    if file is not None:
        file.close()
        os.replace(_part(written[-1]), written[-1])


def _discard(file: h5py.File | None, written: list[Path]) -> None:
    """Leave nothing of a conversion that failed: half a data set looks like a whole one."""
    if file is not None:
        # What a full disk did not take, closing tries to write once more.
        with contextlib.suppress(OSError, RuntimeError):
            file.close()
    for path in written:
        path.unlink(missing_ok=True)
        _part(path).unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_suffix(".part")


def _write_demo(
    data: h5py.Group, info: EpisodeInfo, arrays: EpisodeArrays, robot: RobotSpec, stored: RobotSpec
) -> None:
    number, num_steps = int(data.attrs["num_demos"]), len(arrays.actions)
    demo = data.create_group(f"demo_{number}")
    demo.attrs["num_samples"] = num_steps
    if json.loads(data.attrs["problem_info"])["language_instruction"] != info.instruction:
        demo.attrs[INSTRUCTION_ATTRIBUTE] = info.instruction
    demo["actions"] = arrays.actions
    if arrays.executed_actions is not None:
        demo["executed_actions"] = arrays.executed_actions
    solved = (np.arange(num_steps) == num_steps - 1) & (arrays.success is not False)
    demo["dones"] = demo["rewards"] = solved.astype(np.uint8)
    obs = demo.create_group("obs")
    for camera, frames in arrays.images.items():
        upright = to_upright(frames, robot.camera(camera).orientation)
        # One frame per chunk would slow readers of whole episodes, which all of ours are.
        turned = np.ascontiguousarray(from_upright(upright, stored.camera(camera).orientation))
        obs.create_dataset(f"{camera}_rgb", data=turned)
    for key, values in _state_columns(arrays.robot_states, has_libero_fields(robot)).items():
        obs[key] = values
    if arrays.object_poses is not None:
        obs[_OBJECTS_KEY] = arrays.object_poses
        obs[_OBJECTS_KEY].attrs["names"] = json.dumps(list(arrays.object_names))
    data.attrs["num_demos"] = number + 1
    data.attrs["total"] = int(data.attrs["total"]) + num_steps


def _state_columns(states: Mapping[str, np.ndarray], is_libero: bool) -> dict[str, np.ndarray]:
    """Key of `obs` → what it holds, `[T, n]`."""
    if not is_libero:
        return dict(states)
    names = {
        "joint_positions": "joint_states",
        "finger_positions": "gripper_states",
        "hand_position": "ee_pos",
        "hand_orientation": "ee_ori",
    }
    columns = {names[name]: values for name, values in states.items()}
    if "ee_pos" in columns and "ee_ori" in columns:
        columns["ee_states"] = np.concatenate([columns["ee_pos"], columns["ee_ori"]], axis=1)
    return columns
