"""HDF5 demonstrations: LIBERO's official layout and robomimic's, one episode per group `data/demo_<i>`.

Sources: https://github.com/Lifelong-Robot-Learning/LIBERO (scripts/create_dataset.py) and https://robomimic.github.io
(docs/datasets/overview). Which robot it is: what the user or the attribute `robot` of `data` declares, else LIBERO's.
Two things LIBERO's files do not say are settled here. Frames are upside down (OpenGL's origin) unless the attribute
`image_orientation` of `data` declares otherwise. And LIBERO stores the observation that *followed* each action; where
that is so (declared by the attribute `observation_timing`, else measured against the recorded simulator states),
observations are moved by one step, so that every pair holds what was seen when the action was chosen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from statevla.data.episodes import DataFormat, EpisodeArrays, EpisodeInfo, EpisodeReader, check_cameras, task_name
from statevla.data.hdf5_checks import check_attributes
from statevla.data.hdf5_keys import camera_key, field_key, field_values, find_dataset, find_numbers, is_numeric
from statevla.data.hdf5_robot import ORIENTATION_ATTRIBUTE as ORIENTATION_ATTRIBUTE
from statevla.data.hdf5_robot import ROBOT_ATTRIBUTE as ROBOT_ATTRIBUTE
from statevla.data.hdf5_robot import joined_robot, json_attribute, robot_of_file
from statevla.errors import UserError
from statevla.robots import ImageOrientation, RobotSpec
from statevla.transforms import normalize_instruction

TIMING_ATTRIBUTE = "observation_timing"
INSTRUCTION_ATTRIBUTE = "language_instruction"
"""Of an episode, where it is not that of its file."""
IS_SEEN_KEY = "is_seen"
"""Of `obs`: bool per step, which steps have frames; absent where all have."""
BEFORE_ACTION, AFTER_ACTION = "before_action", "after_action"
_EPISODE_META = "ep_meta"
"""Of an episode in robosuite's newer files: JSON whose `lang` is its instruction."""
_EXECUTED_KEY, _OBJECTS_KEY = "executed_actions", "object_states"
_SUFFIXES = (".hdf5", ".h5")


@dataclass(frozen=True)
class _Demo:
    """Where an episode is, and how its observations and actions pair up."""

    file: Path
    key: str
    after_action: bool


