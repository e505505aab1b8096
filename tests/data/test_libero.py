"""LIBERO's HDF5 layout: what is read, and what is said of broken files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from libero_files import smooth_episode, write_official_file
from statevla.data import EpisodeReader, open_reader
from statevla.errors import UserError
from statevla.robots import LIBERO, ImageOrientation, RobotSpec
from statevla.transforms import to_upright


@pytest.fixture
def episodes() -> list[dict]:
    rng = np.random.default_rng(1)
    return [smooth_episode(rng, steps, 32, (200, 10, 10)) for steps in (12, 9)]


@pytest.fixture
def good_file(tmp_path: Path, episodes: list[dict]) -> Path:
    path = tmp_path / "lift_the_block_demo.hdf5"
    write_official_file(path, "lift  the block ", episodes)
    return path


def test_reads_everything_upright(good_file: Path, episodes: list[dict]) -> None:
    with open_reader(good_file) as reader:
        assert [e.num_steps for e in reader.episodes] == [12, 9]
        assert reader.episodes[0].episode_id == "lift_the_block_demo.hdf5/demo_0"
        assert reader.episodes[0].instruction == "lift the block"
        assert reader.cameras == ("agentview", "eye_in_hand")
        arrays = reader.read(1)
        assert reader.robot.difference(LIBERO) is None
    for number, camera in enumerate(("agentview", "eye_in_hand")):
        assert reader.robot.camera(camera).orientation is ImageOrientation.FLIPPED_VERTICALLY
        np.testing.assert_array_equal(arrays.images[camera][:, ::-1], episodes[1]["images"][number])
    np.testing.assert_allclose(arrays.actions, episodes[1]["actions"], rtol=1e-6)
    states = arrays.robot_states
    np.testing.assert_allclose(states["joint_positions"], episodes[1]["joint_states"], rtol=1e-6)
    np.testing.assert_allclose(states["finger_positions"], episodes[1]["gripper_states"], rtol=1e-6)
    np.testing.assert_allclose(states["hand_position"], episodes[1]["ee_states"][:, :3], rtol=1e-6)
    np.testing.assert_allclose(states["hand_orientation"], episodes[1]["ee_states"][:, 3:], rtol=1e-6)
    assert arrays.object_names == ("block_1",)
    np.testing.assert_allclose(arrays.object_poses, episodes[1]["object_states"], rtol=1e-6)


def test_demos_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "many_demo.hdf5"
    write_official_file(path, "many", [smooth_episode(rng, 4 + i, 16, (9, 9, 9)) for i in range(11)])
    assert [e.num_steps for e in open_reader(path).episodes] == list(range(4, 15))


def test_observations_that_follow_their_action_are_moved_by_one_step(tmp_path: Path, episodes: list[dict]) -> None:
    path = tmp_path / "after_demo.hdf5"
    write_official_file(path, "after", episodes, after_action=True)
    with open_reader(path) as reader:
        arrays = reader.read(0)
        assert "moved by one step" in " ".join(reader.notes)
    # The pairs that are left are those of the same episode recorded the right way round, but for its first and last.
    np.testing.assert_allclose(arrays.actions, episodes[0]["actions"][1:-1], rtol=1e-6)
    upright = to_upright(arrays.images["agentview"], reader.robot.camera("agentview").orientation)
    np.testing.assert_array_equal(upright, episodes[0]["images"][0, 1:-1])


def test_timing_that_is_declared_is_believed(tmp_path: Path, episodes: list[dict]) -> None:
    path = tmp_path / "declared_demo.hdf5"
    write_official_file(path, "declared", episodes, {"observation_timing": "before_action"}, after_action=True)
    assert open_reader(path).episodes[0].num_steps == 11


def test_declared_and_overruled_orientation(tmp_path: Path, episodes: list[dict]) -> None:
    path = tmp_path / "turned_demo.hdf5"
    write_official_file(path, "turned", episodes, {"image_orientation": "rotated_180"})
    assert orientations(open_reader(path)) == {ImageOrientation.ROTATED_180}
    overruled = open_reader(path, orientation="upright")
    assert orientations(overruled) == {ImageOrientation.UPRIGHT}
    assert not overruled.notes


def test_instruction_from_the_file_name(good_file: Path) -> None:
    with h5py.File(good_file, "a") as file:
        del file["data"].attrs["problem_info"]
    scene = good_file.with_name("KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5")
    good_file.rename(scene)
    assert open_reader(scene).episodes[0].instruction == "turn on the stove"


def test_executed_actions_and_separate_end_effector(good_file: Path) -> None:
    with h5py.File(good_file, "a") as file:
        for key in ("demo_0", "demo_1"):
            demo = file["data"][key]
            demo["executed_actions"] = demo["actions"][()] + 0.01
            del demo["obs/ee_states"]
    arrays = open_reader(good_file).read(0)
    np.testing.assert_allclose(arrays.executed_actions, arrays.actions + 0.01, atol=1e-6)
    assert arrays.robot_states["hand_orientation"].shape == (12, 3)


def test_only_the_cameras_asked_for(good_file: Path) -> None:
    reader = open_reader(good_file)
    assert list(reader.read(0, ["eye_in_hand"]).images) == ["eye_in_hand"]
    assert reader.read(0, []).images == {}
    with pytest.raises(UserError, match="no camera 'front', it has agentview, eye_in_hand"):
        reader.read(0, ["front"])


def test_work_in_progress_is_left_out(tmp_path: Path, good_file: Path) -> None:
    hidden = tmp_path / ".parts" / "half.hdf5"
    hidden.parent.mkdir()
    hidden.write_bytes(b"not yet")
    assert len(open_reader(tmp_path).episodes) == 2


def test_a_reader_survives_pickling_while_open(good_file: Path) -> None:
    reader = open_reader(good_file)
    expected = reader.read(0).actions
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read(0).actions, expected)


def _break(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return
    if how == "not_hdf5":
        path.write_text("hello")
        return
    with h5py.File(path, "a") as file:
        demo = file["data/demo_1"]
        actions = demo["actions"][()]
        if how == "no_actions":
            del demo["actions"]
        elif how == "no_obs":
            del demo["obs"]
        elif how == "nan":
            actions[3, 2] = np.nan
            demo["actions"][...] = actions
        elif how == "more_actions":
            del demo["actions"]
            demo["actions"] = np.concatenate([actions, actions[-1:]])
        elif how == "float_images":
            frames = demo["obs/agentview_rgb"][()].astype(np.float32)
            del demo["obs/agentview_rgb"]
            demo["obs/agentview_rgb"] = frames
        elif how == "no_states":
            del demo["obs/joint_states"], demo["obs/gripper_states"]
        elif how == "short_joints":
            del demo["obs/joint_states"]
            demo["obs/joint_states"] = np.zeros((len(actions), 6))
        elif how == "half_gripper":
            demo["actions"][:, 6] = np.where(actions[:, 6] > 0, 0.98, 0.02)
        elif how == "six_actions":
            del demo["actions"]
            demo["actions"] = actions[:, 1:]
        elif how == "bad_robot":
            file["data"].attrs["robot"] = json.dumps(LIBERO.to_dict() | {"wheels": 4})
        elif how == "robot_not_json":
            file["data"].attrs["robot"] = "libero"
        elif how == "orientation":
            file["data"].attrs["image_orientation"] = "sideways"
        elif how == "problem_info":
            file["data"].attrs["problem_info"] = "{"
        elif how == "no_data":
            file.move("data", "other")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", ["truncated HDF5 file", "download it again"]),
        ("not_hdf5", ["not a readable HDF5 file"]),
        ("no_actions", ["demo_1", "no dataset 'actions'"]),
        ("no_obs", ["demo_1", "no 'obs' group"]),
        ("nan", ["demo_1", "actions has NaN or infinite values at step 3"]),
        ("more_actions", ["demo_1", "9 steps of camera", "10 actions"]),
        ("float_images", ["demo_1", "camera 'agentview' holds float32", "expected uint8"]),
        ("no_states", ["demo_1", "no state field 'joint_positions' of robot 'libero'", "joint_states", "data.robot"]),
        ("short_joints", ["demo_1", "obs/joint_states has 6 numbers, expected 7", "'joint_positions'"]),
        ("half_gripper", ["demo_1", "'gripper' of robot 'libero' is declared binary", "-1 and 1", "kind: continuous"]),
        ("six_actions", ["demo_1", "actions have 6 numbers, robot 'libero' declares 7", "hand (6 continuous, delta)"]),
        ("bad_robot", ["attribute 'robot'", "unknown key 'wheels'"]),
        ("robot_not_json", ["'robot'", "not JSON"]),
        ("orientation", ["image_orientation 'sideways'", "flipped_vertically"]),
        ("problem_info", ["'problem_info'", "not JSON"]),
        ("no_data", ["no group 'data'"]),
    ],
)
def test_broken_files_give_one_line_with_file_and_key(good_file: Path, how: str, words: list[str]) -> None:
    _break(good_file, how)
    with pytest.raises(UserError) as caught:
        open_reader(good_file).read(1)
    message = str(caught.value)
    assert "\n" not in message
    assert good_file.name in message
    for word in words:
        assert word in message


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        open_reader(tmp_path / "absent")
    with pytest.raises(UserError, match=r"holds neither \*.hdf5 files nor meta/info.json"):
        open_reader(tmp_path)
    with pytest.raises(UserError, match=r"no \*.hdf5 file in this folder"):
        open_reader(tmp_path, "libero")
    with pytest.raises(UserError, match=r"data.format 'rlds': expected one of auto, lerobot, libero"):
        open_reader(tmp_path, "rlds")


def orientations(reader: EpisodeReader) -> set[ImageOrientation]:
    return {camera.orientation for camera in reader.robot.cameras}


def test_another_robot_of_libero_can_be_declared(good_file: Path, episodes: list[dict]) -> None:
    """Its cameras follow the files' custom, for nobody said otherwise."""
    reader = open_reader(good_file, robot="libero_hand")
    assert (reader.robot.name, reader.robot.state_dim) == ("libero_hand", 8)
    assert orientations(reader) == {ImageOrientation.FLIPPED_VERTICALLY}
    state = reader.robot.policy_state(reader.read(0).robot_states, "test")
    expected = np.concatenate([episodes[0]["ee_states"], episodes[0]["gripper_states"]], axis=1)
    np.testing.assert_allclose(state, expected, rtol=1e-6)


