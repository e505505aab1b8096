"""Declarations: what is refused and how, what is computed from them, and that they survive being stored."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from statevla.errors import UserError
from statevla.robots import (
    KNOWN_ROBOTS,
    LIBERO,
    LIBERO_EITHER,
    LIBERO_HAND,
    RobotSpec,
    StateField,
    load_robot,
    save_robot,
)

ARM: dict[str, Any] = {
    "name": "my_arm",
    "control_freq_hz": 30,
    "actions": [
        {"name": "arm", "dims": ["shoulder", "elbow"], "state": "arm"},
        {"name": "hand", "dims": ["x", "y", "z"], "mode": "delta", "low": -1, "high": 1},
        {"name": "gripper", "dims": ["gripper"], "kind": "binary", "values": [0, 1], "role": "gripper"},
    ],
    "state": [
        {"name": "arm", "dims": ["shoulder", "elbow"], "units": "rad"},
        {"name": "tip", "dims": ["x", "y", "z"], "units": "m", "role": "hand_position", "policy": False},
        {"name": "gripper", "dims": ["gripper"], "role": "gripper_opening"},
    ],
    "cameras": [{"name": "front"}, {"name": "wrist", "orientation": "rotated_180", "fit": "crop"}],
}


def arm() -> RobotSpec:
    return RobotSpec.from_dict(ARM, "test")


def changed(path: str, value: Any) -> dict[str, Any]:
    """`ARM` with the value at a dotted path replaced; None removes it."""
    tree: Any = copy.deepcopy(ARM)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    place = tree
    for key in parents:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("name", None, "name: field required; add it"),
        ("name", "../arm", "name: string should match pattern"),
        ("state_ways", [["arm"], ["gripper"]], "'arm' measures an action group, so it cannot be left out"),
        ("state_ways", [["gripper"]], "expected two ways or more"),
        ("state_ways", [["gripper"], ["tip"]], "the policy sees no state field 'tip'"),
        ("state_ways", [["gripper"], ["gripper"]], "'gripper' stands twice"),
        ("control_freq_hz", None, "control_freq_hz: field required; add it"),
        ("control_freq_hz", 0, "control_freq_hz: input should be greater than 0, got 0"),
        ("control_freq_hz", "often", "control_freq_hz: input should be a valid number"),
        ("actions", None, "actions: field required; add it"),
        ("actions", [], "actions: tuple should have at least 1 item"),
        ("actions.0.dims", [], "actions.0.dims: tuple should have at least 1 item"),
        ("actions.0.dims", 2, "actions.0.dims: input should be a valid tuple"),
        ("actions.0.kind", "discrete", "actions.0.kind: input should be 'continuous' or 'binary', got 'discrete'"),
        ("actions.0.mode", "relative", "actions.0.mode: input should be 'absolute' or 'delta'"),
        ("actions.0.role", "arm", "actions.0.role: input should be 'gripper'"),
        ("actions.0.speed", 3, "unknown key 'actions.0.speed'"),
        ("actions.0.state", "wrist", "names state field 'wrist' of 2 numbers, there is none"),
        ("actions.0.state", "tip", "names state field 'tip' of 2 numbers, it has 3"),
        ("actions.1.state", "tip", "actions.1: state: only a continuous absolute group has a state field"),
        ("actions.1.low", 1, "actions.1: low 1.0 must lie below high 1.0"),
        ("actions.2.values", [1, 1], r"values \[1.0, 1.0\]: the two commands of a binary group must differ"),
        ("actions.2.values", [0, 1, 2], "actions.2.values: tuple should have at most 2 items"),
        ("actions.1.name", "arm", "two action groups are called 'arm'"),
        ("state.0.name", "tip", "two state fields are called 'tip'"),
        ("state.0.role", "elbow", "state.0.role: input should be 'hand_position' or 'gripper_opening'"),
        ("state.0.role", "hand_position", "state.0: role hand_position takes 3 numbers .*, 'arm' has 2"),
        ("state.0.unit", "rad", "unknown key 'state.0.unit'"),
        ("cameras.1.name", "front", "two cameras are called 'front'"),
        ("cameras.1.fit", "squeeze", "cameras.1.fit: input should be 'pad', 'crop' or 'stretch'"),
        ("cameras.1.orientation", "sideways", "cameras.1.orientation: input should be 'upright'"),
        ("wheels", 4, "unknown key 'wheels'"),
    ],
)
def test_what_is_refused(path: str, value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        RobotSpec.from_dict(changed(path, value), "my.yaml")
    message = str(caught.value)
    assert message.startswith("robot my.yaml: ")
    assert "\n" not in message


def test_a_list_is_no_robot() -> None:
    with pytest.raises(UserError, match=r"robot my.yaml: expected a mapping with name, control_freq_hz"):
        RobotSpec.from_dict([ARM], "my.yaml")


def test_what_follows_from_a_declaration() -> None:
    robot = arm()
    assert (robot.action_dim, robot.num_continuous, robot.num_binary, robot.state_dim) == (6, 5, 1, 3)
    assert robot.action_names == ("shoulder", "elbow", "x", "y", "z", "gripper")
    assert robot.state_names == ("shoulder", "elbow", "gripper")
    assert robot.is_binary.tolist() == [False] * 5 + [True]
    assert robot.is_delta.tolist() == [False, False, True, True, True, False]
    assert robot.gripper_dims() == [5]
    assert [bound.tolist() for bound in robot.binary_values()] == [[0], [1]]
    low, high = robot.action_bounds
    assert low.tolist() == [-np.inf, -np.inf, -1, -1, -1, 0]
    assert high.tolist() == [np.inf, np.inf, 1, 1, 1, 1]
    last = np.array([0.3, 0.4, 0.5, 0.6, 0.7, 1], np.float32)
    np.testing.assert_array_equal(robot.rest(last), np.array([0.3, 0.4, 0, 0, 0, 1], np.float32))
    assert robot.describe_actions() == "arm (2 continuous, absolute), hand (3 continuous, delta), gripper (1 binary)"
    assert robot.field_with_role("hand_position") is robot.find_field("tip")


def test_names_that_repeat_get_their_groups() -> None:
    aloha = KNOWN_ROBOTS["aloha"]
    assert aloha.action_names[0] == "left_arm.waist"
    assert len(set(aloha.action_names)) == len(set(aloha.state_names)) == 14


def test_states_by_name_and_flat() -> None:
    robot = arm()
    fields = {"arm": np.ones((4, 2)), "gripper": np.zeros((4, 1)), "tip": np.ones((4, 3))}
    flat = robot.policy_state(fields, "test")
    assert flat.tolist() == [[1, 1, 0]] * 4
    assert {name: part.shape for name, part in robot.named_state(flat, "test").items()} == {
        "arm": (4, 2),
        "gripper": (4, 1),
    }
    with pytest.raises(UserError, match=r"test: no state field 'gripper', it has arm; robot 'my_arm' declares arm \(2"):
        robot.policy_state({"arm": fields["arm"]}, "test")
    with pytest.raises(
        UserError, match=r"'arm' of robot 'my_arm' has 2 numbers \(shoulder, elbow\), got shape \[4, 3\]"
    ):
        robot.policy_state(fields | {"arm": np.ones((4, 3))}, "test")
    with pytest.raises(UserError, match=r"'my_arm' has 3 state numbers .*, got shape \[9\]"):
        robot.named_state(np.zeros(9), "test")


@pytest.mark.parametrize("robot", [*KNOWN_ROBOTS.values(), arm()], ids=lambda robot: robot.name)
def test_round_trips(robot: RobotSpec, tmp_path: Path) -> None:
    tree = json.loads(json.dumps(robot.to_dict()))
    assert RobotSpec.from_dict(tree, "test") == robot
    file = tmp_path / "made" / "robot.yaml"
    save_robot(robot, file)
    assert load_robot(file) == robot
    assert robot.difference(load_robot(file)) is None


def test_what_was_assumed_is_a_comment_in_a_file_to_edit(tmp_path: Path) -> None:
    robot = arm().model_copy(update={"assumed": ("frames are\ntaken as upright",)})
    file = tmp_path / "robot.yaml"
    save_robot(robot, file)
    assert "# Assumed: frames are taken as upright\n" in file.read_text()
    assert load_robot(file) == arm()
    with pytest.raises(UserError, match=r"robot .*robot.yaml: exists already"):
        save_robot(robot, file)
    with pytest.raises(UserError, match=r"cannot be written"):
        save_robot(robot, file / "below.yaml")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("actions.0.dims", ["shoulder", "wrist"], "action dims"),
        ("actions.2.values", [-1, 1], "binary commands"),
        ("actions.2", {"name": "gripper", "dims": ["gripper"]}, "action groups"),
        ("state.0.units", "deg", "state units"),
        ("state.2", None, "state: "),
        ("control_freq_hz", 20, "control_freq_hz: 30.0 against 20.0"),
    ],
)
def test_differences(path: str, value: Any, words: str) -> None:
    difference = arm().difference(RobotSpec.from_dict(changed(path, value), "test"))
    assert difference is not None
    assert words in difference


def test_names_cameras_and_unseen_fields_may_differ() -> None:
    for path, value in (("name", "other"), ("cameras", None), ("state.1", None)):
        assert arm().difference(RobotSpec.from_dict(changed(path, value), "test")) is None
    assert LIBERO.difference(LIBERO_HAND) is not None


def test_yaml_as_people_write_it(tmp_path: Path) -> None:
    """The example of the module's text."""
    from statevla.robots import declaration

    text = (declaration.__doc__ or "").split("\n\n", 2)[2]
    file = tmp_path / "arm.yml"
    file.write_text("\n".join(line[4:] for line in text.splitlines()))
    robot = load_robot(file)
    assert robot.describe_actions() == "arm (3 continuous, absolute), gripper (1 binary)"
    assert robot.cameras[0].name == "front"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: [", "not readable as YAML"),
        (b"\xff\xfe\x00", "not readable as YAML"),
        (b"!!python/object/apply:os.system ['true']", "not readable as YAML"),
        (b"", "expected a mapping"),
        (b"name: x\n", "control_freq_hz: field required"),
        (b"#" * 1_000_001, "larger than 1000000 bytes"),
    ],
)
def test_files_that_are_no_robots(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "robot.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load_robot(file)
    assert "\n" not in str(caught.value)
    assert "robot.yaml" in str(caught.value)


def test_robots_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="robot 'so100': did you mean 'so101'"):
        load_robot("so100")
    with pytest.raises(UserError, match=r"no such file; known robots are libero"):
        load_robot(tmp_path / "absent.yaml")
    assert load_robot("libero") is LIBERO


