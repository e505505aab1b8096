"""LeRobotDataset v3 in a local folder: parquet for numbers, MP4 for frames.

Source: https://github.com/huggingface/lerobot (datasets/lerobot_dataset.py, codebase version v3.0). Many episodes share
a file; `meta/episodes` says where each one starts. Orientation is what `info.json` declares under `statevla`; LIBERO
data sets of the hub (`lerobot/libero` and its kin) are mirrored (raw frames rotated by 180 degrees) without saying so.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from statevla.data.episodes import DataFormat, EpisodeArrays, EpisodeInfo, EpisodeReader, check_cameras, check_episode
from statevla.errors import UserError
from statevla.language import normalize_instruction
from statevla.types import ImageOrientation, RobotStateLayout

INFO_PATH, TASKS_PATH, EPISODES_DIR = "meta/info.json", "meta/tasks.parquet", "meta/episodes"
IMAGE_PREFIX = "observation.images."
STATE_KEY, ACTION_KEY = "observation.state", "action"
JOINT_KEY, GRIPPER_KEY = "observation.states.joint_state", "observation.states.gripper_state"
EXECUTED_KEY, OBJECTS_KEY = "executed_action", "object_states"
TASK_COLUMN, OBJECT_NAMES_COLUMN = "statevla/task", "statevla/object_names"
DECLARATION_KEY = "statevla"
# Our names of the two LIBERO cameras, and what they are called on the hub.
CAMERA_NAMES = {"image": "agentview", "image2": "eye_in_hand", "wrist_image": "eye_in_hand"}


@dataclass(frozen=True)
class _Place:
    """Where an episode's rows and frames are."""

    episode_index: int
    data_file: Path
    videos: Mapping[str, tuple[Path, float]]
    object_names: tuple[str, ...]


