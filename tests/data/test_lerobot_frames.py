"""Rows, frames, tasks and episodes of LeRobotDatasets find each other, or an error says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lerobot_files import Dataset, Episode, level, write_dataset
from statevla.data import open_reader
from statevla.data.episodes import task_name
from statevla.errors import UserError

both_versions = pytest.mark.parametrize("version", ["v2.1", "v3.0"])


def episode(count: int, **more: object) -> Episode:
    """Actions that count: step k of an episode acts k."""
    numbers = np.arange(count, dtype=np.float64)[:, None]
    return Episode({"observation.state": numbers + 100, "action": numbers}, **more)  # type: ignore[arg-type]


def frames_of(root: Path, index: int) -> list[int]:
    """Which frame of its episode each row of entry `index` got, out of the brightness of frames; errors show."""
    reader = open_reader(root)
    number = int(reader.episodes[index].episode_id[8:14])
    means = reader.read(index).images["top"].mean(axis=(1, 2, 3))
    return np.round((means - level(number, 0)) / (level(0, 1) - level(0, 0))).astype(int).tolist()


@both_versions
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1"])
def test_codecs(tmp_path: Path, version: str, codec: str) -> None:
    data = Dataset({}, [episode(9), episode(7)], version=version, codec=codec)
    root = write_dataset(tmp_path / "x", data)
    assert frames_of(root, 0) == list(range(9))
    assert frames_of(root, 1) == list(range(7))


@both_versions
def test_pictures_in_the_rows(tmp_path: Path, version: str) -> None:
    root = write_dataset(tmp_path / "x", Dataset({}, [episode(4), episode(3)], version=version, pictures=True))
    assert frames_of(root, 1) == [0, 1, 2]


@both_versions
def test_frames_are_taken_by_time(tmp_path: Path, version: str) -> None:
    """Rows that were dropped leave a gap in time, and their frames in the video."""
    first = episode(6, times_s=[0, 0.1, 0.2, 0.6, 0.7, 0.8], video_length=9)
    second = episode(6, times_s=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], frame_index=[1, 2, 3, 5, 6, 7], video_length=8)
    root = write_dataset(tmp_path / "x", Dataset({}, [first, second], version=version))
    assert frames_of(root, 0) == [0, 1, 2, 6, 7, 8]
    assert frames_of(root, 1) == [1, 2, 3, 4, 5, 6]


@both_versions
def test_rows_are_put_in_order(tmp_path: Path, version: str) -> None:
    order = np.array([2, 0, 3, 1, 4])
    shuffled = episode(5, frame_index=order.tolist())
    shuffled.columns["action"] = order[:, None].astype(float)
    root = write_dataset(tmp_path / "x", Dataset({}, [shuffled], version=version))
    assert open_reader(root).read(0).actions[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert frames_of(root, 0) == [0, 1, 2, 3, 4]


@both_versions
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"frame_index": [0, 1, 1, 2, 3]}, "'frame_index' goes from 1 to 1 at row 2"),
        ({"times_s": [0, 0.1, 0.2, 0.1, 0.4]}, "'timestamp' goes from 0.2 to 0.1 at row 3"),
        ({"times_s": [0, 0.1, float("nan"), 0.3, 0.4]}, "'timestamp' goes from 0.1 to nan"),
        ({"times_s": [0, 0.05, 0.1, 0.15, 0.2]}, "time stamps lie 0.0500 s apart, fps 10"),
        ({"video_length": 3}, "0.30 s long, its rows reach 0.40 s|has 3 of the 5 frames"),
    ],
)
def test_rows_that_cannot_be_placed(tmp_path: Path, version: str, more: dict, words: str) -> None:
    """Never the next episode's frame."""
    root = write_dataset(tmp_path / "x", Dataset({}, [episode(5, **more), episode(6)], version=version))
    with pytest.raises(UserError, match=words):
        open_reader(root).read(0)
    assert frames_of(root, 1) == list(range(6))


@pytest.mark.parametrize("length", [3, 4])
def test_the_part_of_the_next_episode_is_not_taken(tmp_path: Path, length: int) -> None:
    """The video goes on after the episode's part, with somebody else's frames; one frame short is short."""
    root = write_dataset(tmp_path / "x", Dataset({}, [episode(5, video_length=length), episode(6)]))
    with pytest.raises(
        UserError, match=rf"its part of video .* is 0\.{length}0 s long, its rows reach 0\.40 s at 10 Hz"
    ):
        open_reader(root).read(0)
    assert frames_of(root, 1) == list(range(6))


@both_versions
def test_an_empty_episode_is_called_so(tmp_path: Path, version: str) -> None:
    root = write_dataset(tmp_path / "x", Dataset({}, [episode(5), episode(4)], version=version))
    if version == "v2.1":
        file = root / "meta/episodes.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines[1]["length"] = 0
        file.write_text("\n".join(map(json.dumps, lines)))
    else:
        file = root / "meta/episodes/chunk-000/file-000.parquet"
        table = pq.read_table(file)
        pq.write_table(table.set_column(table.column_names.index("length"), "length", pa.array([5, 0])), file)
    with pytest.raises(UserError, match="episode 1 has length 0, it was recorded without a frame; delete it"):
        open_reader(root)


