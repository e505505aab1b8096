"""Which robot a LeRobotDataset is read as: other people's data sets, of both versions, as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from lerobot_files import Dataset, Episode, level, rewrite_info, write_dataset
from statevla.data import EpisodeReader, open_reader
from statevla.data.convert import convert
from statevla.errors import UserError
from statevla.robots import KNOWN_ROBOTS, ImageOrientation

STATE, ACTION = "observation.state", "action"
JOINTS = [f"joint_{i}" for i in range(7)]
ARM = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper"]
both_versions = pytest.mark.parametrize("version", ["v2.1", "v3.0"])


def episodes(action_dim: int, state_dim: int, keys: tuple[str, str] = (STATE, ACTION)) -> list[Episode]:
    rng = np.random.default_rng(action_dim)
    return [
        Episode({keys[0]: rng.normal(size=(n, state_dim)), keys[1]: rng.normal(size=(n, action_dim))}) for n in (6, 5)
    ]


def check_numbers(reader: EpisodeReader, data: Dataset, levels: float = 1.5) -> None:
    """Actions, states and frames are those that were written, but for `levels` of grey; frames are 4 apart."""
    state_key, action_key = list(data.episodes[0].columns)
    for number, episode in enumerate(data.episodes):
        arrays = reader.read(number)
        np.testing.assert_array_equal(arrays.actions, episode.columns[action_key].astype(np.float32))
        state = reader.robot.policy_state(arrays.robot_states, "test")
        np.testing.assert_array_equal(state, episode.columns[state_key].astype(np.float32))
        for frames in arrays.images.values():
            wanted = [level(number, step) for step in range(len(episode))]
            np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), wanted, atol=levels)


@both_versions
def test_two_numbers_and_no_gripper(tmp_path: Path, version: str) -> None:
    """PushT: a mapping of names, the same of action and state."""
    names = {"motors": ["motor_0", "motor_1"]}
    data = Dataset({STATE: names, ACTION: names}, episodes(2, 2), ("observation.image",), version, "pusht")
    reader = open_reader(write_dataset(tmp_path / "pusht", data))
    robot = reader.robot
    assert (robot.name, robot.control_freq_hz, reader.cameras) == ("pusht", 10, ("image",))
    assert robot.describe_actions() == "action (2 continuous, absolute)"
    assert robot.action_names == robot.state_names == ("motor_0", "motor_1")
    assert robot.actions[0].state == "state"
    assert not robot.gripper_dims()
    assert robot.num_binary == 0
    assert "no number of an action is taken as binary, or as a gripper's" in reader.notes
    assert {episode.instruction for episode in reader.episodes} == {"push the block"}
    check_numbers(reader, data)


@both_versions
def test_six_joints(tmp_path: Path, version: str) -> None:
    """SO-101: a gripper of degrees, whose values stay as they are; cameras have any names."""
    names = [f"{joint}.pos" for joint in ("pan", "lift", "elbow", "flex", "roll", "gripper")]
    cameras = ("observation.images.laptop", "observation.images.phone")
    data = Dataset({STATE: names, ACTION: names}, episodes(6, 6), cameras, version, "so101_follower", fps=30)
    root = write_dataset(tmp_path / "arm", data)
    reader = open_reader(root)
    assert reader.robot.action_names == tuple(names)
    check_numbers(reader, data)
    declared = open_reader(root, robot="so101")
    assert declared.robot.describe_state() == "arm (5), gripper (1)"
    assert declared.cameras == ("laptop", "phone")
    assert "declares none of the cameras; laptop, phone are taken" in declared.notes[0]
    assert "frames are taken as upright" in declared.notes
    check_numbers(declared, data)


@both_versions
def test_two_arms(tmp_path: Path, version: str) -> None:
    names = [[f"{side}_{joint}" for side in ("left", "right") for joint in ARM]]
    data = Dataset({STATE: names, ACTION: names}, episodes(14, 14), version=version, robot_type="aloha", fps=50)
    root = write_dataset(tmp_path / "aloha", data)
    assert open_reader(root).robot.action_names == tuple(names[0])
    reader = open_reader(root, robot="aloha")
    assert reader.robot.gripper_dims() == [6, 13]
    assert reader.cameras == ("top",)
    check_numbers(reader, data)
    right = reader.read(1).robot_states["right_arm"]
    np.testing.assert_array_equal(right, data.episodes[1].columns[STATE][:, 7:13].astype(np.float32))


def test_seven_joints_and_a_gripper_are_no_hand_and_fingers(tmp_path: Path) -> None:
    """DROID has eight state numbers, as many as LIBERO's hand and fingers."""
    names = {"axes": [*JOINTS, "gripper"]}
    data = Dataset({STATE: names, ACTION: names}, episodes(8, 8), robot_type="franka")
    root = write_dataset(tmp_path / "droid", data)
    robot = open_reader(root).robot
    assert (robot.field_with_role("hand_position"), robot.field_with_role("gripper_opening")) == (None, None)
    tree = {
        "name": "droid",
        "control_freq_hz": 10,
        "actions": [
            {"name": "arm", "dims": JOINTS, "state": "arm"},
            {"name": "gripper", "dims": ["gripper"], "role": "gripper"},
        ],
        "state": [{"name": "arm", "dims": JOINTS}, {"name": "gripper", "dims": ["gripper"], "role": "gripper_opening"}],
        "cameras": [{"name": "outside", "key": "observation.images.top", "fit": "crop"}],
    }
    file = tmp_path / "droid.yaml"
    file.write_text(yaml.safe_dump(tree))
    reader = open_reader(root, robot=str(file))
    assert (reader.cameras, reader.robot.camera("outside").fit) == (("outside",), "crop")
    assert reader.read(0).robot_states["gripper"].shape == (6, 1)
    check_numbers(reader, data)


