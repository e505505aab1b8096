"""What a LeRobotDataset says of itself: `meta/info.json`, tasks and episodes, of versions 2 and 3.

Source: https://github.com/huggingface/lerobot (datasets/lerobot_dataset.py). Version 2 has a parquet file and a video
per episode, and lists episodes and tasks as lines of JSON; in version 3 many episodes share a file, and tables say
where each one starts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statevla.data.lerobot_checksums import Checksums
from statevla.errors import UserError

INFO_PATH, TASKS_PATH, EPISODES_DIR = "meta/info.json", "meta/tasks.parquet", "meta/episodes"
STATS_PATH = "meta/stats.json"
TASKS_LINES, EPISODES_LINES = "meta/tasks.jsonl", "meta/episodes.jsonl"
TASK_COLUMN, OBJECT_NAMES_COLUMN = "statevla/task", "statevla/object_names"
_DEFAULT_CHUNK = 1000


@dataclass(frozen=True)
class VideoPart:
    """Where an episode is in a video file: from `start_s` up to `stop_s`, where that is known."""

    file: Path
    start_s: float = 0.0
    stop_s: float | None = None


@dataclass(frozen=True)
class EpisodeRow:
    """What the metadata says of an episode.

    Attributes:
        number: its index in the data set.
        length: number of its rows.
        texts: its tasks in words, possibly none.
        data_file: the parquet file.
        videos: feature → part of a video file.
        task: name of its task, where our own writer noted one.
        object_names: likewise.
    """

    number: int
    length: int
    texts: tuple[str, ...]
    data_file: Path
    videos: Mapping[str, VideoPart]
    task: str | None = None
    object_names: tuple[str, ...] = ()


class Metadata:
    """The metadata of a data set.

    Attributes:
        root: folder of the data set.
        info: `meta/info.json`.
        fps: control frequency, Hz.
        features: name → dtype, shape, names.
        tasks: task_index → the task in words.
        checksums: of all files, where the data set has any; these here are compared.

    Raises:
        UserError: it is missing, damaged, or of an unknown version.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / INFO_PATH
        self.checksums = Checksums(root)
        for file in self.files():
            self.checksums.check(file)
        self.info = _read_info(root)
        self.is_v2 = str(self.info["codebase_version"]).startswith("v2")
        self.features: dict[str, dict[str, Any]] = self.info["features"]
        self.fps = float(self.info["fps"])
        self.tasks = _read_task_lines(root) if self.is_v2 else _read_task_table(root)

    def files(self) -> list[Path]:
        """The files it was read from."""
        tables = sorted((self.root / EPISODES_DIR).glob("*/*.parquet"))
        named = [self.root / name for name in (INFO_PATH, TASKS_PATH, TASKS_LINES, EPISODES_LINES)]
        return [*(file for file in named if file.exists()), *tables]

    def episodes(self, video_keys: Sequence[str]) -> Iterator[EpisodeRow]:
        """Every episode, with where the videos of these features are.

        Raises:
            UserError: a table or a row is damaged, or an episode is empty.
        """
        for row, file in self._episode_rows():
            try:
                found = self._episode_v2(row, video_keys) if self.is_v2 else self._episode_v3(row, video_keys)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                raise UserError(
                    f"data {file}: malformed episode row ({error!r}); expected LeRobotDataset {self._version}"
                ) from None
            if found.length < 1:
                raise UserError(
                    f"data {file}: episode {found.number} has length {found.length}, it was recorded without a frame; "
                    "delete it from the data set (lerobot-edit-dataset)"
                )
            yield found

    @property
    def _version(self) -> str:
        return str(self.info["codebase_version"])

    def _episode_rows(self) -> Iterator[tuple[Mapping[str, Any], Path]]:
        if self.is_v2:
            file = self.root / EPISODES_LINES
            yield from ((row, file) for row in _read_lines(file))
            return
        import pyarrow.parquet as pq

        files = sorted((self.root / EPISODES_DIR).glob("*/*.parquet"))
        if not files:
            raise UserError(f"data {self.root}: no {EPISODES_DIR}/*/*.parquet; the data set is incomplete")
        for file in files:
            try:
                names = [n for n in pq.read_schema(file).names if not n.startswith("stats/")]
                rows = pq.read_table(file, columns=names, page_checksum_verification=True).to_pylist()
            except Exception as error:
                raise UserError(f"data {file}: not readable ({one_line(error)}); download it again") from None
            yield from ((row, file) for row in rows)

    def _episode_v2(self, row: Mapping[str, Any], video_keys: Sequence[str]) -> EpisodeRow:
        number = int(row["episode_index"])
        chunk = number // int(self.info.get("chunks_size") or _DEFAULT_CHUNK)
        place = {"episode_chunk": chunk, "episode_index": number}
        return EpisodeRow(
            number=number,
            length=int(row["length"]),
            texts=tuple(map(str, row.get("tasks") or ())),
            data_file=self._path("data_path", **place),
            videos={key: VideoPart(self._path("video_path", video_key=key, **place)) for key in video_keys},
        )

    def _episode_v3(self, row: Mapping[str, Any], video_keys: Sequence[str]) -> EpisodeRow:
        place = {"chunk_index": int(row["data/chunk_index"]), "file_index": int(row["data/file_index"])}
        videos = {}
        for key in video_keys:
            part = f"videos/{key}/"
            where = {"chunk_index": int(row[part + "chunk_index"]), "file_index": int(row[part + "file_index"])}
            stop_s = row.get(part + "to_timestamp")
            videos[key] = VideoPart(
                self._path("video_path", video_key=key, **where),
                float(row[part + "from_timestamp"]),
                None if stop_s is None else float(stop_s),
            )
        return EpisodeRow(
            number=int(row["episode_index"]),
            length=int(row["length"]),
            texts=tuple(map(str, row.get("tasks") or ())),
            data_file=self._path("data_path", **place),
            videos=videos,
            task=row.get(TASK_COLUMN) or None,
            object_names=tuple(map(str, json.loads(row.get(OBJECT_NAMES_COLUMN) or "[]"))),
        )

    def _path(self, template: str, **names: Any) -> Path:
        return inside(self.root, str(self.info[template]).format(**names))


