"""Writes episodes as HDF5, one file per task: LIBERO's official layout, for its robots exactly.

LIBERO's robots get LIBERO's keys and frames upside down, as its users expect them; others keep the names of their state
fields, and upright frames. What the official files leave open is declared in attributes of `data`: the robot, the
orientation, and that an observation is what was seen when its action was chosen. Simulator states cannot be recovered
from other formats and are left out.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np

from statevla.data.episodes import EpisodeArrays, EpisodeInfo, task_name
from statevla.data.hdf5_checks import create_hdf5, seal_attributes, write_array
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
from statevla.machine.lock import only_writer_of
from statevla.machine.storage import replacing_folder, writing
from statevla.robots import ImageOrientation, RobotSpec
from statevla.transforms import from_upright, to_upright

WRITE_FIX = "the source is untouched, and nothing of the copy is kept; make room or choose another folder"
_OBJECTS_KEY = "object_states"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")


def write_libero(folder: Path, robot: RobotSpec, episodes: Iterable[tuple[EpisodeInfo, EpisodeArrays]]) -> list[Path]:
    """Write episodes into `folder`, streaming.

    Args:
        folder: is made, and put in place at the end; it must not exist yet, or be empty.
        robot: whose episodes they are, with its cameras as the arrays hold their frames.
        episodes: all episodes of a task in a row.

    Returns:
        The files, one per task.

    Raises:
        UserError: the folder exists, episodes of a task are not in a row, there are none, or the disk is full.
    """
    stored = _stored(robot)
    names: list[str] = []
    current: h5py.File | None = None
    task = ""
    with only_writer_of(folder, WRITE_FIX), writing(folder, WRITE_FIX), replacing_folder(folder) as part:
        try:
            for info, arrays in episodes:
                if current is None or info.task != task:
                    _finish(current)
                    task = info.task
                    # Names come from data: they must not lead out of the folder.
                    names.append(f"{task if _FILE_NAME.fullmatch(task) else task_name(task)}_demo.hdf5")
                    current = _start(part / names[-1], info, stored)
                _write_demo(current["data"], info, arrays, robot, stored)
            _finish(current)
        except BaseException:
            _discard(current)
            raise
        if not names:
            raise UserError("conversion: there are no episodes to write; check the source")
    return [folder / name for name in names]


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


def _start(path: Path, info: EpisodeInfo, robot: RobotSpec) -> h5py.File:
    if path.exists():
        raise UserError(f"{path.name}: episodes of task '{info.task}' are not in a row; sort them by task")
    file = create_hdf5(path)
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


def _finish(file: h5py.File | None) -> None:
    if file is not None:
        seal_attributes(file)
        file.close()


def _discard(file: h5py.File | None) -> None:
    if file is not None:
        # What a full disk did not take, closing tries to write once more.
        with contextlib.suppress(OSError, RuntimeError):
            file.close()


def _write_demo(
    data: h5py.Group, info: EpisodeInfo, arrays: EpisodeArrays, robot: RobotSpec, stored: RobotSpec
) -> None:
    number, num_steps = int(data.attrs["num_demos"]), len(arrays.actions)
    demo = data.create_group(f"demo_{number}")
    demo.attrs["num_samples"] = num_steps
    if json.loads(data.attrs["problem_info"])["language_instruction"] != info.instruction:
        demo.attrs[INSTRUCTION_ATTRIBUTE] = info.instruction
    write_array(demo, "actions", arrays.actions)
    if arrays.executed_actions is not None:
        write_array(demo, "executed_actions", arrays.executed_actions)
    solved = (np.arange(num_steps) == num_steps - 1) & (arrays.success is not False)
    write_array(demo, "dones", solved.astype(np.uint8))
    write_array(demo, "rewards", solved.astype(np.uint8))
    obs = demo.create_group("obs")
    for camera, frames in arrays.images.items():
        upright = to_upright(frames, robot.camera(camera).orientation)
        turned = np.ascontiguousarray(from_upright(upright, stored.camera(camera).orientation))
        write_array(obs, f"{camera}_rgb", turned)
    for key, values in _state_columns(arrays.robot_states, has_libero_fields(robot)).items():
        write_array(obs, key, values)
    if arrays.object_poses is not None:
        objects = write_array(obs, _OBJECTS_KEY, arrays.object_poses)
        objects.attrs["names"] = json.dumps(list(arrays.object_names))
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
