"""Small LeRobotDatasets of both versions, as other people's tools write them, for tests."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from statevla.data import EpisodeArrays, EpisodeInfo
from statevla.robots import RobotSpec

FPS = 10
SIZE = 32


@dataclass
class Episode:
    """Rows of an episode: feature → `[T, n]`, and what else a row says."""

    columns: dict[str, np.ndarray]
    tasks: Sequence[str] | str = "push the block"
    """In words, of all rows or of each."""
    times_s: Sequence[float] | None = None
    frame_index: Sequence[int] | None = None
    video_length: int | None = None
    """Frames in the video; by default one per row."""
    listed_tasks: Sequence[str] | None = None
    """What the list of episodes says, if not what the rows say."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


@dataclass
class Dataset:
    """What to write.

    Attributes:
        names: feature → names of its numbers, in any of the forms that are around; None for none.
        cameras: features with frames. The frame of step k is `grey(k + 40 * episode)`.
        pictures: whether frames are PNG in the rows and not videos.
    """

    names: dict[str, Any]
    episodes: list[Episode]
    cameras: Sequence[str] = ("observation.images.top",)
    version: str = "v3.0"
    robot_type: str = "unknown"
    fps: int = FPS
    pictures: bool = False
    codec: str = "libx264"
    extra_features: dict[str, dict[str, Any]] = field(default_factory=dict)


def level(episode: int, frame: int) -> int:
    """Brightness of a frame, distinct for every frame of up to 4 episodes of up to 12 frames."""
    return 20 + 4 * (frame + 14 * episode)


def write_dataset(root: Path, data: Dataset) -> Path:
    """Write `data` into `root`."""
    tasks = _tasks(data)
    tables = [_table(data, number, tasks) for number in range(len(data.episodes))]
    (root / "meta").mkdir(parents=True)
    (write_v2 if data.version.startswith("v2") else write_v3)(root, data, tables, tasks)
    return root


def write_v2(root: Path, data: Dataset, tables: list[pa.Table], tasks: list[str]) -> None:
    """One parquet file and one video per episode."""
    lines = []
    for number, (episode, table) in enumerate(zip(data.episodes, tables)):
        name = f"chunk-{number // 2:03d}/{{}}episode_{number:06d}"
        file = root / "data" / (name.format("") + ".parquet")
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file)
        for camera in () if data.pictures else data.cameras:
            write_video(root / "videos" / (name.format(f"{camera}/") + ".mp4"), _frames(data, [number]), data)
        lines.append({"episode_index": number, "tasks": _listed(episode), "length": len(episode)})
    _write_lines(root / "meta/episodes.jsonl", lines)
    _write_lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": text} for i, text in enumerate(tasks)])
    _write_info(
        root,
        data,
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        chunks_size=2,
    )


def write_v3(root: Path, data: Dataset, tables: list[pa.Table], tasks: list[str]) -> None:
    """All episodes in one parquet file and one video per camera."""
    pattern = "chunk-000/file-000"
    (root / "data/chunk-000").mkdir(parents=True)
    pq.write_table(pa.concat_tables(tables), root / f"data/{pattern}.parquet")
    rows, start = [], 0
    for number, episode in enumerate(data.episodes):
        row: dict[str, Any] = {"episode_index": number, "tasks": _listed(episode), "length": len(episode)}
        row |= {"data/chunk_index": 0, "data/file_index": 0}
        length = _video_length(episode)
        for camera in () if data.pictures else data.cameras:
            row |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": 0}
            row[f"videos/{camera}/from_timestamp"] = start / data.fps
            row[f"videos/{camera}/to_timestamp"] = (start + length) / data.fps
        start += length
        rows.append(row)
    for camera in () if data.pictures else data.cameras:
        write_video(root / f"videos/{camera}/{pattern}.mp4", _frames(data, range(len(data.episodes))), data)
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), root / f"meta/episodes/{pattern}.parquet")
    table = pa.table({"task_index": list(range(len(tasks))), "__index_level_0__": tasks})
    pq.write_table(table, root / "meta/tasks.parquet")
    part = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    _write_info(root, data, data_path=f"data/{part}.parquet", video_path=f"videos/{{video_key}}/{part}.mp4")


