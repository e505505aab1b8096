"""Writes episodes as a LeRobotDataset v3: parquet, MP4 (H.264) and metadata that LeRobot 0.4 reads.

How the robot's numbers and frames are named is `lerobot_layout`'s; the robot's whole declaration goes into `info.json`
besides, as `lerobot_declared` says. Executed actions and object poses ride along where known.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from statevla.data.episodes import EpisodeArrays, EpisodeInfo
from statevla.data.lerobot import EXECUTED_KEY, OBJECTS_KEY, require_lerobot_packages
from statevla.data.lerobot_card import CARD, dataset_card
from statevla.data.lerobot_checksums import write_checksums
from statevla.data.lerobot_declared import declare_in_features, top_declaration
from statevla.data.lerobot_layout import Layout, layout_of
from statevla.data.lerobot_meta import EPISODES_DIR, INFO_PATH, OBJECT_NAMES_COLUMN, STATS_PATH, TASK_COLUMN, TASKS_PATH
from statevla.data.lerobot_robot import ACTION_KEYS
from statevla.data.lerobot_stats import RunningStats, picture_stats, table_stats
from statevla.data.lerobot_video import VideoWriter
from statevla.data.write_libero import WRITE_FIX
from statevla.errors import UserError
from statevla.machine.lock import only_writer_of
from statevla.machine.storage import replacing_folder, writing
from statevla.robots import RobotSpec
from statevla.transforms import from_upright, to_upright

ACTION_KEY = ACTION_KEYS[0]
FILES_PER_CHUNK, VIDEO_FILE_MB, DATA_FILE_MB = 1000, 200, 100
"""LeRobot's own: files in a folder, and sizes at which the next file begins."""
_PATTERN = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH, VIDEO_PATH = f"data/{_PATTERN}.parquet", f"videos/{{video_key}}/{_PATTERN}.mp4"
_INDEX_FEATURES = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64"} | {
    "task_index": "int64"
}


def write_lerobot(folder: Path, robot: RobotSpec, episodes: Iterable[tuple[EpisodeInfo, EpisodeArrays]]) -> Path:
    """Write episodes into `folder`, streaming.

    Args:
        folder: is made, and put in place at the end; it must not exist yet, or be empty.
        robot: whose episodes they are, with its cameras as the arrays hold their frames.

    Raises:
        UserError: the folder exists, episodes differ in cameras, sizes or arrays, or the disk is full.
    """
    require_lerobot_packages()
    with only_writer_of(folder, WRITE_FIX), writing(folder, WRITE_FIX), replacing_folder(folder) as part:
        writer = _Writer(part, robot)
        try:
            for info, arrays in episodes:
                writer.add(info, arrays)
        finally:
            writer.close()
        writer.write_metadata()
        write_checksums(part)
        writer.write_card()  # not among the checksums: people may write on it
    return folder