@both_versions
def test_several_tasks_in_an_episode(tmp_path: Path, version: str) -> None:
    tasks = ["reach", "reach", "reach", "grasp", "lift", "lift", "reach", "reach"]
    data = Dataset({}, [episode(4), episode(8, tasks=tasks)], version=version)
    root = write_dataset(tmp_path / "x", data)
    reader = open_reader(root)
    assert [(e.episode_id, e.instruction, e.num_steps) for e in reader.episodes] == [
        ("episode_000000", "push the block", 4),
        ("episode_000001[0:3]", "reach", 3),
        ("episode_000001[4:6]", "lift", 2),
        ("episode_000001[6:8]", "reach", 2),
    ]
    assert reader.read(2).actions[:, 0].tolist() == [4, 5]
    assert reader.read(2).robot_states["state"][:, 0].tolist() == [104, 105]
    assert frames_of(root, 2) == [4, 5]
    assert frames_of(root, 3) == [6, 7]
    notes = " | ".join(reader.notes)
    assert "episodes that hold several tasks: 1; each is read as several" in notes
    assert "stretches of a single step are left out: episode_000001[3:4]" in notes


@both_versions
def test_the_table_of_tasks_is_believed(tmp_path: Path, version: str) -> None:
    """The list of episodes names the other task; the rows' task_index says which it is."""
    data = Dataset({}, [episode(4, tasks="pull"), episode(4, tasks="push", listed_tasks=["pull"])], version=version)
    reader = open_reader(write_dataset(tmp_path / "x", data))
    assert [e.instruction for e in reader.episodes] == ["pull", "push"]
    assert "meta/episodes names another task than the rows of 1 episodes" in " | ".join(reader.notes)


def test_the_table_of_tasks_under_another_name(tmp_path: Path) -> None:
    """Its index may have any name; without it, the list of episodes says what the task is."""
    data = Dataset({}, [episode(4, tasks="pull"), episode(4, tasks="push")])
    root = write_dataset(tmp_path / "x", data)
    file = root / "meta/tasks.parquet"
    pq.write_table(pq.read_table(file).rename_columns(["task_index", "task"]), file)
    assert [e.instruction for e in open_reader(root).episodes] == ["pull", "push"]
    file.rename(file.with_name("old_tasks.parquet"))
    assert [e.instruction for e in open_reader(root).episodes] == ["pull", "push"]


@both_versions
def test_instructions_in_any_script_and_length(tmp_path: Path, version: str) -> None:
    texts = ["拿起红色的积木", "推动绿色的积木", "lift " * 50, "lift " * 49]
    data = Dataset({}, [episode(3, tasks=text) for text in texts], version=version)
    reader = open_reader(write_dataset(tmp_path / "x", data))
    assert [e.instruction for e in reader.episodes] == [" ".join(text.split()) for text in texts]
    names = {e.task for e in reader.episodes}
    assert len(names) == 4
    assert all(len(name) <= 100 and name.isascii() for name in names)


def test_task_names() -> None:
    assert task_name("Pick up the cup!") == "pick_up_the_cup"
    assert task_name("öffne die Tür") != task_name("offne die Tur")
    assert task_name("../../outside") == "outside"


def test_sixteen_bit_pictures_are_not_cut_to_eight(tmp_path: Path) -> None:
    import av

    root = write_dataset(tmp_path / "x", Dataset({}, [episode(2)], pictures=True))
    codec: Any = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 8, 8, "gray16be", Fraction(1, 10)
    grey = av.VideoFrame.from_ndarray(np.full((8, 8), 40_000, np.uint16), format="gray16le")
    png = b"".join(bytes(packet) for packet in [*codec.encode(grey.reformat(format="gray16be")), *codec.encode(None)])
    _replace(root, lambda: pa.array([{"bytes": png, "path": None}] * 2))
    with pytest.raises(UserError, match=r"frames are gray16be, not colours.*mark the feature as a depth map"):
        open_reader(root).read(0)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"bytes": None, "path": "../../../etc/passwd"}, "outside of its own folder"),
        ({"bytes": None, "path": "missing.png"}, "picture of step 0 not readable"),
        ({"bytes": b"no picture", "path": None}, "picture of step 0 not readable"),
    ],
)
def test_pictures_that_are_not_there(tmp_path: Path, value: dict, words: str) -> None:
    root = write_dataset(tmp_path / "x", Dataset({}, [episode(2)], pictures=True))
    _replace(root, lambda: pa.array([value] * 2, pa.struct({"bytes": pa.binary(), "path": pa.string()})))
    with pytest.raises(UserError, match=words):
        open_reader(root).read(0)


def _replace(root: Path, column: Callable[[], pa.Array]) -> None:
    file = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    name = "observation.images.top"
    pq.write_table(table.set_column(table.column_names.index(name), name, column()), file)