class LiberoReader(EpisodeReader):
    """Reader of an HDF5 file or of a folder of them."""

    format = "libero"

    def __init__(self, path: Path, robot: RobotSpec | None = None, orientation: ImageOrientation | None = None) -> None:
        self.path = path
        self._files = list_files(path)
        self._open_file: tuple[Path, h5py.File] | None = None
        self.episodes = []
        self._demos: list[_Demo] = []
        self.notes = []
        robots = [self._scan(file, robot, orientation) for file in self._files]
        self.robot = joined_robot(robots, self._files, path)
        self.notes += self.robot.assumed

    def source_files(self) -> list[Path]:
        return list(self._files)

    def source(self, index: int) -> str:
        return f"data {self.episodes[index].file}: {self._demos[index].key}"

    def load(self, index: int, cameras: Sequence[str] | None = None) -> EpisodeArrays:
        place, source = self._demos[index], self.source(index)
        with readable(source):
            return self._arrays(self._group(place, source), place, cameras, source)

    def num_frames(self, index: int) -> int:
        source = self.source(index)
        with readable(source):
            obs = self._group(self._demos[index], source).get("obs")
            if not isinstance(obs, h5py.Group) or IS_SEEN_KEY not in obs:
                return self.episodes[index].num_steps
            return int(np.count_nonzero(find_numbers(obs, IS_SEEN_KEY, f"{source}/obs", 1)))

    def close(self) -> None:
        if self._open_file is not None:
            self._open_file[1].close()
            self._open_file = None

    def __getstate__(self) -> dict[str, Any]:
        # An open HDF5 handle cannot cross processes; the other side opens its own.
        return self.__dict__ | {"_open_file": None}

    def _group(self, place: _Demo, source: str) -> h5py.Group:
        if self._open_file is None or self._open_file[0] != place.file:
            self.close()
            self._open_file = (place.file, open_hdf5(place.file))
        group = self._open_file[1]["data"].get(place.key)
        if not isinstance(group, h5py.Group):
            raise UserError(f"{source}: missing; the file changed while it was read")
        return group

    def _scan(self, file: Path, explicit: RobotSpec | None, orientation: ImageOrientation | None) -> RobotSpec:
        """List the episodes of a file; returns its robot."""
        with open_hdf5(file) as handle, readable(f"data {file}"):
            data = handle["data"]
            keys = sorted((key for key in data if key.startswith("demo")), key=_natural_order)
            if not keys:
                raise UserError(f"data {file}: no 'data/demo_<i>' group; expected LIBERO's or robomimic's HDF5 layout")
            robot = robot_of_file(data, file, explicit, orientation, self.notes)
            instruction, task = normalize_instruction(_instruction(data, file)), file.stem.removesuffix("_demo")
            name = file.name if file == self.path else file.relative_to(self.path).as_posix()
            shifted = 0
            for key in keys:
                demo = data[key]
                if not isinstance(demo, h5py.Group):
                    raise UserError(f"data {file}: '{key}' is no group with 'actions' and 'obs'; repair the file")
                actions = find_numbers(demo, "actions", f"data {file}: {key}", 2)
                after = _is_after_action(data, demo, file)
                num_steps = len(actions) - int(after)
                if num_steps < 1:
                    raise UserError(f"data {file}: {key} has {len(actions)} actions, expected at least 2; drop it")
                said = _own_instruction(demo) or instruction
                its_task = task if said == instruction else task_name(said)
                info = EpisodeInfo(f"{name}/{key}", its_task, said, num_steps, robot.control_freq_hz, file)
                self.episodes.append(info)
                self._demos.append(_Demo(file, key, after))
                shifted += int(after)
            if shifted:
                self.notes.append(
                    f"{file.name}: observations follow their actions in {shifted} episodes; moved by one step"
                )
        return robot

    def _arrays(self, demo: h5py.Group, place: _Demo, cameras: Sequence[str] | None, source: str) -> EpisodeArrays:
        obs = demo.get("obs")
        if not isinstance(obs, h5py.Group):
            raise UserError(f"{source} has no 'obs' group; expected LIBERO's or robomimic's HDF5 layout")
        actions = np.asarray(find_numbers(demo, "actions", source, 2)[()], np.float32)
        # Observation k followed action k: it is what was seen when action k + 1 was chosen.
        seen, acted = (slice(None, -1), slice(1, None)) if place.after_action else (slice(None), slice(None))
        num_observations = None if not place.after_action else len(actions)

        def observed(key: str, *num_dims: int) -> np.ndarray:
            place = f"{source}/obs"
            values = find_numbers(obs, key, place, *num_dims) if num_dims else find_dataset(obs, key, place)
            if num_observations is not None and len(values) != num_observations:
                raise UserError(
                    f"{source}: {len(values)} steps of 'obs/{key}' but {num_observations} actions; "
                    "record one observation per action or drop the episode"
                )
            return values[seen]

        wanted = self.cameras if cameras is None else tuple(cameras)
        check_cameras(wanted, self.cameras, source)
        executed = find_numbers(demo, _EXECUTED_KEY, source, 2) if _EXECUTED_KEY in demo else None
        objects = observed(_OBJECTS_KEY, 2, 3) if _OBJECTS_KEY in obs else None
        is_seen = observed(IS_SEEN_KEY, 1) if IS_SEEN_KEY in obs else None
        # The robot's other cameras and fields were found in every episode; what a policy sees must be here.
        fields = [field for field in self.robot.state if field.policy or field_key(field, obs)]
        return EpisodeArrays(
            images={camera: observed(self._camera_key(camera, obs, source)) for camera in wanted},
            robot_states={field.name: field_values(field, self.robot, obs, observed, source) for field in fields},
            actions=actions[acted],
            executed_actions=None if executed is None else np.asarray(executed[acted], np.float32),
            object_poses=None if objects is None else objects.reshape(len(objects), -1).astype(np.float32),
            object_names=() if objects is None else _names(obs[_OBJECTS_KEY], source),
            is_seen=None if is_seen is None else is_seen.astype(bool),
            success=_success(demo),
        )

    def _camera_key(self, name: str, obs: h5py.Group, source: str) -> str:
        key = camera_key(self.robot.camera(name), obs)
        if key is None:
            raise UserError(f"{source}: no frames of camera '{name}'; the file changed while it was read")
        return key


def list_files(path: Path) -> list[Path]:
    """The HDF5 files at `path`: itself, or what its folders hold, hidden ones left out; UserError if none."""
    files = [path] if path.is_file() else sorted(f for s in _SUFFIXES for f in path.rglob(f"*{s}") if f.is_file())
    # Folders with a dot hold work in progress.
    files = [f for f in files if not any(part.startswith(".") for part in f.relative_to(path).parts)]
    if not files:
        raise UserError(f"data {path}: no *.hdf5 file in this folder; point data.path to HDF5 files")
    return files