class LeRobotReader(EpisodeReader):
    """Reader of one LeRobotDataset v3 folder."""

    format = "lerobot"

    def __init__(self, path: Path, orientation: ImageOrientation | None = None) -> None:
        require_lerobot_packages()
        self.path = path
        self._info = _read_info(path)
        features: Mapping[str, Mapping[str, Any]] = self._info["features"]
        if ACTION_KEY not in features:
            raise UserError(f"data {path / INFO_PATH}: no feature '{ACTION_KEY}'; it has {', '.join(features)}")
        self._camera_keys = {_camera_name(key): key for key, f in features.items() if f["dtype"] in ("video", "image")}
        self.cameras = tuple(sorted(self._camera_keys))
        self._columns = [
            key for key in (STATE_KEY, JOINT_KEY, GRIPPER_KEY, ACTION_KEY, EXECUTED_KEY, OBJECTS_KEY) if key in features
        ]
        self.notes = []
        self.orientation = orientation or self._stored_orientation()
        self.episodes = []
        self._places: list[_Place] = []
        self._list_episodes()

    def source_files(self) -> list[Path]:
        meta = [self.path / INFO_PATH, self.path / TASKS_PATH, *sorted((self.path / EPISODES_DIR).glob("*/*.parquet"))]
        used = {place.data_file for place in self._places}
        used |= {file for place in self._places for file, _ in place.videos.values()}
        return [*(file for file in meta if file.exists()), *sorted(used)]

    def read(self, index: int, cameras: Sequence[str] | None = None) -> EpisodeArrays:
        info, place = self.episodes[index], self._places[index]
        source = f"data {info.file}: {info.episode_id}"
        wanted = self.cameras if cameras is None else tuple(cameras)
        check_cameras(wanted, self.cameras, source)
        embedded = [key for camera in wanted if (key := self._camera_keys[camera]) not in place.videos]
        columns = self._read_rows(place, [*self._columns, *embedded], source)
        if len(columns[ACTION_KEY]) != info.num_steps:
            raise UserError(
                f"{source}: {len(columns[ACTION_KEY])} rows in {place.data_file.name}, expected {info.num_steps}; "
                "the data set is incomplete, download it again"
            )
        images = {}
        for camera in wanted:
            key = self._camera_keys[camera]
            if key in place.videos:
                file, start_s = place.videos[key]
                images[camera] = decode_frames(file, start_s, info.num_steps, info.fps, source)
            else:
                images[camera] = _decode_pictures(columns[key], self.path, source)
        executed, objects = columns.get(EXECUTED_KEY), columns.get(OBJECTS_KEY)
        arrays = EpisodeArrays(
            images=images,
            orientation=self.orientation,
            robot_states=_robot_states(columns, source),
            actions=columns[ACTION_KEY],
            executed_actions=executed,
            object_poses=objects,
            object_names=place.object_names,
        )
        check_episode(arrays, source)
        return arrays

    def close(self) -> None:
        """Nothing stays open between episodes."""

    def _stored_orientation(self) -> ImageOrientation:
        declared = self._info.get(DECLARATION_KEY, {}).get("image_orientation")
        if declared is not None:
            try:
                return ImageOrientation(declared)
            except ValueError:
                allowed = ", ".join(o.value for o in ImageOrientation)
                raise UserError(
                    f"data {self.path / INFO_PATH}: image_orientation '{declared}', expected one of {allowed}"
                ) from None
        libero = self.cameras == ("agentview", "eye_in_hand")
        custom = ImageOrientation.MIRRORED if libero else ImageOrientation.UPRIGHT
        self.notes.append(f"info.json declares no orientation; frames are taken as {custom.value}")
        return custom

    def _list_episodes(self) -> None:
        import pyarrow.parquet as pq

        files = sorted((self.path / EPISODES_DIR).glob("*/*.parquet"))
        if not files:
            raise UserError(f"data {self.path}: no {EPISODES_DIR}/*/*.parquet; the data set is incomplete")
        video_keys = [key for key in self._camera_keys.values() if self._info["features"][key]["dtype"] == "video"]
        tasks = _read_tasks(self.path) if (self.path / TASKS_PATH).exists() else []
        for file in files:
            try:
                names = [n for n in pq.read_schema(file).names if not n.startswith("stats/")]
                rows = pq.read_table(file, columns=names).to_pylist()
            except Exception as error:
                raise UserError(f"data {file}: not readable ({one_line(error)}); download it again") from None
            for row in rows:
                self._add_episode(row, video_keys, tasks, file)
        if not self.episodes:
            raise UserError(f"data {self.path}: it has no episodes")

    def _add_episode(self, row: Mapping[str, Any], video_keys: Sequence[str], tasks: Sequence[str], file: Path) -> None:
        try:
            number, num_steps = int(row["episode_index"]), int(row["length"])
            data_file = self._file("data_path", row["data/chunk_index"], row["data/file_index"])
            videos = {}
            for key in video_keys:
                part = f"videos/{key}/"
                video = self._file("video_path", row[part + "chunk_index"], row[part + "file_index"], video_key=key)
                videos[key] = (video, float(row[part + "from_timestamp"]))
            named = list(row.get("tasks") or [])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"data {file}: malformed episode row ({error!r}); expected LeRobotDataset v3") from None
        text = named[0] if named else (tasks[0] if len(tasks) == 1 else "")
        if not text.strip():
            raise UserError(f"data {file}: episode {number} names no task; every episode needs an instruction")
        instruction = normalize_instruction(text)
        task = row.get(TASK_COLUMN) or re.sub(r"[^a-z0-9]+", "_", instruction.lower()).strip("_")
        names = tuple(json.loads(row.get(OBJECT_NAMES_COLUMN) or "[]"))
        fps = float(self._info["fps"])
        self.episodes.append(EpisodeInfo(f"episode_{number:06d}", task, instruction, num_steps, fps, data_file))
        self._places.append(_Place(number, data_file, videos, names))

    def _file(self, template: str, chunk_index: Any, file_index: Any, **names: str) -> Path:
        pattern = str(self._info[template])
        return self.path / pattern.format(chunk_index=int(chunk_index), file_index=int(file_index), **names)

    def _read_rows(self, place: _Place, keys: Sequence[str], source: str) -> dict[str, Any]:
        import pyarrow.parquet as pq

        try:
            chosen = [("episode_index", "=", place.episode_index)]
            table = pq.read_table(place.data_file, columns=list(keys), filters=chosen)
        except Exception as error:
            raise UserError(f"{source}: not readable ({one_line(error)}); download the data set again") from None
        columns: dict[str, Any] = {}
        for key in keys:
            values = table.column(key).to_pylist()
            if key.startswith(IMAGE_PREFIX):
                columns[key] = values
                continue
            try:
                columns[key] = np.array(values, np.float32).reshape(len(values), -1)
            except (TypeError, ValueError):
                raise UserError(
                    f"{source}: '{key}' has rows of different lengths or gaps; repair the data set"
                ) from None
        return columns


def require_lerobot_packages() -> None:
    """Raise a UserError that names the extra if pyarrow or PyAV are missing."""
    for package in ("pyarrow", "av"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"LeRobot data sets need the package {package}; pip install 'statevla[lerobot-data]'")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