def test_image_and_wrist_image_are_not_turned_on_their_own(tmp_path: Path) -> None:
    """openpi's keys: how frames are stored is said by a declaration, or asked for."""
    data = Dataset({"state": None, "actions": None}, episodes(7, 8, ("state", "actions")), ("image", "wrist_image"))
    for episode in data.episodes:
        episode.columns["actions"][:, 6] = 1
    root = write_dataset(tmp_path / "openpi", data)
    with pytest.raises(UserError, match="how the frames of image, wrist_image are stored"):
        open_reader(root)
    reader = open_reader(root, orientation="upright")
    assert reader.cameras == ("image", "wrist_image")
    assert {camera.orientation for camera in reader.robot.cameras} == {ImageOrientation.UPRIGHT}
    assert reader.robot.action_names[-1] == "action_6"
    check_numbers(reader, data)
    mirrored = open_reader(root, robot="libero_openpi")
    assert mirrored.cameras == ("agentview", "eye_in_hand")
    assert {camera.orientation for camera in mirrored.robot.cameras} == {ImageOrientation.MIRRORED}
    assert mirrored.read(0).robot_states["hand_position"].shape == (6, 3)
    with pytest.raises(UserError, match=r"no feature 'observation.images.image' for camera 'agentview'.*wrist_image"):
        open_reader(root, robot="libero_hub")


def test_a_known_type_needs_its_names(tmp_path: Path) -> None:
    g1 = KNOWN_ROBOTS["unitree_g1"]
    names = [list(g1.action_names)]
    data = Dataset({STATE: names, ACTION: names}, episodes(26, 26), robot_type="Unitree_G1_Inspire")
    reader = open_reader(write_dataset(tmp_path / "g1", data))
    assert (reader.robot.name, reader.robot.control_freq_hz, len(reader.robot.actions)) == ("unitree_g1", 10, 4)
    data.names[ACTION] = [[f"motor_{i}" for i in range(26)]]
    other = open_reader(write_dataset(tmp_path / "other", data)).robot
    assert (other.name, other.describe_actions()) == ("Unitree_G1_Inspire", "action (26 continuous, absolute)")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([["a", "b"], ["c"]], ("a", "b", "c")),
        ({"left": ["a", "b"], "right": ["c"]}, ("a", "b", "c")),
        ({"b": 1, "a": 0, "c": 2}, ("a", "b", "c")),
        (["a", "b"], ("action_0", "action_1", "action_2")),
        ("abc", ("action_0", "action_1", "action_2")),
    ],
)
def test_names_have_many_forms(tmp_path: Path, names: object, expected: tuple[str, ...]) -> None:
    data = Dataset({ACTION: names}, episodes(3, 2))
    robot = open_reader(write_dataset(tmp_path / "x", data)).robot
    assert robot.action_names == expected
    assert robot.actions[0].state is None