def open_hdf5(file: Path) -> h5py.File:
    """Open for reading and check that it has a `data` group.

    Raises:
        UserError: not HDF5, truncated, or without `data`.
    """
    try:
        handle = h5py.File(file, "r")
    except OSError as error:
        reason = one_line(error)
        if "unable to lock" in reason or "already open" in reason:
            raise UserError(
                f"data {file}: another program has it open for writing ({reason}); close it there and try again"
            ) from None
        what = "truncated HDF5 file" if "truncated" in reason else "not a readable HDF5 file"
        raise UserError(f"data {file}: {what} ({reason}); copy or download it again") from None
    try:
        with readable(f"data {file}"):
            if not isinstance(handle.get("data"), h5py.Group):
                raise UserError(f"data {file}: no group 'data'; expected data/demo_0/actions, ... as LIBERO has it")
            check_attributes(handle, file)
    except UserError:
        handle.close()
        raise
    return handle


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Turn what HDF5 raises of a damaged file into a UserError that begins with `source`."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError, KeyError, UnicodeError) as error:
        raise UserError(f"{source}: not readable ({one_line(error)}); the file is damaged, copy it again") from None


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


def _natural_order(key: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*?)(\d+)", key)
    return (match[1], int(match[2])) if match else (key, -1)


def _success(demo: h5py.Group) -> bool | None:
    """Whether the last step was a success; None where the episode does not say."""
    dones = demo.get("dones")
    if not isinstance(dones, h5py.Dataset) or dones.ndim != 1 or not len(dones) or not is_numeric(dones):
        return None
    return bool(dones[-1])


def _names(dataset: h5py.Dataset, source: str) -> tuple[str, ...]:
    try:
        return tuple(map(str, json.loads(dataset.attrs.get("names", "[]"))))
    except (TypeError, ValueError, RecursionError):
        raise UserError(f"{source}: attribute 'names' of 'obs/{_OBJECTS_KEY}' is no list as JSON; repair it") from None


def _own_instruction(demo: h5py.Group) -> str | None:
    """What an episode itself says, normalised, or None."""
    words = demo.attrs.get(INSTRUCTION_ATTRIBUTE)
    if words is None and _EPISODE_META in demo.attrs:
        try:
            meta = json.loads(demo.attrs[_EPISODE_META])
        except (TypeError, ValueError, RecursionError):
            meta = None
        words = meta.get("lang") if isinstance(meta, dict) else None
    return normalize_instruction(str(words)) if words is not None and str(words).strip() else None


def _instruction(data: h5py.Group, file: Path) -> str:
    info = json_attribute(data, "problem_info", file)
    text = info.get("language_instruction") if isinstance(info, dict) else None
    if isinstance(text, list):
        text = "".join(text)
    if isinstance(text, str) and text.strip():
        return text
    # File names repeat the instruction; in libero_10 and libero_90 a scene (KITCHEN_SCENE3) stands before it.
    return re.sub(r"^[A-Z_]+\d+_", "", file.stem.removesuffix("_demo")).replace("_", " ")


def _is_after_action(data: h5py.Group, demo: h5py.Group, file: Path) -> bool:
    """Whether observation k was made after action k: declared, else measured on joint positions against `states`."""
    declared = data.attrs.get(TIMING_ATTRIBUTE)
    if declared is not None:
        if str(declared) not in (BEFORE_ACTION, AFTER_ACTION):
            raise UserError(f"data {file}: {TIMING_ATTRIBUTE} '{declared}', expected {BEFORE_ACTION} or {AFTER_ACTION}")
        return str(declared) == AFTER_ACTION
    states, joints = demo.get("states"), demo.get("obs/joint_states")
    if not all(isinstance(each, h5py.Dataset) and is_numeric(each) for each in (states, joints)):
        return False
    if states.ndim != 2 or states.shape[1] < 8 or joints.shape != (len(states), 7) or len(states) < 3:
        return False
    # A flattened MuJoCo state starts with the time, then the arm's seven joint positions.
    recorded, seen = states[:, 1:8], joints[()]
    same_step = np.abs(seen - recorded).mean()
    next_step = np.abs(seen[:-1] - recorded[1:]).mean()
    return bool(next_step < 0.5 * same_step)


FORMAT = DataFormat(
    name="libero",
    recognises=lambda path: (
        path.suffix in _SUFFIXES if path.is_file() else any(True for s in _SUFFIXES for _ in path.rglob(f"*{s}"))
    ),
    open=LiberoReader,
)