def test_what_the_policy_does_not_see_may_be_missing(good_file: Path) -> None:
    with h5py.File(good_file, "a") as file:
        for key in ("ee_states", "ee_pos", "ee_ori"):
            del file["data/demo_1/obs"][key]
    reader = open_reader(good_file)
    assert [field.name for field in reader.robot.state] == ["joint_positions", "finger_positions"]
    assert list(reader.read(0).robot_states) == ["joint_positions", "finger_positions"]
    with pytest.raises(UserError, match="demo_1: no state field 'hand_position' of robot 'libero_hand'"):
        open_reader(good_file, robot="libero_hand").read(1)


def test_a_third_camera_turns_no_other(good_file: Path, episodes: list[dict]) -> None:
    with h5py.File(good_file, "a") as file:
        for key in ("demo_0", "demo_1"):
            obs = file[f"data/{key}/obs"]
            obs["frontview_rgb"] = obs["agentview_rgb"][()]
    reader = open_reader(good_file)
    assert reader.cameras == ("agentview", "eye_in_hand", "frontview")
    assert orientations(reader) == {ImageOrientation.FLIPPED_VERTICALLY}
    np.testing.assert_array_equal(reader.read(0).images["agentview"][:, ::-1], episodes[0]["images"][0])
    # Declared is declared: what a robot does not have is not read.
    assert open_reader(good_file, robot="libero_hand").cameras == ("agentview", "eye_in_hand")


