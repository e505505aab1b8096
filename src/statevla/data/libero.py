"""LIBERO's official HDF5 layout: one file per task, `data/demo_<i>` per episode.

Source: https://github.com/Lifelong-Robot-Learning/LIBERO (scripts/create_dataset.py). Two things the files do not
say are settled here. Frames are upside down (OpenGL's origin) unless the attribute `image_orientation` of `data`
declares otherwise. And LIBERO stores the observation that *followed* each action; where that is so (declared by the
attribute `observation_timing`, else measured against the recorded simulator states), observations are moved by one
step, so that every pair holds what was seen when the action was chosen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from statevla.data.episodes import DataFormat, EpisodeArrays, EpisodeInfo, EpisodeReader, check_cameras, check_episode
from statevla.errors import UserError
from statevla.language import normalize_instruction
from statevla.types import CONTROL_FREQ_HZ, ImageOrientation, RobotStateLayout

ORIENTATION_ATTRIBUTE = "image_orientation"
TIMING_ATTRIBUTE = "observation_timing"
INSTRUCTION_ATTRIBUTE = "language_instruction"
"""Of an episode, where it is not that of its file."""
IS_SEEN_KEY = "is_seen"
"""Of `obs`: bool per step, which steps have frames; absent where all have."""
BEFORE_ACTION, AFTER_ACTION = "before_action", "after_action"
_CAMERA_SUFFIX = "_rgb"
_SUFFIXES = (".hdf5", ".h5")
_LAYOUT_KEYS = {
    RobotStateLayout.JOINT_GRIPPER: ("joint_states", "gripper_states"),
    RobotStateLayout.EE_GRIPPER: ("ee_states", "gripper_states"),
}


@dataclass(frozen=True)
class _Demo:
    """Where an episode is, and how its observations and actions pair up."""

    file: Path
    key: str
    orientation: ImageOrientation
    after_action: bool


class LiberoReader(EpisodeReader):
    """Reader of a LIBERO HDF5 file or of a folder of them."""

    format = "libero"

    def __init__(self, path: Path, orientation: ImageOrientation | None = None) -> None:
        self.path = path
        self._files = list_files(path)
        self._open_file: tuple[Path, h5py.File] | None = None
        self.episodes = []
        self._demos: list[_Demo] = []
        self.notes = []
        cameras: tuple[str, ...] | None = None
        for file in self._files:
            found = self._scan(file, orientation)
            shared = found if cameras is None else tuple(camera for camera in cameras if camera in found)
            cameras = shared
        self.cameras = cameras or ()
        orientations = {demo.orientation.value for demo in self._demos}
        if len(orientations) > 1:
            raise UserError(
                f"data {path}: files declare different orientations ({', '.join(sorted(orientations))}); "
                "set data.orientation, or keep them in separate folders"
            )
        self.orientation = ImageOrientation(orientations.pop())

    def source_files(self) -> list[Path]:
        return list(self._files)

    def read(self, index: int, cameras: Sequence[str] | None = None) -> EpisodeArrays:
        info, place = self.episodes[index], self._demos[index]
        source = f"data {info.file}: {place.key}"
        demo = self._group(place, source)
        try:
            arrays = self._arrays(demo, place, cameras, source)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{source}: not readable ({one_line(error)}); the file is damaged, copy it again") from None
        check_episode(arrays, source)
        return arrays

    def num_frames(self, index: int) -> int:
        info, place = self.episodes[index], self._demos[index]
        is_seen = self._group(place, f"data {info.file}: {place.key}").get(f"obs/{IS_SEEN_KEY}")
        return info.num_steps if is_seen is None else int(np.count_nonzero(is_seen))

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

    def _scan(self, file: Path, orientation: ImageOrientation | None) -> tuple[str, ...]:
        """List the episodes of a file; returns the cameras that all of them have."""
        with open_hdf5(file) as handle:
            data = handle["data"]
            keys = sorted((key for key in data if key.startswith("demo")), key=_natural_order)
            if not keys:
                raise UserError(f"data {file}: no 'data/demo_<i>' group; expected LIBERO's HDF5 layout")
            stored = orientation or _declared_orientation(data, file)
            if orientation is None and ORIENTATION_ATTRIBUTE not in data.attrs:
                self.notes.append(f"{file.name} declares no orientation; frames are taken as {stored.value}")
            instruction, fps = normalize_instruction(_instruction(data, file)), _fps(data)
            task = file.stem.removesuffix("_demo")
            cameras: tuple[str, ...] | None = None
            shifted = 0
            for key in keys:
                demo = data[key]
                actions = _dataset(demo, "actions", f"data {file}: {key}")
                after = _is_after_action(data, demo, file)
                num_steps = len(actions) - int(after)
                if num_steps < 1:
                    raise UserError(f"data {file}: {key} has {len(actions)} actions, expected at least 2; drop it")
                name = file.name if file == self.path else file.relative_to(self.path).as_posix()
                words = demo.attrs.get(INSTRUCTION_ATTRIBUTE)
                said = instruction if words is None else normalize_instruction(str(words))
                its_task = task if said == instruction else said.replace(" ", "_")
                self.episodes.append(EpisodeInfo(f"{name}/{key}", its_task, said, num_steps, fps, file))
                self._demos.append(_Demo(file, key, stored, after))
                shifted += int(after)
                present = _cameras_of(demo)
                cameras = present if cameras is None else tuple(c for c in cameras if c in present)
            if shifted:
                self.notes.append(
                    f"{file.name}: observations follow their actions in {shifted} episodes; moved by one step"
                )
        return cameras or ()

    def _arrays(self, demo: h5py.Group, place: _Demo, cameras: Sequence[str] | None, source: str) -> EpisodeArrays:
        obs = demo.get("obs")
        if not isinstance(obs, h5py.Group):
            raise UserError(f"{source} has no 'obs' group; expected LIBERO's HDF5 layout")
        actions = np.asarray(_dataset(demo, "actions", source)[()], np.float32)
        # Observation k followed action k: it is what was seen when action k + 1 was chosen.
        seen, acted = (slice(None, -1), slice(1, None)) if place.after_action else (slice(None), slice(None))
        num_observations = None if not place.after_action else len(actions)

        def observed(key: str) -> np.ndarray:
            values = _dataset(obs, key, f"{source}/obs")
            if num_observations is not None and len(values) != num_observations:
                raise UserError(
                    f"{source}: {len(values)} steps of 'obs/{key}' but {num_observations} actions; "
                    "record one observation per action or drop the episode"
                )
            return values[seen]

        wanted = _cameras_of(demo) if cameras is None else tuple(cameras)
        check_cameras(wanted, _cameras_of(demo), source)
        robot_states = {}
        for layout, keys in _LAYOUT_KEYS.items():
            parts = [_ee_states(obs, observed) if key == "ee_states" else _optional(obs, key, observed) for key in keys]
            if all(part is not None for part in parts):
                robot_states[layout] = _joined(parts, layout, source)
        if not robot_states:
            raise UserError(
                f"{source}/obs has neither joint_states nor ee_states with gripper_states; it has {list(obs)}"
            )
        executed = demo.get("executed_actions")
        objects = _optional(obs, "object_states", observed)
        is_seen = _optional(obs, IS_SEEN_KEY, observed)
        return EpisodeArrays(
            images={camera: observed(_camera_key(obs, camera)) for camera in wanted},
            orientation=place.orientation,
            robot_states=robot_states,
            actions=actions[acted],
            executed_actions=None if executed is None else np.asarray(executed[acted], np.float32),
            object_poses=None if objects is None else objects.reshape(len(objects), -1).astype(np.float32),
            object_names=() if objects is None else _names(obs["object_states"]),
            is_seen=None if is_seen is None else is_seen.astype(bool),
            success=bool(demo["dones"][-1]) if "dones" in demo and len(demo["dones"]) else None,
        )


def list_files(path: Path) -> list[Path]:
    """The HDF5 files at `path`: itself, or what its folders hold, hidden ones left out; UserError if none."""
    files = [path] if path.is_file() else sorted(f for s in _SUFFIXES for f in path.rglob(f"*{s}") if f.is_file())
    # Folders with a dot hold work in progress.
    files = [f for f in files if not any(part.startswith(".") for part in f.relative_to(path).parts)]
    if not files:
        raise UserError(f"data {path}: no *.hdf5 file in this folder; point data.path to LIBERO's HDF5 files")
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
        what = "truncated HDF5 file" if "truncated" in reason else "not a readable HDF5 file"
        raise UserError(f"data {file}: {what} ({reason}); copy or download it again") from None
    if not isinstance(handle.get("data"), h5py.Group):
        handle.close()
        raise UserError(f"data {file}: no group 'data'; expected LIBERO's HDF5 layout (data/demo_0/actions, ...)")
    return handle


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


def _natural_order(key: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*?)(\d+)", key)
    return (match[1], int(match[2])) if match else (key, -1)


def _dataset(group: h5py.Group, key: str, source: str) -> h5py.Dataset:
    found = group.get(key)
    if not isinstance(found, h5py.Dataset):
        raise UserError(f"{source} has no dataset '{key}'; it has {', '.join(group) or 'nothing'}")
    return found


def _optional(obs: h5py.Group, key: str, observed: Any) -> np.ndarray | None:
    return observed(key) if key in obs else None


def _ee_states(obs: h5py.Group, observed: Any) -> np.ndarray | None:
    if "ee_states" in obs:
        return observed("ee_states")
    if "ee_pos" in obs and "ee_ori" in obs:
        return np.concatenate([observed("ee_pos"), observed("ee_ori")], axis=1)
    return None


def _joined(parts: Sequence[Any], layout: RobotStateLayout, source: str) -> np.ndarray:
    lengths = {len(part) for part in parts}
    if len(lengths) > 1 or any(part.ndim != 2 for part in parts):
        shapes = ", ".join(str(list(part.shape)) for part in parts)
        raise UserError(f"{source}: parts of robot state '{layout.value}' have shapes {shapes}; expected equal lengths")
    joined = np.concatenate(parts, axis=1).astype(np.float32)
    if joined.shape[1] != layout.dim:
        raise UserError(f"{source}: robot state '{layout.value}' has {joined.shape[1]} numbers, expected {layout.dim}")
    return joined


def _cameras_of(demo: h5py.Group) -> tuple[str, ...]:
    obs = demo.get("obs")
    if not isinstance(obs, h5py.Group):
        return ()
    return tuple(sorted(key.removesuffix(_CAMERA_SUFFIX) for key in obs if key.endswith(_CAMERA_SUFFIX)))


def _camera_key(obs: h5py.Group, camera: str) -> str:
    return camera + _CAMERA_SUFFIX


def _names(dataset: h5py.Dataset) -> tuple[str, ...]:
    names = dataset.attrs.get("names")
    return () if names is None else tuple(json.loads(names))


def _json_attribute(data: h5py.Group, key: str, file: Path) -> Any:
    text = data.attrs.get(key)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        raise UserError(f"data {file}: attribute '{key}' of 'data' is not JSON; write it as LIBERO does") from None


def _instruction(data: h5py.Group, file: Path) -> str:
    info = _json_attribute(data, "problem_info", file)
    text = info.get("language_instruction") if isinstance(info, dict) else None
    if isinstance(text, list):
        text = "".join(text)
    if isinstance(text, str) and text.strip():
        return text
    # File names repeat the instruction; in libero_10 and libero_90 a scene (KITCHEN_SCENE3) stands before it.
    return re.sub(r"^[A-Z_]+\d+_", "", file.stem.removesuffix("_demo")).replace("_", " ")


def _fps(data: h5py.Group) -> float:
    try:
        return float(json.loads(data.attrs["env_args"])["env_kwargs"]["control_freq"])
    except (KeyError, TypeError, ValueError):
        return CONTROL_FREQ_HZ


def _declared_orientation(data: h5py.Group, file: Path) -> ImageOrientation:
    declared = data.attrs.get(ORIENTATION_ATTRIBUTE)
    if declared is None:
        return ImageOrientation.FLIPPED_VERTICALLY
    try:
        return ImageOrientation(declared)
    except ValueError:
        allowed = ", ".join(o.value for o in ImageOrientation)
        raise UserError(f"data {file}: {ORIENTATION_ATTRIBUTE} '{declared}', expected one of {allowed}") from None


def _is_after_action(data: h5py.Group, demo: h5py.Group, file: Path) -> bool:
    """Whether observation k was made after action k: declared, else measured on joint positions against `states`."""
    declared = data.attrs.get(TIMING_ATTRIBUTE)
    if declared is not None:
        if declared not in (BEFORE_ACTION, AFTER_ACTION):
            raise UserError(f"data {file}: {TIMING_ATTRIBUTE} '{declared}', expected {BEFORE_ACTION} or {AFTER_ACTION}")
        return declared == AFTER_ACTION
    states, joints = demo.get("states"), demo.get("obs/joint_states")
    if not isinstance(states, h5py.Dataset) or not isinstance(joints, h5py.Dataset):
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
