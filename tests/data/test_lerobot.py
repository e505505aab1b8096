"""LeRobotDataset v3 as our writer makes it: written and read back, and broken."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lerobot_files import png, rewrite_info, some_episodes, undeclare
from libero_files import smooth_episode, write_official_file
from statevla.data import EpisodeArrays, EpisodeReader, open_reader
from statevla.data import write_lerobot as writer_module
from statevla.data.convert import convert
from statevla.data.lerobot_checksums import CHECKSUMS_PATH
from statevla.data.write_libero import write_libero
from statevla.errors import UserError
from statevla.robots import KNOWN_ROBOTS, LIBERO, LIBERO_HAND, ImageOrientation, RobotSpec
from statevla.transforms import to_upright

SO101 = KNOWN_ROBOTS["so101"]


def upright(reader: EpisodeReader, arrays: EpisodeArrays, camera: str) -> np.ndarray:
    return to_upright(arrays.images[camera], reader.robot.camera(camera).orientation).astype(int)


def test_what_is_written_is_read_back(libero_dir: Path, converted: Path) -> None:
    offsets: dict[int, list[float]] = {-1: [], 0: [], 1: []}
    with open_reader(libero_dir) as source, open_reader(converted) as reader:
        assert {camera.orientation for camera in reader.robot.cameras} == {ImageOrientation.MIRRORED}
        assert source.robot.difference(reader.robot) is None
        assert reader.cameras == ("agentview", "eye_in_hand")
        assert not reader.notes
        for index, (a, b) in enumerate(zip(source.episodes, reader.episodes, strict=True)):
            assert (a.task, a.instruction, a.num_steps, a.fps) == (b.task, b.instruction, b.num_steps, b.fps)
            x, y = source.read(index), reader.read(index)
            np.testing.assert_array_equal(x.actions, y.actions)
            assert list(x.robot_states) == list(y.robot_states) == [field.name for field in LIBERO.state]
            for name, values in x.robot_states.items():
                np.testing.assert_array_equal(values, y.robot_states[name])
            np.testing.assert_array_equal(x.object_poses, y.object_poses)
            assert x.object_names == y.object_names
            for camera in reader.cameras:
                was = upright(source, x, camera)
                now = upright(reader, y, camera)
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
    declared = RobotSpec.from_dict(info["statevla"]["robot"], "test")
    assert declared.difference(LIBERO) is None
    assert declared.camera("eye_in_hand").key == "observation.images.image2"
    assert info["robot_type"] == "libero"
    assert info["features"]["action"]["names"] == ["x", "y", "z", "rx", "ry", "rz", "gripper"]
    assert info["features"]["observation.state"]["names"] == ["x", "y", "z", "rx", "ry", "rz", "left", "right"]
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
    # Frames, not pixels: LeRobot weighs by it what it joins.
    assert stats["observation.images.image"]["count"] == [info["total_frames"]]
    table = pq.read_table(converted / "meta/episodes/chunk-000/file-000.parquet").to_pydict()
    assert table["stats/observation.images.image/count"] == [[length] for length in table["length"]]
    q50 = np.quantile(frames, 0.5, axis=0)
    np.testing.assert_allclose(np.ravel(stats["observation.images.image"]["q50"]), q50, atol=1.1 / 255)
    rows = pq.read_table(converted / "data/chunk-000/file-000.parquet").to_pydict()
    assert rows["index"] == list(range(info["total_frames"]))
    tasks = pq.read_table(converted / "meta/tasks.parquet").to_pydict()
    assert tasks["__index_level_0__"] == ["pick up the red block", "push the green block to the left"]


def test_the_card_is_lerobots(converted: Path) -> None:
    """Front matter as LeRobot's own tools write it, parsed by the hub's library; people may write on it."""
    hub = pytest.importorskip("huggingface_hub")
    card = hub.DatasetCard.load(converted / "README.md", ignore_metadata_errors=False)
    assert card.data.to_dict() == {
        "task_categories": ["robotics"],
        "tags": ["LeRobot"],
        "configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}],
    }
    info = json.loads((converted / "meta/info.json").read_text())
    for line in (
        f"- 9 episodes, {info['total_frames']} frames, 20 a second",
        "    - `gripper`: gripper: binary, -1 (off) or 1 (on), gripper",
        "    - `agentview` in `observation.images.image`: stored mirrored; a frame that is not square gets bars",
        "    - `finger_positions` in `observation.states.gripper_state`: left, right (m): gripper opening",
        "- tasks, 2:",
        "    - pick up the red block",
    ):
        assert f"\n{line}\n" in card.text
    assert "README.md" not in json.loads((converted / CHECKSUMS_PATH).read_text())


def test_there_and_back_again(libero_dir: Path, converted: Path, tmp_path: Path) -> None:
    back = convert(converted, tmp_path / "back", "libero")
    assert sorted(p.name for p in back.iterdir()) == sorted(p.name for p in libero_dir.iterdir())
    with open_reader(libero_dir) as source, open_reader(back) as reader:
        assert not reader.notes
        for index in range(9):
            x, y = source.read(index), reader.read(index)
            np.testing.assert_array_equal(x.actions, y.actions)
            for name, values in x.robot_states.items():
                np.testing.assert_array_equal(values, y.robot_states[name])
            assert np.abs(x.images["agentview"].astype(int) - y.images["agentview"]).mean() < 4
    with h5py.File(next(iter(sorted(back.iterdir()))), "r") as file:
        data = file["data"]
        assert data.attrs["num_demos"] == 5
        assert data.attrs["total"] == sum(len(data[key]["actions"]) for key in data)
        obs = data["demo_0/obs"]
        assert obs["agentview_rgb"].dtype == np.uint8
        np.testing.assert_array_equal(obs["ee_pos"], obs["ee_states"][:, :3])
        states = {"joint_states", "gripper_states", "ee_states", "ee_pos", "ee_ori"}
        assert set(obs) == states | {"agentview_rgb", "eye_in_hand_rgb", "object_states"}
        assert data.attrs["image_orientation"] == "flipped_vertically"
        assert RobotSpec.from_dict(json.loads(data.attrs["robot"]), "test").difference(LIBERO) is None
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
    assert list(arrays.robot_states) == ["joint_positions", "finger_positions"]
    assert arrays.object_poses is None


def test_videos_are_split_when_they_grow(libero_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "VIDEO_FILE_MB", -1)
    monkeypatch.setattr(writer_module, "FILES_PER_CHUNK", 2)
    folder = convert(libero_dir, tmp_path / "out", "lerobot")
    videos = sorted((folder / "videos/observation.images.image").rglob("*.mp4"))
    assert len(videos) > 3
    assert {v.parent.name for v in videos} >= {"chunk-000", "chunk-001"}
    with open_reader(libero_dir) as source, open_reader(folder) as reader:
        for index in (0, 4, 8):
            was, now = source.read(index), reader.read(index)
            distance = upright(source, was, "agentview") - upright(reader, now, "agentview")
            assert np.abs(distance).mean() < 4


def test_pictures_inside_the_parquet(own: Path) -> None:
    """`dtype: image`, as in lerobot/libero_10_image: PNG bytes in the rows."""
    with open_reader(own) as reader:
        expected = [reader.read(i, ["agentview"]).images["agentview"] for i in range(9)]

    file = own / "data/chunk-000/file-000.parquet"
    rows = [{"bytes": png(frame), "path": None} for episode in expected for frame in episode]
    pq.write_table(pq.read_table(file).append_column("observation.images.image", pa.array(rows)), file)
    info = json.loads((own / "meta/info.json").read_text())
    info["features"]["observation.images.image"]["dtype"] = "image"
    rewrite_info(own, features=info["features"])
    arrays = open_reader(own).read(6, ["agentview"])
    np.testing.assert_array_equal(arrays.images["agentview"], expected[6])


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("version", ["codebase_version v1.6", "expected v2.0, v2.1 or v3.0"]),
        ("json", ["info.json", "not readable as JSON"]),
        ("no_action", ["no feature 'action'"]),
        ("no_episodes", ["no meta/episodes"]),
        ("bad_episodes", ["meta/episodes", "not readable"]),
        ("data", ["episode_000001", "not readable"]),
        ("video", ["episode_000001", "file-000.mp4", "not readable"]),
        ("no_video", ["episode_000001", "file-000.mp4", "not readable"]),
        ("fps", ["'libero' declares 20 Hz, fps is 50"]),
        ("fps_of_rows", ["episode_000001", "time stamps lie 0.0500 s apart, fps 50"]),
        ("longer_actions", ["'action' has 8 numbers", "'libero' declares 7", "hand (6 continuous, delta)"]),
        ("outside", ["refers to '../../elsewhere", "outside of its own folder"]),
        ("declaration", ["statevla.robot", "actions: field required; add it"]),
        ("nan", ["episode_000001", "actions has NaN or infinite values at step 0"]),
        ("short", ["episode_000001", "rows in file-000.parquet, expected"]),
    ],
)
def test_broken_data_sets_give_one_line(own: Path, how: str, words: list[str]) -> None:
    data = own / "data/chunk-000/file-000.parquet"
    video = own / "videos/observation.images.image/chunk-000/file-000.mp4"
    if how == "version":
        rewrite_info(own, codebase_version="v1.6")
    elif how == "json":
        (own / "meta/info.json").write_text("{")
    elif how == "no_action":
        rewrite_info(own, features={})
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
        rewrite_info(own, fps=50)
    elif how == "fps_of_rows":
        undeclare(own)
        rewrite_info(own, fps=50, statevla={"image_orientation": "mirrored"})
    elif how == "longer_actions":
        features = json.loads((own / "meta/info.json").read_text())["features"]
        rewrite_info(own, features=features | {"action": {"dtype": "float32", "shape": [8], "names": None}})
    elif how == "outside":
        rewrite_info(own, data_path="../../elsewhere/{chunk_index}-{file_index}.parquet")
    elif how == "declaration":
        undeclare(own)
        rewrite_info(own, statevla={"robot": {"name": "x", "control_freq_hz": 20}})
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


def test_the_hand_robot_is_declared_as_such(libero_dir: Path, tmp_path: Path) -> None:
    folder = convert(libero_dir, tmp_path / "hand", "lerobot", robot="libero_hand")
    with open_reader(libero_dir, robot="libero_hand") as source, open_reader(folder) as reader:
        assert reader.robot.difference(LIBERO_HAND) is None
        x, y = source.read(3).robot_states, reader.read(3).robot_states
        assert list(x) == list(y) == ["hand_position", "hand_orientation", "finger_positions", "joint_positions"]
        for name, values in x.items():
            np.testing.assert_array_equal(values, y[name])


def test_another_robot_there_and_back_again(tmp_path: Path) -> None:
    """Names, groups, roles, units and what the policy does not see survive both formats."""
    gripper = SO101.state[1].model_copy(update={"policy": False})
    robot = SO101.model_copy(update={"state": (SO101.state[0], gripper)})
    episodes = some_episodes(robot, "stack")
    folder = writer_module.write_lerobot(tmp_path / "arm", robot, episodes)
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["robot_type"], info["fps"]) == ("so101", 30)
    assert info["features"]["action"]["names"] == list(robot.action_names)
    assert info["features"]["observation.state"]["names"] == list(robot.state_names)
    assert info["features"]["observation.states.gripper"]["shape"] == [1]
    back = convert(folder, tmp_path / "back", "libero")
    for path, form in ((folder, "lerobot"), (back, "libero")):
        with open_reader(path) as reader:
            assert (reader.format, reader.notes) == (form, [])
            assert reader.robot.actions == robot.actions
            assert [f.model_copy(update={"key": None}) for f in reader.robot.state] == list(robot.state)
            assert reader.robot.difference(robot) is None
            assert reader.robot.camera("front").orientation is ImageOrientation.UPRIGHT
            for index, (info_was, was) in enumerate(episodes):
                now = reader.read(index)
                assert reader.episodes[index].instruction == info_was.instruction
                np.testing.assert_array_equal(was.actions, now.actions)
                for name, values in was.robot_states.items():
                    np.testing.assert_array_equal(values, now.robot_states[name])
                assert np.abs(was.images["front"].astype(int) - now.images["front"]).mean() < 4


def test_a_failure_stays_one(tmp_path: Path) -> None:
    episodes = [(info, replace(arrays, success=info.episode_id == "e1")) for info, arrays in some_episodes(SO101, "x")]
    (file,) = write_libero(tmp_path / "out", SO101, episodes)
    with open_reader(file) as reader:
        assert [reader.read(index).success for index in range(2)] == [False, True]


@pytest.mark.parametrize("task", ["../../outside", "/tmp/outside", "积木", "x" * 250, "a\0b"])
def test_names_out_of_the_data_are_no_paths(tmp_path: Path, task: str) -> None:
    written = write_libero(tmp_path / "a" / "out", SO101, some_episodes(SO101, task))
    assert [path.parent for path in written] == [tmp_path / "a" / "out"]
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == written


def test_a_failed_conversion_leaves_nothing_behind(libero_dir: Path, own: Path, tmp_path: Path) -> None:
    data = own / "data/chunk-000/file-000.parquet"
    table = pq.read_table(data)
    actions = table.column("action").to_pylist()
    actions[-1] = [float("nan")] * 7  # in the last episode of the second task
    column = pa.array(actions, pa.list_(pa.float32(), 7))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), data)
    with pytest.raises(UserError, match="episode_000008: actions has NaN"):
        convert(own, tmp_path / "out", "libero")
    assert not list(tmp_path.rglob("*out*"))


def test_a_missing_package_names_the_extra(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"package pyarrow; pip install 'statevla\[lerobot-data\]'"):
        open_reader(converted)