def test_fields_by_key_and_parts_of_features(tmp_path: Path) -> None:
    """State fields may lie anywhere; what the policy does not see may be missing."""
    data = Dataset({}, episodes(2, 5))
    for episode in data.episodes:
        episode.columns["observation.effort"] = episode.columns[STATE][:, :2] + 7
    root = write_dataset(tmp_path / "parts", data)
    tree = {
        "name": "parts",
        "control_freq_hz": 10,
        "actions": [{"name": "push", "dims": ["x", "y"], "mode": "delta"}],
        "state": [
            {"name": "effort", "dims": ["x", "y"], "key": "observation.effort"},
            {"name": "hand", "dims": ["x", "y", "z"], "key": "observation.state[1:4]", "role": "hand_position"},
            {"name": "unheard", "dims": ["q"], "key": "observation.unheard", "policy": False},
        ],
    }
    file = tmp_path / "parts.yaml"
    file.write_text(yaml.safe_dump(tree))
    reader = open_reader(root, robot=str(file))
    assert [field.name for field in reader.robot.state] == ["effort", "hand"]
    states, columns = reader.read(1).robot_states, data.episodes[1].columns
    np.testing.assert_array_equal(states["hand"], columns[STATE][:, 1:4].astype(np.float32))
    np.testing.assert_array_equal(states["effort"], columns["observation.effort"].astype(np.float32))
    for field, change, words in (
        (0, {"key": "observation.load"}, "no feature 'observation.load' for state field 'effort'"),
        (1, {"key": "observation.state[3:6]"}, r"'observation.state\[3:6\]' has 2; correct its key"),
        (1, {"key": None, "role": None}, "'observation.state' has 5 numbers, robot 'parts' declares 3: hand"),
    ):
        wrong = {**tree, "state": [dict(part) for part in tree["state"]]}
        wrong["state"][field] |= change
        file.write_text(yaml.safe_dump(wrong))
        with pytest.raises(UserError, match=words):
            open_reader(root, robot=str(file))


def test_a_declared_robot_must_fit(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "x", Dataset({ACTION: ["a", "b"]}, episodes(2, 5)))
    with pytest.raises(UserError, match=r"'action' has 2 numbers \(a, b\), robot 'so101' declares 6: arm \(5 cont"):
        open_reader(root, robot="so101")
    rewrite_info(root, features={})
    with pytest.raises(UserError, match="no feature 'action'"):
        open_reader(root)


def test_depth_is_left_out_and_said(tmp_path: Path) -> None:
    depth = {"dtype": "video", "shape": [32, 32, 1], "names": None}
    extra = {
        "observation.images.far": depth | {"info": {"video.is_depth_map": True}},
        "observation.images.near": depth | {"info": {"video.pix_fmt": "gray12le"}},
    }
    data = Dataset({}, episodes(2, 2), extra_features=extra)
    reader = open_reader(write_dataset(tmp_path / "x", data))
    assert reader.cameras == ("top",)
    assert "hold depth and not colours: observation.images.far, observation.images.near" in reader.notes[0]
    check_numbers(reader, data)


@both_versions
def test_what_is_older_or_declares_nothing_is_converted_to_its_own_format(tmp_path: Path, version: str) -> None:
    """LeRobot reads the version that we write, and the robot that was derived is declared from then on."""
    data = Dataset({STATE: JOINTS, ACTION: JOINTS}, episodes(7, 7), ("observation.images.top",), version, "arm")
    source = write_dataset(tmp_path / "old", data)
    folder = convert(source, tmp_path / "new", "lerobot")
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["codebase_version"], info["robot_type"]) == ("v3.0", "arm")
    with open_reader(source) as was, open_reader(folder) as reader:
        assert reader.notes == was.notes  # what was assumed is still said
        assert reader.robot.difference(was.robot) is None
        check_numbers(reader, data, levels=2.5)  # encoded twice
    with pytest.raises(UserError, match="is in format 'lerobot' already"):
        convert(folder, tmp_path / "newer", "lerobot")