def write_video(path: Path, frames: np.ndarray, data: Dataset) -> None:
    """Encode uint8 `[T, H, W, 3]`."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(data.codec, rate=data.fps, options={"crf": "10", "g": "2"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, data.fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def rewrite_info(root: Path, **changes: object) -> None:
    """Change keys of `meta/info.json`; None removes one."""
    file = root / "meta/info.json"
    info = json.loads(file.read_text())
    for key, value in changes.items():
        info.pop(key) if value is None else info.update({key: value})
    file.write_text(json.dumps(info))


def rewrite_features(root: Path, change: Callable[[str, dict[str, Any]], None]) -> None:
    """Change every feature of `meta/info.json`, in place, by its name."""
    features = json.loads((root / "meta/info.json").read_text())["features"]
    for key, feature in features.items():
        change(key, feature)
    rewrite_info(root, features=features)


def undeclare(root: Path) -> None:
    """Remove what our writer says of the robot, as from a data set that others wrote."""
    info = json.loads((root / "meta/info.json").read_text())
    rewrite_info(root, **({"statevla": None} if "statevla" in info else {}))
    rewrite_features(root, lambda _, feature: (feature.get("info") or {}).pop("statevla", None))


def edit_as_lerobot(root: Path) -> None:
    """What `lerobot-edit-dataset` leaves of `meta/info.json`: the keys of LeRobot's own `DatasetInfo`, 0.6.1."""
    file = root / "meta/info.json"
    known = {"codebase_version", "fps", "features", "total_episodes", "total_frames", "total_tasks", "chunks_size"}
    known |= {"data_files_size_in_mb", "video_files_size_in_mb", "data_path", "video_path", "robot_type", "splits"}
    info = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in info.items() if key in known | {"tools"}}))


def _tasks(data: Dataset) -> list[str]:
    texts: list[str] = []
    for episode in data.episodes:
        for text in [episode.tasks] if isinstance(episode.tasks, str) else episode.tasks:
            if text not in texts:
                texts.append(text)
    return texts


def _listed(episode: Episode) -> list[str]:
    if episode.listed_tasks is not None:
        return list(episode.listed_tasks)
    return list(dict.fromkeys([episode.tasks] if isinstance(episode.tasks, str) else episode.tasks))


def _video_length(episode: Episode) -> int:
    return len(episode) if episode.video_length is None else episode.video_length


def _frames(data: Dataset, episodes: Sequence[int]) -> np.ndarray:
    levels = [level(number, k) for number in episodes for k in range(_video_length(data.episodes[number]))]
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), SIZE, SIZE, 3))


def _table(data: Dataset, number: int, tasks: list[str]) -> pa.Table:
    episode = data.episodes[number]
    count = len(episode)
    texts = [episode.tasks] * count if isinstance(episode.tasks, str) else episode.tasks
    frame_index = np.arange(count) if episode.frame_index is None else np.array(episode.frame_index)
    times_s = frame_index / data.fps if episode.times_s is None else episode.times_s
    columns = {key: pa.array(values.tolist()) for key, values in episode.columns.items()}
    columns |= {
        "timestamp": pa.array(np.asarray(times_s, np.float32)),
        "frame_index": pa.array(frame_index),
        "episode_index": pa.array(np.full(count, number)),
        "index": pa.array(np.arange(count)),
        "task_index": pa.array([tasks.index(text) for text in texts]),
    }
    if data.pictures:
        rows = [{"bytes": png(frame), "path": f"frame_{k}.png"} for k, frame in enumerate(_frames(data, [number]))]
        columns |= {camera: pa.array(rows) for camera in data.cameras}
    return pa.table(columns)


def png(frame: np.ndarray) -> bytes:
    """A frame as PNG."""
    from matplotlib import image

    buffer = io.BytesIO()
    image.imsave(buffer, np.ascontiguousarray(frame), format="png")
    return buffer.getvalue()


def _write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _write_info(root: Path, data: Dataset, **more: Any) -> None:
    columns = data.episodes[0].columns
    features: dict[str, Any] = {
        key: {"dtype": "float32", "shape": [values.shape[1]], "names": data.names.get(key)}
        for key, values in columns.items()
    }
    dtype = "image" if data.pictures else "video"
    features |= {camera: {"dtype": dtype, "shape": [SIZE, SIZE, 3], "names": None} for camera in data.cameras}
    index = {"timestamp": "float32"} | dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")
    features |= {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in index.items()}
    info = {
        "codebase_version": data.version,
        "robot_type": data.robot_type,
        "fps": data.fps,
        "total_episodes": len(data.episodes),
        "features": features | data.extra_features,
        **more,
    }
    (root / "meta/info.json").write_text(json.dumps(info))


def some_episodes(robot: RobotSpec, task: str, gripper: int | None = None) -> list[tuple[EpisodeInfo, EpisodeArrays]]:
    """Two episodes of a robot, of one task and two instructions, with frames brighter on top; `gripper` is binary."""
    rng = np.random.default_rng(0)
    episodes = []
    for number, words in enumerate(("stack it", "stack it now")):
        count = 6 + number
        frames = np.full((count, 32, 32, 3), 60, np.uint8)
        frames[:, :16] = 180
        actions = rng.normal(size=(count, robot.action_dim)).astype(np.float32)
        if gripper is not None:
            actions[:, gripper] = np.sign(actions[:, gripper])
        arrays = EpisodeArrays(
            images=dict.fromkeys(robot.camera_names, frames),
            robot_states={f.name: rng.normal(size=(count, f.size)).astype(np.float32) for f in robot.state},
            actions=actions,
        )
        info = EpisodeInfo(f"e{number}", task, words, count, robot.control_freq_hz, Path("made.up"))
        episodes.append((info, arrays))
    return episodes
