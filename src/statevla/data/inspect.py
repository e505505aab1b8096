"""Looks through a data set for everything that makes trainings fail quietly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from statevla.config import expand_path
from statevla.data.episodes import EpisodeArrays, EpisodeInfo, EpisodeReader, check_actions, check_arrays
from statevla.data.formats import open_reader
from statevla.data.hdf5_robot import UndeclaredRobotError
from statevla.data.inspect_checks import (
    GripperSigns,
    action_problems,
    binary_hints,
    constant_dims,
    count_no_ops,
    picture_problems,
)
from statevla.data.libero import list_files
from statevla.errors import UserError
from statevla.robots import ImageOrientation, RobotSpec
from statevla.transforms import FieldStatistics, to_upright

_MANY_NO_OPS = 0.5


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
    robot: RobotSpec | None = None
    """The declaration in use; None if nothing could be opened."""
    notes: list[str] = field(default_factory=list)
    tasks: list[TaskSummary] = field(default_factory=list)
    image_sizes: dict[str, list[str]] = field(default_factory=dict)
    objects: list[str] = field(default_factory=list)
    actions: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    robot_states: dict[str, np.ndarray] = field(default_factory=dict)
    """Name of a state field → its values, `[steps, n]`."""
    binary_hints: list[str] = field(default_factory=list)
    """Lines of YAML that would declare binary what has two values only."""
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
            "robot": None if self.robot is None else self.robot.to_dict(),
            "notes": self.notes,
            "num_episodes": self.num_episodes,
            "num_episodes_read": self.num_read,
            "num_steps": self.num_steps,
            "tasks": tasks,
            "image_sizes": self.image_sizes,
            "objects": self.objects,
            "actions": FieldStatistics.of(self.actions).to_dict() if len(self.actions) else None,
            "robot_states": states,
            "binary_hints": self.binary_hints,
            "no_op_share": self.no_op_share,
            "anomalies": [asdict(anomaly) for anomaly in self.anomalies],
        }


def inspect_dataset(
    path: str | Path,
    data_format: str = "auto",
    orientation: ImageOrientation | str = "auto",
    max_episodes: int | None = None,
    progress: bool = False,
    robot: RobotSpec | str = "auto",
) -> Inspection:
    """Read every episode and note what is there and what is odd. Damaged files are anomalies, not errors.

    Args:
        path: as for `open_reader`, like format, orientation and robot.
        max_episodes: read only so many, evenly spread; all are listed.
        progress: draw a progress bar.

    Raises:
        UserError: there is no data set at `path` at all, or nothing says which robot it holds.
    """
    result = Inspection(str(expand_path(path)))
    gathered: _Gathered | None = None
    for reader in _readers(path, data_format, orientation, robot, result):
        with reader:
            if gathered is None:
                result.robot, gathered = reader.robot, _Gathered(reader.robot)
            difference = gathered.robot.difference(reader.robot)
            if difference is None:
                _inspect_reader(reader, result, gathered, max_episodes, progress)
            else:
                message = f"it holds another robot than the files before ({difference}); keep it in a folder of its own"
                result.anomalies.append(Anomaly(reader.path.name, message))
    if gathered is not None:
        gathered.summarise(result)
    return result


def _readers(
    path: str | Path,
    data_format: str,
    orientation: ImageOrientation | str,
    robot: RobotSpec | str,
    result: Inspection,
) -> Iterator[EpisodeReader]:
    """One reader for the whole, or one per file where a file is too damaged to be listed with the others."""
    try:
        yield open_reader(path, data_format, orientation, robot)
        return
    except UndeclaredRobotError:
        raise
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
            reader = open_reader(file, "libero", orientation, robot)
        except UserError as error:
            result.anomalies.append(Anomaly(file.name, str(error)))
        else:
            yield reader


class _Gathered:
    """Arrays of all episodes, and what is judged over all of them."""

    def __init__(self, robot: RobotSpec) -> None:
        self.robot = robot
        self.actions: list[np.ndarray] = []
        self.states: dict[str, list[np.ndarray]] = {field.name: [] for field in robot.state}
        self.no_ops = 0
        self.signs = GripperSigns(robot)

    def add(self, arrays: EpisodeArrays) -> None:
        self.actions.append(arrays.actions)
        for name, values in arrays.robot_states.items():
            self.states.setdefault(name, []).append(values)
        self.no_ops += count_no_ops(self.robot, arrays.actions)
        self.signs.add(arrays)

    def summarise(self, result: Inspection) -> None:
        if not self.actions:
            return
        result.actions = np.concatenate(self.actions)
        result.robot_states = {name: np.concatenate(parts) for name, parts in self.states.items() if parts}
        result.no_op_share = self.no_ops / len(result.actions)
        result.binary_hints = binary_hints(self.robot, result.actions)
        odd, held = constant_dims(self.robot, result.actions)
        if held:
            result.notes.append(f"action dims {', '.join(held)} hold one value throughout")
        problems = [f"action dims {', '.join(odd)} never change"] if odd else []
        if result.no_op_share > _MANY_NO_OPS:
            problems.append(f"{result.no_op_share:.0%} of the actions do nothing")
        result.anomalies += [Anomaly("data set", message) for message in (*problems, *self.signs.problems())]


def _inspect_reader(
    reader: EpisodeReader, result: Inspection, gathered: _Gathered, max_episodes: int | None, progress: bool
) -> None:
    result.format = reader.format
    result.notes += [note for note in reader.notes if note not in result.notes]
    tasks = {task.task: task for task in result.tasks}
    for info in reader.episodes:
        if info.task not in tasks:
            tasks[info.task] = TaskSummary(info.task, info.instruction)
            result.tasks.append(tasks[info.task])
        elif tasks[info.task].instruction != info.instruction:
            message = f"instruction '{info.instruction}' differs from '{tasks[info.task].instruction}' of the same task"
            result.anomalies.append(Anomaly(info.episode_id, message))
        tasks[info.task].lengths.append(info.num_steps)
    count = len(reader.episodes)
    chosen: Sequence[int] = range(count)
    if max_episodes is not None and max_episodes < count:
        chosen = np.unique(np.linspace(0, count - 1, max_episodes).astype(int)).tolist()
    for index in track(chosen, f"reading {reader.path.name}", disable=not progress, transient=True):
        info = reader.episodes[index]
        try:
            arrays = reader.load(index)
            check_arrays(arrays, reader.source(index))
        except UserError as error:
            result.anomalies.append(Anomaly(info.episode_id, str(error)))
            continue
        try:
            check_actions(reader.robot, arrays.actions, reader.source(index))
        except UserError as error:
            result.anomalies.append(Anomaly(info.episode_id, str(error)))
            if arrays.actions.shape[1] != reader.robot.action_dim:
                continue
        result.num_read += 1
        _inspect_episode(info, arrays, reader.robot, result, tasks[info.task])
        gathered.add(arrays)


def _inspect_episode(
    info: EpisodeInfo, arrays: EpisodeArrays, robot: RobotSpec, result: Inspection, task: TaskSummary
) -> None:
    problems = [*action_problems(robot, arrays.actions), *picture_problems(arrays)]
    result.anomalies += [Anomaly(info.episode_id, problem) for problem in problems]
    for camera, stored in arrays.images.items():
        frames = stored[arrays.seen]
        size = f"{frames.shape[2]}x{frames.shape[1]}"
        result.image_sizes[camera] = sorted({*result.image_sizes.get(camera, []), size})
        if camera not in task.pictures and len(frames):
            moments = frames[[0, len(frames) // 2, -1]]
            task.pictures[camera] = to_upright(moments, robot.camera(camera).orientation).copy()
    result.objects = sorted({*result.objects, *arrays.object_names})