def decode_frames(file: Path, start_s: float, count: int, fps: float, source: str) -> np.ndarray:
    """Decode `count` frames of a video from `start_s` on: uint8 `[count, H, W, 3]`.

    Raises:
        UserError: the video is missing, damaged, or ends early.
    """
    import av

    found: dict[int, np.ndarray] = {}
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            if stream.time_base is None:
                raise UserError(f"{source}: video {file} has no time base; encode it again")
            container.seek(max(int(start_s / stream.time_base) - 1, 0), stream=stream, backward=True)
            for frame in container.decode(stream):
                # Timestamps are rounded to the container's clock: take the nearest step.
                step = round((float((frame.pts or 0) * stream.time_base) - start_s) * fps)
                if 0 <= step < count:
                    found[step] = frame.to_ndarray(format="rgb24")
                if step >= count - 1:
                    break
    except (OSError, IndexError, TypeError, av.error.FFmpegError) as error:
        raise UserError(f"{source}: video {file} not readable ({one_line(error)}); download it again") from None
    if len(found) != count:
        raise UserError(
            f"{source}: video {file} has {len(found)} of the {count} frames from {start_s:.2f} s on; "
            "it is truncated or has another frame rate than info.json says"
        )
    return np.stack([found[step] for step in range(count)])


def _decode_pictures(values: Sequence[Any], root: Path, source: str) -> np.ndarray:
    """Pictures stored in the parquet rows (PNG or JPEG bytes, or a path): uint8 `[T, H, W, 3]`."""
    import io

    import av

    frames = []
    for step, value in enumerate(values):
        content = value.get("bytes") if isinstance(value, dict) else value
        path = value.get("path") if isinstance(value, dict) else None
        try:
            opened = io.BytesIO(content) if content else str(root / str(path))
            with av.open(opened, "r") as container:
                frames.append(next(container.decode(video=0)).to_ndarray(format="rgb24"))
        except (OSError, StopIteration, TypeError, av.error.FFmpegError) as error:
            raise UserError(f"{source}: picture of step {step} not readable ({one_line(error)})") from None
    return np.stack(frames)


def _robot_states(columns: Mapping[str, np.ndarray], source: str) -> dict[RobotStateLayout, np.ndarray]:
    """Every layout that the columns hold; `observation.state` is told by its length."""
    states: dict[RobotStateLayout, np.ndarray] = {}
    state, joints, fingers = columns.get(STATE_KEY), columns.get(JOINT_KEY), columns.get(GRIPPER_KEY)
    for layout in RobotStateLayout:
        if state is not None and state.shape[1] == layout.dim:
            states[layout] = state
    if joints is not None and joints.shape[1] == 7:
        if fingers is None and RobotStateLayout.EE_GRIPPER in states:
            fingers = states[RobotStateLayout.EE_GRIPPER][:, -2:]
        if fingers is not None and fingers.shape[1] == 2:
            states[RobotStateLayout.JOINT_GRIPPER] = np.concatenate([joints, fingers], axis=1)
    if not states:
        found = "none" if state is None else f"{state.shape[1]} numbers"
        raise UserError(
            f"{source}: '{STATE_KEY}' has {found}; expected 8 (ee_gripper) or 9 (joint_gripper), "
            f"or '{JOINT_KEY}' with '{GRIPPER_KEY}'"
        )
    return states


def _camera_name(key: str) -> str:
    name = key.removeprefix(IMAGE_PREFIX)
    return CAMERA_NAMES.get(name, name)


def _read_info(path: Path) -> dict[str, Any]:
    file = path / INFO_PATH
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"data {path}: no {INFO_PATH}; expected the folder of a LeRobotDataset v3") from None
    except (OSError, ValueError) as error:
        raise UserError(f"data {file}: not readable as JSON ({one_line(error)})") from None
    version = str(info.get("codebase_version", "none"))
    if not version.startswith("v3"):
        raise UserError(
            f"data {file}: codebase_version {version}, expected v3.0; convert it with LeRobot's v3 converter"
        )
    for key in ("features", "fps", "data_path"):
        if key not in info:
            raise UserError(f"data {file}: no '{key}'; expected LeRobotDataset v3")
    return info


def _read_tasks(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path / TASKS_PATH).to_pydict()
    except Exception as error:
        raise UserError(f"data {path / TASKS_PATH}: not readable ({one_line(error)}); download it again") from None
    return next((column for column in table.values() if column and isinstance(column[0], str)), [])


FORMAT = DataFormat("lerobot", lambda path: (path / INFO_PATH).is_file(), LeRobotReader)