class _Writer:
    """Writes one data file and, per camera, a chain of videos."""

    def __init__(self, root: Path, robot: RobotSpec) -> None:
        self._root = root
        self._robot, self._layout = robot, layout_of(robot)
        self._fps = robot.control_freq_hz
        self._features: dict[str, dict[str, Any]] = {}
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._num_frames = 0
        self._videos: dict[str, VideoWriter] = {}
        self._table: Any = None
        self._stats: dict[str, RunningStats] = {}

    def add(self, info: EpisodeInfo, arrays: EpisodeArrays) -> None:
        """Append an episode."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns, pictures = _columns_of(arrays, self._layout), _pictures_of(arrays, self._robot, self._layout)
        features = _features_of(columns, pictures, self._layout)
        if not self._features:
            self._features = features
        elif _shapes(features) != _shapes(self._features):
            raise UserError(
                f"data {info.file}: {info.episode_id} has {_shapes(features)}, earlier episodes have "
                f"{_shapes(self._features)}; convert them separately"
            )
        number, count = len(self._rows), len(arrays.actions)
        task = self._tasks.setdefault(info.instruction, len(self._tasks))
        frame_index = np.arange(count)
        index: dict[str, np.ndarray] = {
            "timestamp": (frame_index / self._fps).astype(np.float32),
            "frame_index": frame_index,
            "episode_index": np.full(count, number),
            "index": self._num_frames + frame_index,
            "task_index": np.full(count, task),
        }
        fixed = {key: _fixed_size_list(values) for key, values in columns.items()}
        table = pa.table(fixed | {key: pa.array(values) for key, values in index.items()})
        if self._table is None:
            path = self._root / DATA_PATH.format(chunk_index=0, file_index=0)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._table = pq.ParquetWriter(path, table.schema, write_page_checksum=True)
        self._table.write_table(table)  # one row group per episode: readers find theirs without scanning
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [info.instruction],
            "length": count,
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": self._num_frames,
            "dataset_to_index": self._num_frames + count,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            TASK_COLUMN: info.task,
            OBJECT_NAMES_COLUMN: json.dumps(list(arrays.object_names)),
        }
        for key, frames in pictures.items():
            row |= self._write_video(key, frames)
        stats = {key: table_stats(values) for key, values in (columns | index).items()}
        stats |= {key: picture_stats(frames) for key, frames in pictures.items()}
        for key, episode in stats.items():
            self._stats.setdefault(key, RunningStats()).add(episode)
            row |= {f"stats/{key}/{name}": value.tolist() for name, value in episode.summary().items()}
        self._rows.append(row)
        self._num_frames += count

    def _write_video(self, key: str, frames: np.ndarray) -> dict[str, Any]:
        """Append frames to the camera's video; returns where they are."""
        writer = self._videos.get(key)
        if writer is None or writer.size_mb() > VIDEO_FILE_MB:
            index = 0 if writer is None else writer.index + 1
            if writer is not None:
                writer.close()
            chunk, file = divmod(index, FILES_PER_CHUNK)
            path = self._root / VIDEO_PATH.format(video_key=key, chunk_index=chunk, file_index=file)
            writer = self._videos[key] = VideoWriter(path, self._fps, frames.shape[1:3], index)
        chunk, file = divmod(writer.index, FILES_PER_CHUNK)
        start_s = writer.num_frames / self._fps
        writer.add(frames)
        place = {"chunk_index": chunk, "file_index": file, "from_timestamp": start_s}
        place["to_timestamp"] = writer.num_frames / self._fps
        return {f"videos/{key}/{name}": value for name, value in place.items()}

    def close(self) -> None:
        """Finish the data file and the videos."""
        for writer in self._videos.values():
            writer.close()
        if self._table is not None:
            self._table.close()

    def write_metadata(self) -> None:
        """Write `meta/`: info, statistics, tasks, episodes.

        Raises:
            UserError: no episode was added.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._rows:
            raise UserError("conversion: there are no episodes to write; check the source")
        episodes = self._root / EPISODES_DIR / (_PATTERN.format(chunk_index=0, file_index=0) + ".parquet")
        episodes.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._rows), episodes, write_page_checksum=True)
        _write_tasks(self._root / TASKS_PATH, self._tasks)
        stats = {key: {n: v.tolist() for n, v in running.summary().items()} for key, running in self._stats.items()}
        (self._root / STATS_PATH).write_text(json.dumps(stats, indent=2), encoding="utf-8")
        (self._root / INFO_PATH).write_text(json.dumps(self._info(), indent=2), encoding="utf-8")

    def write_card(self) -> None:
        """Write the data set's `README.md`."""
        card = dataset_card(self._info(), self._layout.robot, list(self._tasks))
        (self._root / CARD).write_text(card, encoding="utf-8")

    def _info(self) -> dict[str, Any]:
        """What `meta/info.json` says."""
        return {
            "codebase_version": "v3.0",
            "robot_type": self._robot.name,
            "total_episodes": len(self._rows),
            "total_frames": self._num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": int(self._fps) if self._fps == int(self._fps) else self._fps,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self._videos else None,
            "features": self._described_features(),
            **top_declaration(self._layout.robot),
        }

    def _described_features(self) -> dict[str, dict[str, Any]]:
        features = {key: dict(feature) for key, feature in self._features.items()}
        for key, writer in self._videos.items():
            features[key]["info"] = writer.description()
        declare_in_features(features, self._layout.robot, ACTION_KEY)
        index = {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in _INDEX_FEATURES.items()}
        return features | index


def _columns_of(arrays: EpisodeArrays, layout: Layout) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray | None] = {
        key: np.concatenate([arrays.robot_states[field.name] for field in fields], axis=1)
        for key, fields in layout.columns.items()
    }
    columns |= {ACTION_KEY: arrays.actions, EXECUTED_KEY: arrays.executed_actions, OBJECTS_KEY: arrays.object_poses}
    return {key: np.ascontiguousarray(v, dtype=np.float32) for key, v in columns.items() if v is not None}


def _pictures_of(arrays: EpisodeArrays, robot: RobotSpec, layout: Layout) -> dict[str, np.ndarray]:
    return {
        layout.cameras[camera]: np.ascontiguousarray(
            from_upright(to_upright(frames, robot.camera(camera).orientation), layout.robot.camera(camera).orientation)
        )
        for camera, frames in arrays.images.items()
    }


def _features_of(
    columns: Mapping[str, np.ndarray], pictures: Mapping[str, np.ndarray], layout: Layout
) -> dict[str, dict[str, Any]]:
    axes = ["height", "width", "channels"]
    features: dict[str, dict[str, Any]] = {
        key: {"dtype": "video", "shape": list(frames.shape[1:]), "names": axes} for key, frames in pictures.items()
    }
    for key, values in columns.items():
        names: list[str] | None = layout.names(key) if key in layout.columns else None
        if key in (ACTION_KEY, EXECUTED_KEY):
            names = list(layout.robot.action_names)
        features[key] = {"dtype": "float32", "shape": [values.shape[1]], "names": names}
    return features


def _shapes(features: Mapping[str, Mapping[str, Any]]) -> dict[str, list[int]]:
    return {key: list(feature["shape"]) for key, feature in features.items()}


def _fixed_size_list(values: np.ndarray) -> Any:
    import pyarrow as pa

    # A column of one number per row is a plain column in LeRobot.
    if values.shape[1] == 1:
        return pa.array(values[:, 0])
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _write_tasks(path: Path, tasks: Mapping[str, int]) -> None:
    """A table as pandas would write it: LeRobot looks tasks up by the index, which holds their texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = "__index_level_0__"
    number = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    text = {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object"}
    pandas = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": [number | {"metadata": None}, text | {"metadata": None}],
        "pandas_version": "2.2.0",
    }
    table = pa.table(
        {"task_index": pa.array(list(tasks.values()), pa.int64()), index: pa.array(list(tasks), pa.string())}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    table = table.replace_schema_metadata({"pandas": json.dumps(pandas)})
    pq.write_table(table, path, write_page_checksum=True)