def test_written_declarations_are_short(tmp_path: Path) -> None:
    """What has its default is left out, so that a file shows what is particular."""
    file = tmp_path / "x.yaml"
    save_robot(arm(), file)
    assert yaml.safe_load(file.read_text())["actions"][2] == {
        "name": "gripper",
        "dims": ["gripper"],
        "kind": "binary",
        "values": [0.0, 1.0],
        "role": "gripper",
    }


def test_one_of_several_ways_of_saying_the_state_is_enough() -> None:
    joints, hand, turn, fingers = np.arange(7.0), np.arange(3.0), np.arange(3.0) + 10, np.array([1.0, 2.0])
    mean = np.full(15, 0.5)
    by_joints = {"joint_positions": joints, "finger_positions": fingers}
    by_hand = {"hand_position": hand, "hand_orientation": turn, "finger_positions": fingers}
    state = LIBERO_EITHER.policy_state(by_joints, "test", mean)
    np.testing.assert_array_equal(state, [*joints, *[0.5] * 6, *fingers])
    state = LIBERO_EITHER.policy_state(by_hand, "test", mean)
    np.testing.assert_array_equal(state, [*[0.5] * 7, *hand, *turn, *fingers])
    both = by_joints | by_hand
    np.testing.assert_array_equal(LIBERO_EITHER.policy_state(both, "test", mean), [*joints, *hand, *turn, *fingers])
    with pytest.raises(UserError, match="no state field 'hand_orientation'"):  # half a way is none
        LIBERO_EITHER.policy_state(by_joints | {"hand_position": hand}, "test", mean)
    with pytest.raises(UserError, match="no state field 'joint_positions'"):
        LIBERO_EITHER.policy_state({"finger_positions": fingers}, "test", mean)
    with pytest.raises(UserError, match="no state field 'finger_positions'"):
        LIBERO_EITHER.policy_state({"joint_positions": joints}, "test", mean)
    with pytest.raises(UserError, match="no state field 'hand_position'"):  # data have all of them
        LIBERO_EITHER.policy_state(by_joints, "test")
    assert LIBERO_EITHER.with_ways(by_hand).difference(LIBERO_HAND) is None
    assert LIBERO_EITHER.with_ways(by_joints).difference(LIBERO) is None
    assert LIBERO_EITHER.with_ways(both) == LIBERO_EITHER == LIBERO_EITHER.with_ways(())
    np.testing.assert_array_equal(
        LIBERO_EITHER.way_masks(), [[1] * 15, [1] * 7 + [0] * 6 + [1] * 2, [0] * 7 + [1] * 6 + [1] * 2]
    )
    assert RobotSpec.from_dict(json.loads(json.dumps(LIBERO_EITHER.to_dict())), "test") == LIBERO_EITHER


