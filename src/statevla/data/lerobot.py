"""LeRobotDataset, versions 2 and 3, in a local folder: parquet for numbers, videos or pictures for frames.

Which of an episode's frames belongs to which row is told by the rows' time stamps. An episode whose task changes on
the way is read as several, one per stretch of the same task.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from statevla.data.episodes import DataFormat, EpisodeArrays, EpisodeInfo, EpisodeReader, check_cameras, task_name
from statevla.data.lerobot_frames import decode_frames, decode_pictures
from statevla.data.lerobot_meta import INFO_PATH, EpisodeRow, Metadata, one_line
from statevla.data.lerobot_robot import bind_robot
from statevla.errors import UserError
from statevla.robots import ImageOrientation, RobotSpec
from statevla.transforms import normalize_instruction

EXECUTED_KEY, OBJECTS_KEY = "executed_action", "object_states"
_TIME, _FRAME, _TASK, _EPISODE = "timestamp", "frame_index", "task_index", "episode_index"
_MAX_STEP_RATIO = 1.25
"""The usual distance of time stamps over 1 / fps, or its inverse, from which on the two contradict each other."""


@dataclass(frozen=True)
class _Place:
    """An episode, or the stretch `start` to `stop` of its rows."""

    row: EpisodeRow
    start: int
    stop: int


class LeRobotReader(EpisodeReader):
    """Reader of one LeRobotDataset folder."""

    format = "lerobot"

    def __init__(self, path: Path, robot: RobotSpec | None = None, orientation: ImageOrientation | None = None) -> None:
        require_lerobot_packages()
        self.path = path
        self.notes = []
        self._meta = Metadata(path)
        self._binding = bind_robot(self._meta, robot, orientation, self.notes)
        self.robot = self._binding.robot
        self.is_renewable = self._meta.is_v2 or not self._binding.is_declared
        self.notes += self.robot.assumed
        self.episodes = []
        self._places: list[_Place] = []
        self._list_episodes()

    def source_files(self) -> list[Path]:
        used = {place.row.data_file for place in self._places}
        used |= {part.file for place in self._places for part in place.row.videos.values()}
        return [*self._meta.files(), *sorted(used)]

    def load(self, index: int, cameras: Sequence[str] | None = None) -> EpisodeArrays:
        place, source = self._places[index], self.source(index)
        wanted = self.cameras if cameras is None else tuple(cameras)
        check_cameras(wanted, self.cameras, source)
        keys = {camera: self._binding.cameras[camera] for camera in wanted}
        pictures = [key for key in keys.values() if key not in place.row.videos]
        columns = self._read_rows(place, pictures, source)
        images = {}
        for camera, key in keys.items():
            if key in place.row.videos:
                self._meta.checksums.check(place.row.videos[key].file)
                images[camera] = decode_frames(place.row.videos[key], columns[_TIME], self._meta.fps, source)
            else:
                images[camera] = decode_pictures(columns[key], self.path, source)
        return EpisodeArrays(
            images=images,
            robot_states=self._robot_states(columns, source),
            actions=columns[self._binding.action_key],
            executed_actions=columns.get(EXECUTED_KEY),
            object_poses=columns.get(OBJECTS_KEY),
            object_names=place.row.object_names,
        )

    def close(self) -> None:
        """Nothing stays open between episodes."""

    # Episodes ---------------------------------------------------------------------------------------------------------

    def _list_episodes(self) -> None:
        features = self._meta.features
        video_keys = [key for key in self._binding.cameras.values() if features[key]["dtype"] == "video"]
        rows = list(self._meta.episodes(video_keys))
        if not rows:
            raise UserError(f"data {self.path}: it has no episodes")
        split, short, renamed = 0, [], 0
        for row, task_indices in self._with_tasks(rows):
            stretches = list(_stretches(task_indices, row.length))
            split += len(stretches) > 1
            for start, stop, task_index in stretches:
                name = f"episode_{row.number:06d}" + (f"[{start}:{stop}]" if len(stretches) > 1 else "")
                if len(stretches) > 1 and stop - start < 2:
                    short.append(name)
                    continue
                text = self._text(row, task_index)
                renamed += bool(row.texts) and text not in row.texts
                self._add(name, row, start, stop, text)
        if split:
            self.notes.append(
                f"episodes that hold several tasks: {split}; each is read as several, one per task in a row"
            )
        if short:
            self.notes.append(f"stretches of a single step are left out: {', '.join(short[:5])}")
        if renamed:
            self.notes.append(
                f"meta/episodes names another task than the rows of {renamed} episodes; rows are believed"
            )

    def _with_tasks(self, rows: Sequence[EpisodeRow]) -> Iterator[tuple[EpisodeRow, np.ndarray | None]]:
        """Every episode with the task of each of its rows, in order of the frames; None where rows do not say."""
        file, table = None, None
        for row in rows:
            if row.data_file != file:
                file, table = row.data_file, self._read_task_indices(row.data_file)
            if table is None:
                yield row, None
                continue
            # A file of version 2 holds one episode, whatever its rows say.
            chosen = table if self._meta.is_v2 else table[table[:, 0] == row.number]
            yield row, chosen[np.argsort(chosen[:, 1], kind="stable"), 2]

    def _read_task_indices(self, file: Path) -> np.ndarray | None:
        """int64 `[rows, 3]`: episode, frame and task. None if the file cannot be read, which reading it will say."""
        import pyarrow.parquet as pq

        keys = [_EPISODE, _FRAME, _TASK]
        if not self._meta.tasks or not all(key in self._meta.features for key in keys):
            return None
        self._meta.checksums.check(file)
        try:
            table = pq.read_table(file, columns=keys, page_checksum_verification=True)
            return np.stack([np.asarray(table.column(key).to_numpy(), np.int64) for key in keys], axis=1)
        except Exception:
            return None

    def _text(self, row: EpisodeRow, task_index: int | None) -> str:
        """The task in words: the table's for the rows' index, else what the list of episodes says."""
        tasks = self._meta.tasks
        text = "" if task_index is None else tasks.get(task_index, "")
        if not text.strip():
            known = row.texts or (tuple(tasks.values()) if len(tasks) == 1 else ())
            text = known[0] if known else ""
        if not text.strip():
            raise UserError(
                f"data {row.data_file}: episode {row.number} names no task; every episode needs an instruction"
            )
        return text

    def _add(self, name: str, row: EpisodeRow, start: int, stop: int, text: str) -> None:
        instruction = normalize_instruction(text)
        task = row.task if row.task and (start, stop) == (0, row.length) else task_name(instruction)
        info = EpisodeInfo(name, task, instruction, stop - start, self._meta.fps, row.data_file)
        self.episodes.append(info)
        self._places.append(_Place(row, start, stop))

    # Rows -------------------------------------------------------------------------------------------------------------

    def _read_rows(self, place: _Place, pictures: Sequence[str], source: str) -> dict[str, Any]:
        """Columns of an episode in order of its frames: float32 `[T, n]`, `timestamp` in seconds `[T]`, pictures."""
        import pyarrow.parquet as pq

        row, features = place.row, self._meta.features
        numbers = {self._binding.action_key, *(key for key, _ in self._binding.fields.values())}
        numbers |= {key for key in (EXECUTED_KEY, OBJECTS_KEY) if key in features}
        order = [key for key in (_TIME, _FRAME) if key in features]
        # A file of version 2 holds one episode, whatever its rows say.
        chosen = None if self._meta.is_v2 else [(_EPISODE, "=", row.number)]
        self._meta.checksums.check(row.data_file)
        wanted = [*numbers, *order, *pictures]
        try:
            table = pq.read_table(row.data_file, columns=wanted, filters=chosen, page_checksum_verification=True)
        except Exception as error:
            raise UserError(f"{source}: not readable ({one_line(error)}); download the data set again") from None
        if len(table) != row.length:
            raise UserError(
                f"{source}: {len(table)} rows in {row.data_file.name}, expected {row.length}; "
                "the data set is incomplete, download it again"
            )
        if _FRAME in order:
            table = table.sort_by(_FRAME)
        times_s = self._times_s({key: table.column(key).to_numpy() for key in order}, row.length, source)
        columns: dict[str, Any] = {_TIME: times_s[place.start : place.stop]}
        table = table.slice(place.start, place.stop - place.start)
        columns |= {key: table.column(key).to_pylist() for key in pictures}
        for key in numbers:
            values = table.column(key).to_pylist()
            try:
                columns[key] = np.array(values, np.float32).reshape(len(values), -1)
            except (TypeError, ValueError):
                raise UserError(
                    f"{source}: '{key}' has rows of different lengths or gaps; repair the data set"
                ) from None
        return columns

    def _times_s(self, order: Mapping[str, np.ndarray], length: int, source: str) -> np.ndarray:
        """When each row was recorded, in seconds from the start of the episode, `[T]`."""
        frames = order.get(_FRAME, np.arange(length))
        times_s = np.asarray(order.get(_TIME, frames / self._meta.fps), np.float64)
        for key, values in ((_FRAME, frames), (_TIME, times_s)):
            wrong = np.flatnonzero(~(np.diff(values) > 0))
            if len(wrong):
                step = int(wrong[0])
                raise UserError(
                    f"{source}: '{key}' goes from {values[step]:g} to {values[step + 1]:g} at row {step + 1}; "
                    "it must increase from row to row, repair the data set"
                )
        step_s = float(np.median(np.diff(times_s))) if length > 1 else 1 / self._meta.fps
        if not 1 / _MAX_STEP_RATIO < step_s * self._meta.fps < _MAX_STEP_RATIO:
            raise UserError(
                f"{source}: time stamps lie {step_s:.4f} s apart, fps {self._meta.fps:g} in {INFO_PATH} says "
                f"{1 / self._meta.fps:.4f} s; correct one of them"
            )
        return times_s

    def _robot_states(self, columns: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
        states = {}
        for field in self.robot.state:
            key, part = self._binding.fields[field.name]
            states[field.name] = columns[key][:, part]
            if states[field.name].shape[1] != field.size:
                raise UserError(
                    f"{source}: rows of '{key}' have {columns[key].shape[1]} numbers, {INFO_PATH} says "
                    f"{self._meta.features[key].get('shape')}; repair the data set"
                )
        return states


def require_lerobot_packages() -> None:
    """Raise a UserError that names the extra if pyarrow or PyAV are missing."""
    for package in ("pyarrow", "av"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"LeRobot data sets need the package {package}; pip install 'statevla[lerobot-data]'")


def _stretches(task_indices: np.ndarray | None, length: int) -> Iterator[tuple[int, int, int | None]]:
    """Start, stop and task of every run of rows with the same task."""
    if task_indices is None or len(task_indices) != length:
        yield 0, length, None
        return
    starts = [0, *(1 + np.flatnonzero(np.diff(task_indices))).tolist()]
    for start, stop in zip(starts, [*starts[1:], length]):
        yield start, stop, int(task_indices[start])


FORMAT = DataFormat("lerobot", lambda path: (path / INFO_PATH).is_file(), LeRobotReader)
