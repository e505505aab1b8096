"""LeRobotDataset v3: written and read back, other people's variants, and broken ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from libero_files import smooth_episode, write_official_file
from statevla.data import open_reader
from statevla.data import write_lerobot as writer_module
from statevla.data.convert import convert
from statevla.errors import UserError
from statevla.transforms import to_upright
from statevla.types import ImageOrientation, RobotStateLayout


@pytest.fixture(scope="module")
def converted(libero_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(libero_dir, tmp_path_factory.mktemp("lerobot") / "blocks", "lerobot")


@pytest.fixture
def own(converted: Path, tmp_path: Path) -> Path:
    return shutil.copytree(converted, tmp_path / "own")


def test_what_is_written_is_read_back(libero_dir: Path, converted: Path) -> None:
    offsets: dict[int, list[float]] = {-1: [], 0: [], 1: []}
    with open_reader(libero_dir) as source, open_reader(converted) as reader:
        assert reader.orientation is ImageOrientation.MIRRORED
        assert reader.cameras == ("agentview", "eye_in_hand")
        assert not reader.notes
        for index, (a, b) in enumerate(zip(source.episodes, reader.episodes, strict=True)):
            assert (a.task, a.instruction, a.num_steps, a.fps) == (b.task, b.instruction, b.num_steps, b.fps)
            x, y = source.read(index), reader.read(index)
            np.testing.assert_array_equal(x.actions, y.actions)
            for layout in RobotStateLayout:
                np.testing.assert_array_equal(x.robot_states[layout], y.robot_states[layout])
            np.testing.assert_array_equal(x.object_poses, y.object_poses)
            assert x.object_names == y.object_names
            for camera in reader.cameras:
                was = to_upright(x.images[camera], x.orientation).astype(int)
                now = to_upright(y.images[camera], y.orientation).astype(int)
                distance = np.abs(was[:, None] - now[None]).mean(axis=(2, 3, 4))
                assert distance.diagonal().max() < 4
                for offset in offsets:
                    offsets[offset].append(float(np.diagonal(distance, offset).mean()))
    # A video off by one frame would be nearer to its neighbours than to itself.
    mean = {offset: np.mean(distances) for offset, distances in offsets.items()}
    assert mean[0] < min(mean[-1], mean[1]) - 0.05


def test_metadata(converted: Path, libero_dir: Path) -> None:
    info = json.loads((converted / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert info["statevla"] == {"image_orientation": "mirrored"}
    assert (info["total_episodes"], info["total_tasks"], info["fps"]) == (9, 2, 20)
    assert info["features"]["observation.state"]["shape"] == [8]
    assert info["features"]["observation.images.image"]["shape"] == [64, 64, 3]
    stats = json.loads((converted / "meta/stats.json").read_text())
    with open_reader(libero_dir) as reader:
        episodes = [reader.read(i) for i in range(9)]
    actions = np.concatenate([e.actions for e in episodes]).astype(np.float64)
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0), atol=1e-6)
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(actions, 0.99, axis=0), atol=1e-6)
    assert stats["action"]["count"] == [info["total_frames"]]
    frames = np.concatenate([e.images["agentview"] for e in episodes]).reshape(-1, 3) / 255
    np.testing.assert_allclose(np.ravel(stats["observation.images.image"]["mean"]), frames.mean(0), atol=1e-6)
    np.testing.assert_allclose(np.ravel(stats["observation.images.image"]["std"]), frames.std(0), atol=1e-6)
    q50 = np.quantile(frames, 0.5, axis=0)
    np.testing.assert_allclose(np.ravel(stats["observation.images.image"]["q50"]), q50, atol=1.1 / 255)
    rows = pq.read_table(converted / "data/chunk-000/file-000.parquet").to_pydict()
    assert rows["index"] == list(range(info["total_frames"]))
    tasks = pq.read_table(converted / "meta/tasks.parquet").to_pydict()
    assert tasks["__index_level_0__"] == ["pick up the red block", "push the green block to the left"]


def test_there_and_back_again(libero_dir: Path, converted: Path, tmp_path: Path) -> None:
    back = convert(converted, tmp_path / "back", "libero")
    assert sorted(p.name for p in back.iterdir()) == sorted(p.name for p in libero_dir.iterdir())
    with open_reader(libero_dir) as source, open_reader(back) as reader:
        assert not reader.notes
        for index in range(9):
            x, y = source.read(index), reader.read(index)
            np.testing.assert_array_equal(x.actions, y.actions)
            for layout in RobotStateLayout:
                np.testing.assert_array_equal(x.robot_states[layout], y.robot_states[layout])
            assert np.abs(x.images["agentview"].astype(int) - y.images["agentview"]).mean() < 4
    with h5py.File(next(iter(sorted(back.iterdir()))), "r") as file:
        data = file["data"]
        assert data.attrs["num_demos"] == 5
        assert data.attrs["total"] == sum(len(data[key]["actions"]) for key in data)
        obs = data["demo_0/obs"]
        assert obs["agentview_rgb"].dtype == np.uint8
        np.testing.assert_array_equal(obs["ee_pos"], obs["ee_states"][:, :3])
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == "pick up the red block"


def test_executed_actions_and_lone_joint_states(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "source" / "lift_demo.hdf5"
    path.parent.mkdir()
    write_official_file(path, "lift", [smooth_episode(rng, 9, 32, (9, 200, 9))])
    with h5py.File(path, "a") as file:
        demo = file["data/demo_0"]
        demo["executed_actions"] = demo["actions"][()] * 0.5
        for key in ("ee_states", "ee_pos", "ee_ori", "object_states"):
            del demo["obs"][key]
    arrays = open_reader(convert(path, tmp_path / "out", "lerobot")).read(0)
    np.testing.assert_allclose(arrays.executed_actions, arrays.actions * 0.5, rtol=1e-6)
    assert list(arrays.robot_states) == [RobotStateLayout.JOINT_GRIPPER]
    assert arrays.object_poses is None


def test_videos_are_split_when_they_grow(libero_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_VIDEO_MB", -1)
    monkeypatch.setattr(writer_module, "_CHUNK", 2)
    folder = convert(libero_dir, tmp_path / "out", "lerobot")
    videos = sorted((folder / "videos/observation.images.image").rglob("*.mp4"))
    assert len(videos) > 3
    assert {v.parent.name for v in videos} >= {"chunk-000", "chunk-001"}
    with open_reader(libero_dir) as source, open_reader(folder) as reader:
        for index in (0, 4, 8):
            was, now = source.read(index), reader.read(index)
            a = to_upright(was.images["agentview"], was.orientation).astype(int)
            assert np.abs(a - to_upright(now.images["agentview"], now.orientation)).mean() < 4


def _rewrite_info(root: Path, **changes: object) -> None:
    file = root / "meta/info.json"
    info = json.loads(file.read_text())
    for key, value in changes.items():
        info.pop(key) if value is None else info.update({key: value})
    file.write_text(json.dumps(info))


def test_undeclared_orientation_follows_custom_and_says_so(own: Path) -> None:
    _rewrite_info(own, statevla=None)
    reader = open_reader(own)
    assert reader.orientation is ImageOrientation.MIRRORED
    assert "declares no orientation" in reader.notes[0]
    assert open_reader(own, orientation="upright").orientation is ImageOrientation.UPRIGHT
    _rewrite_info(own, statevla={"image_orientation": "tilted"})
    with pytest.raises(UserError, match="image_orientation 'tilted', expected one of upright"):
        open_reader(own)


def test_pictures_inside_the_parquet(own: Path) -> None:
    """`dtype: image`, as in lerobot/libero_10_image: PNG bytes in the rows."""
    import io

    from matplotlib import image

    with open_reader(own) as reader:
        expected = [reader.read(i, ["agentview"]).images["agentview"] for i in range(9)]

    def png(frame: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        image.imsave(buffer, frame, format="png")
        return buffer.getvalue()

    file = own / "data/chunk-000/file-000.parquet"
    rows = [{"bytes": png(frame), "path": None} for episode in expected for frame in episode]
    pq.write_table(pq.read_table(file).append_column("observation.images.image", pa.array(rows)), file)
    info = json.loads((own / "meta/info.json").read_text())
    info["features"]["observation.images.image"]["dtype"] = "image"
    _rewrite_info(own, features=info["features"])
    arrays = open_reader(own).read(6, ["agentview"])
    np.testing.assert_array_equal(arrays.images["agentview"], expected[6])


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("version", ["codebase_version v2.1", "expected v3.0"]),
        ("json", ["info.json", "not readable as JSON"]),
        ("no_action", ["no feature 'action'"]),
        ("no_episodes", ["no meta/episodes"]),
        ("bad_episodes", ["meta/episodes", "not readable"]),
        ("data", ["episode_000001", "not readable"]),
        ("video", ["episode_000001", "file-000.mp4", "not readable"]),
        ("no_video", ["episode_000001", "file-000.mp4", "not readable"]),
        ("fps", ["episode_000001", "frames from"]),
        ("nan", ["episode_000001", "actions has NaN or infinite values at step 0"]),
        ("short", ["episode_000001", "rows in file-000.parquet, expected"]),
    ],
)
def test_broken_data_sets_give_one_line(own: Path, how: str, words: list[str]) -> None:
    data = own / "data/chunk-000/file-000.parquet"
    video = own / "videos/observation.images.image/chunk-000/file-000.mp4"
    if how == "version":
        _rewrite_info(own, codebase_version="v2.1")
    elif how == "json":
        (own / "meta/info.json").write_text("{")
    elif how == "no_action":
        _rewrite_info(own, features={})
    elif how == "no_episodes":
        shutil.rmtree(own / "meta/episodes")
    elif how == "bad_episodes":
        _truncate(own / "meta/episodes/chunk-000/file-000.parquet")
    elif how == "data":
        _truncate(data)
    elif how == "video":
        _truncate(video)
    elif how == "no_video":
        video.unlink()
    elif how == "fps":
        _rewrite_info(own, fps=50)
    else:
        table = pq.read_table(data)
        if how == "nan":
            actions = [[float("nan")] * 7] * len(table)
            column = pa.array(actions, pa.list_(pa.float32(), 7))
            table = table.set_column(table.column_names.index("action"), "action", column)
        else:
            table = table.slice(0, 40)
        pq.write_table(table, data)
    with pytest.raises(UserError) as caught:
        open_reader(own).read(1)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_conversion_errors(libero_dir: Path, converted: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        convert(libero_dir, converted, "lerobot")
    with pytest.raises(UserError, match="is in format 'libero' already"):
        convert(libero_dir, tmp_path / "x", "libero")
    with pytest.raises(UserError, match="format 'rlds', expected one of libero, lerobot"):
        convert(libero_dir, tmp_path / "x", "rlds")
    rng = np.random.default_rng(0)
    odd = tmp_path / "odd"
    odd.mkdir()
    write_official_file(odd / "odd_demo.hdf5", "odd", [smooth_episode(rng, 6, 33, (9, 9, 9))])
    with pytest.raises(UserError, match="33x33 px; MP4 needs even numbers"):
        convert(odd, tmp_path / "y", "lerobot")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for size in (32, 34):
        write_official_file(mixed / f"s{size}_demo.hdf5", f"s{size}", [smooth_episode(rng, 6, size, (9, 9, 9))])
    with pytest.raises(UserError, match="convert them separately"):
        convert(mixed, tmp_path / "z", "lerobot")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".") or p.name in "xyz"]


def test_a_failed_conversion_leaves_nothing_behind(libero_dir: Path, own: Path, tmp_path: Path) -> None:
    data = own / "data/chunk-000/file-000.parquet"
    table = pq.read_table(data)
    actions = table.column("action").to_pylist()
    actions[-1] = [float("nan")] * 7  # in the last episode of the second task
    column = pa.array(actions, pa.list_(pa.float32(), 7))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), data)
    with pytest.raises(UserError, match="episode_000008: actions has NaN"):
        convert(own, tmp_path / "out", "libero")
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_package_names_the_extra(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"package pyarrow; pip install 'statevla\[lerobot-data\]'"):
        open_reader(converted)