def test_the_file_declares_its_robot(good_file: Path) -> None:
    declared = LIBERO.model_dump(mode="json") | {"name": "panda_on_wheels", "cameras": [{"name": "eye_in_hand"}]}
    with h5py.File(good_file, "a") as file:
        file["data"].attrs["robot"] = json.dumps(RobotSpec.from_dict(declared, "test").to_dict())
        file["data"].attrs["image_orientation"] = "mirrored"
    reader = open_reader(good_file)
    assert (reader.robot.name, reader.cameras, reader.notes) == ("panda_on_wheels", ("eye_in_hand",), [])
    assert orientations(reader) == {ImageOrientation.MIRRORED}


def test_frequencies_must_agree(good_file: Path, tmp_path: Path, episodes: list[dict]) -> None:
    with h5py.File(good_file, "a") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 10}})
    reader = open_reader(good_file)
    assert (reader.robot.control_freq_hz, reader.episodes[0].fps) == (10, 10)
    with pytest.raises(UserError, match=r"'libero' declares 20 Hz, env_args say 10 Hz; declare 'control_freq_hz: 10'"):
        open_reader(good_file, robot="libero")
    write_official_file(tmp_path / "other_demo.hdf5", "other", episodes)
    with pytest.raises(UserError, match=r"hold different robots \(control_freq_hz: 10.0 against 20.0\)"):
        open_reader(tmp_path)


def test_instructions_of_single_episodes(good_file: Path) -> None:
    with h5py.File(good_file, "a") as file:
        file["data/demo_0"].attrs["ep_meta"] = json.dumps({"lang": "open  the drawer", "layout_id": 3})
        file["data/demo_1"].attrs["ep_meta"] = "{"
    first, second = open_reader(good_file).episodes
    assert (first.instruction, first.task) == ("open the drawer", "open_the_drawer")
    assert (second.instruction, second.task) == ("lift the block", "lift_the_block")


def test_files_of_different_orientation_do_not_mix(tmp_path: Path, episodes: list[dict]) -> None:
    write_official_file(tmp_path / "a_demo.hdf5", "a", episodes)
    write_official_file(tmp_path / "b_demo.hdf5", "b", episodes, {"image_orientation": "upright"})
    with pytest.raises(UserError, match="different orientations"):
        open_reader(tmp_path)
    assert orientations(open_reader(tmp_path, orientation="mirrored")) == {ImageOrientation.MIRRORED}


def test_instruction_written_as_a_list(good_file: Path) -> None:
    with h5py.File(good_file, "a") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": ["open ", "it"]})
    assert open_reader(good_file).episodes[0].instruction == "open it"