def inside(root: Path, name: str) -> Path:
    """`root / name`.

    Raises:
        UserError: that lies outside of `root`.
    """
    path = Path(os.path.normpath(root / name))
    if not path.is_relative_to(os.path.normpath(root)):
        raise UserError(f"data {root}: it refers to '{name}', outside of its own folder; repair the data set")
    return path


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


def _read_info(root: Path) -> dict[str, Any]:
    file = root / INFO_PATH
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"data {root}: no {INFO_PATH}; expected the folder of a LeRobotDataset") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"data {file}: not readable as JSON ({one_line(error)})") from None
    version = str(info.get("codebase_version", "none")) if isinstance(info, dict) else "none"
    if not version.startswith(("v2", "v3")):
        raise UserError(
            f"data {file}: codebase_version {version}, expected v2.0, v2.1 or v3.0; convert it with LeRobot's converter"
        )
    for key in ("features", "fps", "data_path"):
        if key not in info:
            raise UserError(f"data {file}: no '{key}'; expected LeRobotDataset {version}")
    features, fps = info["features"], info["fps"]
    if not isinstance(features, dict) or not all(isinstance(f, dict) and "dtype" in f for f in features.values()):
        raise UserError(f"data {file}: 'features' is not a mapping of features with a dtype; repair the data set")
    if not isinstance(fps, (int, float)) or fps <= 0:
        raise UserError(f"data {file}: fps {fps!r}, expected a positive number")
    return info


def _read_lines(file: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise UserError(f"data {file}: missing; the data set is incomplete, download it again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"data {file}: not readable as lines of JSON ({one_line(error)}); download it again") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"data {file}: a line is not a JSON object; download it again")
    return rows


def _read_task_lines(root: Path) -> dict[int, str]:
    file = root / TASKS_LINES
    if not file.exists():
        return {}
    try:
        return {int(row["task_index"]): str(row["task"]) for row in _read_lines(file)}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"data {file}: a line lacks 'task_index' or 'task'; download it again") from None


def _read_task_table(root: Path) -> dict[int, str]:
    """LeRobot's table has the task's text as pandas' index, whatever its name."""
    import pyarrow.parquet as pq

    file = root / TASKS_PATH
    if not file.exists():
        return {}
    try:
        table = pq.read_table(file, page_checksum_verification=True).to_pydict()
    except Exception as error:
        raise UserError(f"data {file}: not readable ({one_line(error)}); download it again") from None
    texts: list[str] = next((column for column in table.values() if column and isinstance(column[0], str)), [])
    return dict(zip(table.get("task_index", range(len(texts))), texts))
