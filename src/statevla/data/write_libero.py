"""Writes episodes in LIBERO's official HDF5 layout, one file per task.

Frames go upside down, as LIBERO stores them. What the official files leave open is declared in attributes of `data`:
the orientation, and that an observation is what was seen when its action was chosen. Simulator states cannot be
recovered from other formats and are left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from statevla.data.episodes import EpisodeArrays, EpisodeInfo
from statevla.data.libero import BEFORE_ACTION, ORIENTATION_ATTRIBUTE, TIMING_ATTRIBUTE
from statevla.errors import UserError
from statevla.transforms import from_upright, to_upright
from statevla.types import ImageOrientation, RobotStateLayout

_STORED = ImageOrientation.FLIPPED_VERTICALLY


def write_libero(folder: Path, episodes: Iterable[tuple[EpisodeInfo, EpisodeArrays]]) -> list[Path]:
    """Write episodes into `folder`, streaming.

    Args:
        folder: is made; files of the tasks must not exist yet.
        episodes: all episodes of a task in a row.

    Returns:
        The files, one per task.

    Raises:
        UserError: a file exists, episodes of a task are not in a row, or the disk is full.
    """
    written: list[Path] = []
    current: h5py.File | None = None
    task = ""
    try:
        for info, arrays in episodes:
            if current is None or info.task != task:
                _finish(current, written)
                task = info.task
                current = _start(folder / f"{task}_demo.hdf5", info, written)
            _write_demo(current["data"], arrays)
        _finish(current, written)
    except BaseException as error:
        _discard(current, written)
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"{folder}: cannot write ({error.strerror or error}); make room or choose another folder"
        ) from None
    return written


def _start(path: Path, info: EpisodeInfo, written: list[Path]) -> h5py.File:
    if path in written:
        raise UserError(f"{path}: episodes of task '{info.task}' are not in a row; sort them by task")
    if path.exists():
        raise UserError(f"{path}: exists already; choose another folder or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    written.append(path)
    file = h5py.File(_part(path), "w")
    data = file.create_group("data")
    data.attrs["problem_info"] = json.dumps({"language_instruction": info.instruction})
    data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": info.fps}})
    data.attrs["bddl_file_name"] = f"{info.task}.bddl"
    data.attrs[ORIENTATION_ATTRIBUTE] = _STORED.value
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
        file.close()
    for path in written:
        path.unlink(missing_ok=True)
        _part(path).unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_suffix(".part")


def _write_demo(data: h5py.Group, arrays: EpisodeArrays) -> None:
    number, num_steps = int(data.attrs["num_demos"]), len(arrays.actions)
    demo = data.create_group(f"demo_{number}")
    demo.attrs["num_samples"] = num_steps
    demo["actions"] = arrays.actions
    if arrays.executed_actions is not None:
        demo["executed_actions"] = arrays.executed_actions
    demo["dones"] = (np.arange(num_steps) == num_steps - 1).astype(np.uint8)
    if arrays.success is not False:
        demo["rewards"] = demo["dones"][()]
    obs = demo.create_group("obs")
    for camera, frames in arrays.images.items():
        stored = from_upright(to_upright(frames, arrays.orientation), _STORED)
        # One frame per chunk would slow readers of whole episodes, which all of ours are.
        obs.create_dataset(f"{camera}_rgb", data=np.ascontiguousarray(stored))
    joints = arrays.robot_states.get(RobotStateLayout.JOINT_GRIPPER)
    end_effector = arrays.robot_states.get(RobotStateLayout.EE_GRIPPER)
    if joints is not None:
        obs["joint_states"] = joints[:, :7]
    if end_effector is not None:
        obs["ee_states"] = end_effector[:, :6]
        obs["ee_pos"], obs["ee_ori"] = end_effector[:, :3], end_effector[:, 3:6]
    known = joints if joints is not None else end_effector
    if known is not None:
        obs["gripper_states"] = known[:, -2:]
    if arrays.object_poses is not None:
        obs["object_states"] = arrays.object_poses
        obs["object_states"].attrs["names"] = json.dumps(list(arrays.object_names))
    data.attrs["num_demos"] = number + 1
    data.attrs["total"] = int(data.attrs["total"]) + num_steps