def test_a_flat_state_may_be_of_one_way_alone() -> None:
    joints, hand, turn, fingers = range(7), range(10, 13), range(20, 23), range(30, 32)
    for sent, fields in (
        ([*joints, *fingers], {"joint_positions": joints, "finger_positions": fingers}),
        ([*hand, *turn, *fingers], {"hand_position": hand, "hand_orientation": turn, "finger_positions": fingers}),
        (
            [*joints, *hand, *turn, *fingers],
            {"joint_positions": joints, "hand_position": hand, "hand_orientation": turn, "finger_positions": fingers},
        ),
    ):
        named = LIBERO_EITHER.named_state(np.array([sent, sent]), "test")
        assert {name: values.tolist() for name, values in named.items()} == {
            name: [list(values)] * 2 for name, values in fields.items()
        }
    expected = (
        r"test: robot 'libero_either' has 15 state numbers \(joint_.*\), or 9 state numbers \(joint_positions \(7\), "
        r"finger_positions \(2\)\), or 8 state numbers \(hand_position \(3\), .*\), got shape \[7\]; send these"
    )
    with pytest.raises(UserError, match=expected):
        LIBERO_EITHER.named_state(np.zeros(7), "test")


def test_ways_of_one_length_are_told_by_name_alone() -> None:
    """Seven numbers could be the joints, or where the hand is and how it is turned."""
    quaternion = StateField(name="hand_orientation", dims=("x", "y", "z", "w"))
    state = tuple(quaternion if field.name == quaternion.name else field for field in LIBERO_EITHER.state)
    robot = LIBERO_EITHER.model_copy(update={"state": state})
    assert list(robot.flat_states()) == [16]
    with pytest.raises(UserError, match=r"has 16 state numbers \(.*\), got shape \[9\]; send these"):
        robot.named_state(np.zeros(9), "test")
