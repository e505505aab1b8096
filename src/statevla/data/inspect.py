"""Looks through a data set for everything that makes trainings fail quietly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from statevla.config import expand_path
from statevla.data.episodes import EpisodeArrays, EpisodeInfo, EpisodeReader, open_reader
from statevla.data.libero import list_files
from statevla.errors import UserError
from statevla.transforms import FieldStatistics, to_upright
from statevla.types import ACTION_DIM, ImageOrientation, RobotStateLayout

_NO_OP = 1e-3
"""An action below this in all continuous dims, with the gripper as before, does nothing."""
_MANY_NO_OPS = 0.5
_SIGN_LAG = 4
"""Steps after which a gripper command shows in the fingers' distance."""
_SIGN_M = 1e-3
"""Mean motion of the fingers against the command, in metres, that makes its sign suspicious."""


@dataclass(frozen=True)
class Anomaly:
    """Something that is likely wrong: where, and what in one line."""

    where: str
    message: str


@dataclass
class TaskSummary:
    """Episodes of one task."""

    task: str
    instruction: str
    lengths: list[int] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    """Camera → first, middle and last frame of the first episode, uint8 `[3, H, W, 3]`, upright."""


@dataclass
class Inspection:
    """What was found in a data set."""

    path: str
    format: str = ""
    orientations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fps: list[float] = field(default_factory=list)
    tasks: list[TaskSummary] = field(default_factory=list)
    image_sizes: dict[str, list[str]] = field(default_factory=dict)
    robot_state_layouts: list[str] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    actions: np.ndarray = field(default_factory=lambda: np.zeros((0, ACTION_DIM), np.float32))
    robot_states: dict[str, np.ndarray] = field(default_factory=dict)
    no_op_share: float = 0.0
    num_read: int = 0
    """Episodes that were read and are sound enough for the statistics."""
    anomalies: list[Anomaly] = field(default_factory=list)

    @property
    def num_episodes(self) -> int:
        return sum(len(task.lengths) for task in self.tasks)

    @property
    def num_steps(self) -> int:
        return sum(sum(task.lengths) for task in self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: everything but the arrays themselves, statistics instead."""
        tasks = [
            {"task": t.task, "instruction": t.instruction, "num_episodes": len(t.lengths), "lengths": t.lengths}
            for t in self.tasks
        ]
        states = {name: FieldStatistics.of(v).to_dict() for name, v in self.robot_states.items() if len(v)}
        return {
            "path": self.path,
            "format": self.format,
            "orientations": self.orientations,
            "notes": self.notes,
            "fps": self.fps,
            "num_episodes": self.num_episodes,
            "num_episodes_read": self.num_read,
            "num_steps": self.num_steps,
            "tasks": tasks,
            "image_sizes": self.image_sizes,
            "robot_state_layouts": self.robot_state_layouts,
            "objects": self.objects,
            "actions": FieldStatistics.of(self.actions).to_dict() if len(self.actions) else None,
            "robot_states": states,
            "no_op_share": self.no_op_share,
            "anomalies": [asdict(anomaly) for anomaly in self.anomalies],
        }


def inspect_dataset(
    path: str | Path,
    data_format: str = "auto",
    orientation: ImageOrientation | str = "auto",
    max_episodes: int | None = None,
    progress: bool = False,
) -> Inspection:
    """Read every episode and note what is there and what is odd. Damaged files are anomalies, not errors.

    Args:
        path: as for `open_reader`.
        max_episodes: read only so many, evenly spread; all are listed.
        progress: draw a progress bar.

    Raises:
        UserError: there is no data set at `path` at all.
    """
    result = Inspection(str(expand_path(path)))
    gathered = _Gathered()
    for reader in _readers(path, data_format, orientation, result):
        with reader:
            _inspect_reader(reader, result, gathered, max_episodes, progress)
    gathered.summarise(result)
    return result


def _readers(
    path: str | Path, data_format: str, orientation: ImageOrientation | str, result: Inspection
) -> Iterator[EpisodeReader]:
    """One reader for the whole, or one per file where a file is too damaged to be listed with the others."""
    try:
        yield open_reader(path, data_format, orientation)
        return
    except UserError as error:
        resolved = expand_path(path)
        if not resolved.is_dir() or data_format == "lerobot" or (resolved / "meta").exists():
            raise
        files = list_files(resolved)
        if len(files) < 2 and not resolved.is_file():
            result.anomalies.append(Anomaly(files[0].name, str(error)))
            return
    for file in files:
        try:
            reader = open_reader(file, "libero", orientation)
        except UserError as error:
            result.anomalies.append(Anomaly(file.name, str(error)))
        else:
            yield reader


class _Gathered:
    """Arrays of all episodes, and what is judged over all of them."""

    def __init__(self) -> None:
        self.actions: list[np.ndarray] = []
        self.states: dict[RobotStateLayout, list[np.ndarray]] = {}
        self.no_ops = 0
        # Change of the fingers' distance (m) where the command switches to close and to open.
        self.after_close: list[np.ndarray] = []
        self.after_open: list[np.ndarray] = []

    def add(self, arrays: EpisodeArrays, no_ops: int) -> None:
        self.actions.append(arrays.actions)
        for layout, states in arrays.robot_states.items():
            self.states.setdefault(layout, []).append(states)
        self.no_ops += no_ops
        states = next(iter(arrays.robot_states.values()))
        width = np.abs(states[:, -2:]).sum(axis=1)
        closes = arrays.actions[:, -1] > 0
        switches = 1 + np.flatnonzero(closes[1:] != closes[:-1])
        change = width[np.minimum(switches + _SIGN_LAG, len(width) - 1)] - width[switches - 1]
        self.after_close.append(change[closes[switches]])
        self.after_open.append(change[~closes[switches]])

    def summarise(self, result: Inspection) -> None:
        if not self.actions:
            return
        widths = {actions.shape[1] for actions in self.actions}
        if len(widths) > 1:
            result.anomalies.append(Anomaly("data set", f"actions have {sorted(widths)} numbers in different episodes"))
            return
        result.actions = np.concatenate(self.actions)
        result.robot_states = {layout.value: np.concatenate(parts) for layout, parts in self.states.items()}
        result.robot_state_layouts = sorted(result.robot_states)
        result.no_op_share = self.no_ops / len(result.actions)
        constant = np.flatnonzero(result.actions.std(axis=0) < 1e-6)
        if len(constant):
            result.anomalies.append(Anomaly("data set", f"action dims {constant.tolist()} never change"))
        if result.no_op_share > _MANY_NO_OPS:
            result.anomalies.append(Anomaly("data set", f"{result.no_op_share:.0%} of the actions do nothing"))
        # The fingers' distance should shrink where the command switches to close, and grow where it switches to open.
        wrong = np.concatenate([*self.after_close, *(-change for change in self.after_open)])
        if len(wrong) and wrong.mean() > _SIGN_M:
            message = (
                f"the fingers move {wrong.mean() * 1e3:.1f} mm the wrong way where the gripper command switches: "
                "its sign seems inverted (expected -1 open, +1 close)"
            )
            result.anomalies.append(Anomaly("data set", message))


def _inspect_reader(
    reader: EpisodeReader, result: Inspection, gathered: _Gathered, max_episodes: int | None, progress: bool
) -> None:
    result.format = reader.format
    result.orientations = sorted({*result.orientations, reader.orientation.value})
    result.notes += reader.notes
    tasks = {task.task: task for task in result.tasks}
    for info in reader.episodes:
        if info.task not in tasks:
            tasks[info.task] = TaskSummary(info.task, info.instruction)
            result.tasks.append(tasks[info.task])
        elif tasks[info.task].instruction != info.instruction:
            message = f"instruction '{info.instruction}' differs from '{tasks[info.task].instruction}' of the same task"
            result.anomalies.append(Anomaly(info.episode_id, message))
        tasks[info.task].lengths.append(info.num_steps)
        result.fps = sorted({*result.fps, info.fps})
    count = len(reader.episodes)
    chosen: Sequence[int] = range(count)
    if max_episodes is not None and max_episodes < count:
        chosen = np.unique(np.linspace(0, count - 1, max_episodes).astype(int)).tolist()
    for index in track(chosen, f"reading {reader.path.name}", disable=not progress, transient=True):
        info = reader.episodes[index]
        try:
            arrays = reader.read(index)
        except UserError as error:
            result.anomalies.append(Anomaly(info.episode_id, str(error)))
            continue
        result.num_read += 1
        _inspect_episode(info, arrays, result, gathered, tasks[info.task])


def _inspect_episode(
    info: EpisodeInfo, arrays: EpisodeArrays, result: Inspection, gathered: _Gathered, task: TaskSummary
) -> None:
    actions = arrays.actions
    problems = [*_action_problems(actions), *_picture_problems(arrays)]
    result.anomalies += [Anomaly(info.episode_id, problem) for problem in problems]
    same_gripper = np.concatenate([[True], actions[1:, -1] == actions[:-1, -1]])
    no_ops = int(((np.abs(actions[:, :-1]) < _NO_OP).all(axis=1) & same_gripper).sum())
    gathered.add(arrays, no_ops)
    for camera, stored in arrays.images.items():
        frames = stored[arrays.seen]
        size = f"{frames.shape[2]}x{frames.shape[1]}"
        result.image_sizes[camera] = sorted({*result.image_sizes.get(camera, []), size})
        if camera not in task.pictures:
            moments = frames[[0, len(frames) // 2, -1]]
            task.pictures[camera] = to_upright(moments, arrays.orientation).copy()
    result.objects = sorted({*result.objects, *arrays.object_names})


def _action_problems(actions: np.ndarray) -> Iterator[str]:
    if actions.shape[1] != ACTION_DIM:
        yield f"actions have {actions.shape[1]} numbers, expected {ACTION_DIM} (6 OSC_POSE deltas and the gripper)"
    beyond = np.abs(actions[:, :-1]).max(axis=1) > 1 + 1e-4
    if beyond.any():
        largest = np.abs(actions[:, :-1]).max()
        yield f"{int(beyond.sum())} of {len(actions)} actions leave [-1, 1] (largest {largest:.3g})"
    if not actions[:, :-1].any():
        yield "all continuous actions are zero"
    values = np.unique(actions[:, -1])
    if not np.isin(values, (-1, 1)).all():
        some = ", ".join(f"{value:g}" for value in values[:4])
        yield f"gripper commands are {some}{', ...' if len(values) > 4 else ''}; expected -1 (open) and +1 (close)"


def _picture_problems(arrays: EpisodeArrays) -> Iterator[str]:
    for camera, stored in arrays.images.items():
        frames = stored[arrays.seen]
        if frames.shape[1] != frames.shape[2]:
            size = f"{frames.shape[2]}x{frames.shape[1]}"
            yield f"camera '{camera}' is {size}, not square: the model would see it stretched"
        flat = frames.reshape(len(frames), -1)
        blank = flat.max(axis=1) == flat.min(axis=1)
        if blank.any():
            yield f"camera '{camera}': {int(blank.sum())} of {len(frames)} frames are blank"
        elif len(frames) > 2 and (flat == flat[0]).all():
            yield f"camera '{camera}': all {len(frames)} frames are the same picture"
