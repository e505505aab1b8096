"""HDF5 files of robomimic and robosuite: any low-dim keys, with a declared robot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from statevla.commands import data as commands
from statevla.data import open_reader
from statevla.data.inspect import inspect_dataset
from statevla.errors import UserError
from statevla.robots import ImageOrientation, load_robot

OSC_POSE = {"type": "OSC_POSE", "control_delta": True}


def write_robomimic(path: Path, arms: int = 1, controller: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
    """Two demonstrations as robomimic's `dataset_states_to_obs.py` writes them; returns the arrays of the second."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        kwargs = {"robots": ["Panda"] * arms, "control_freq": 20, "controller_configs": controller or OSC_POSE}
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": kwargs})
        data.attrs["total"] = 12
        for number, count in enumerate((5, 7)):
            actions = rng.uniform(-1, 1, (count, 7 * arms))
            actions[:, 6::7] = np.where(np.arange(count) > 2, 1, -1)[:, None]
            arrays = {"actions": actions, "obs/object": rng.normal(size=(count, 10))}
            for arm in range(arms):
                for key, size in (("joint_pos", 7), ("eef_pos", 3), ("eef_quat", 4), ("gripper_qpos", 2)):
                    arrays[f"obs/robot{arm}_{key}"] = rng.normal(size=(count, size))
            arrays["obs/agentview_image"] = rng.integers(0, 255, (count, 16, 24, 3), np.uint8)
            arrays["obs/robot0_eye_in_hand_image"] = rng.integers(0, 255, (count, 16, 16, 3), np.uint8)
            arrays["states"], arrays["dones"] = rng.normal(size=(count, 30)), np.arange(count) == count - 1
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = count
            for key, values in arrays.items():
                demo[key] = values
    return arrays


def declaration(**more: Any) -> dict[str, Any]:
    return {
        "name": "my_panda",
        "control_freq_hz": 20,
        "actions": [
            {"name": "hand", "dims": [*"xyzabc"], "mode": "delta"},
            {"name": "gripper", "dims": ["gripper"], "kind": "binary", "role": "gripper"},
        ],
        "state": [
            {"name": "joints", "dims": [*"1234567"], "units": "rad", "key": "robot0_joint_pos"},
            {"name": "robot0_gripper_qpos", "dims": ["left", "right"], "units": "m", "role": "gripper_opening"},
            {"name": "height", "dims": ["z"], "units": "m", "key": "robot0_eef_pos[2:3]"},
        ],
        "cameras": [
            {"name": "scene", "key": "agentview_image", "fit": "crop"},
            {"name": "robot0_eye_in_hand", "orientation": "flipped_vertically"},
        ],
    } | more


@pytest.mark.parametrize("how", ["file", "attribute"])
def test_with_a_declared_robot(tmp_path: Path, how: str) -> None:
    path, yaml_file = tmp_path / "lift_the_cube.hdf5", tmp_path / "robot.yaml"
    arrays = write_robomimic(path)
    yaml_file.write_text(yaml.safe_dump(declaration()))
    if how == "attribute":
        with h5py.File(path, "a") as file:
            file["data"].attrs["robot"] = json.dumps(load_robot(yaml_file).to_dict())
    with open_reader(path, robot=str(yaml_file) if how == "file" else "auto") as reader:
        assert reader.cameras == ("scene", "robot0_eye_in_hand")
        # robomimic turns frames upright; the wrist's are declared otherwise.
        assert reader.robot.camera("scene").orientation is ImageOrientation.UPRIGHT
        assert reader.robot.camera("robot0_eye_in_hand").orientation is ImageOrientation.FLIPPED_VERTICALLY
        assert [(e.instruction, e.num_steps, e.fps) for e in reader.episodes] == [
            ("lift the cube", 5, 20),
            ("lift the cube", 7, 20),
        ]
        read = reader.read(1)
    np.testing.assert_allclose(read.actions, arrays["actions"], rtol=1e-6)
    np.testing.assert_allclose(read.robot_states["joints"], arrays["obs/robot0_joint_pos"], rtol=1e-6)
    np.testing.assert_allclose(read.robot_states["robot0_gripper_qpos"], arrays["obs/robot0_gripper_qpos"], rtol=1e-6)
    np.testing.assert_allclose(read.robot_states["height"], arrays["obs/robot0_eef_pos"][:, 2:], rtol=1e-6)
    np.testing.assert_array_equal(read.images["scene"], arrays["obs/agentview_image"])
    assert read.success


def test_without_a_declaration_it_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, written = tmp_path / "lift.hdf5", tmp_path / "robot.yaml"
    write_robomimic(path)
    with pytest.raises(UserError) as caught:
        open_reader(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("lift.hdf5", "robot0_joint_pos [7]", "agentview_image [16, 24, 3]", f"data inspect {path} --write-"):
        assert part in message
    assert commands.inspect(commands.InspectArgs(path, write_robot=written)) == 0
    text = capsys.readouterr().out
    assert "- {name: gripper, dims: [gripper], kind: binary, values: [-1, 1], role: gripper}" in text
    assert "note: actions: deltas of the hand and a continuous gripper" in text
    assert "# Assumed: cameras: frames are upright, as robomimic writes them" in written.read_text()
    reader = open_reader(path, robot=str(written))
    assert reader.robot.describe_actions() == "hand (6 continuous, delta), gripper (1 continuous, absolute)"
    assert reader.robot.describe_state() == "robot0_eef_pos (3), robot0_eef_quat (4), robot0_gripper_qpos (2)"
    assert reader.robot.field_with_role("hand_position").name == "robot0_eef_pos"  # type: ignore[union-attr]
    assert not reader.robot.find_field("object").policy  # type: ignore[union-attr]
    assert reader.cameras == ("agentview", "robot0_eye_in_hand")


def test_proposals_for_two_arms_and_for_other_controllers(tmp_path: Path) -> None:
    two, other = tmp_path / "two.hdf5", tmp_path / "other.hdf5"
    write_robomimic(two, arms=2, controller=[OSC_POSE, OSC_POSE])  # type: ignore[arg-type]
    write_robomimic(other, controller={"type": "JOINT_POSITION"})
    for path, groups in ((two, "hand0 (6 continuous, delta), gripper0 (1"), (other, "action (7 continuous, absolute)")):
        assert commands.inspect(commands.InspectArgs(path, write_robot=path.with_suffix(".yaml"))) == 0
        reader = open_reader(path, robot=str(path.with_suffix(".yaml")))
        assert reader.robot.describe_actions().startswith(groups)
        assert reader.read(0).actions.shape == (5, reader.robot.action_dim)


@pytest.mark.parametrize(
    ("arms", "robots", "size", "declared"),
    [
        (1, ["Panda"], 6, "hand (6 continuous, delta)"),
        (1, "Panda", 7, "hand (6 continuous, delta), gripper (1 continuous, absolute)"),
        (1, ["Panda"], 10, "hand (6 continuous, delta), gripper (4 continuous, absolute)"),
        (2, ["Panda", "Sawyer"], 12, "hand0 (6 continuous, delta), hand1 (6 continuous, delta)"),
        (1, ["Baxter"], 14, "hand0 (6 continuous, delta), gripper0 (1 continuous, absolute), hand1 (6 continuous, "),
        (2, ["Panda", "Panda"], 7, "action (7 continuous, absolute)"),
        (1, ["Panda"], 21, "action (21 continuous, absolute)"),
        (1, ["Panda"], 5, "action (5 continuous, absolute)"),
    ],
)
def test_proposals_follow_the_robots_and_not_the_count_alone(
    tmp_path: Path, arms: int, robots: list[str] | str, size: int, declared: str
) -> None:
    """A hand may have no gripper; deltas are proposed wherever the controller takes them."""
    path, written = tmp_path / "file.hdf5", tmp_path / "robot.yaml"
    write_robomimic(path, arms)
    with h5py.File(path, "a") as file:
        kwargs = {"robots": robots, "control_freq": 20, "controller_configs": [OSC_POSE] * arms}
        file["data"].attrs["env_args"] = json.dumps({"env_kwargs": kwargs})
        for demo in file["data"].values():
            count = len(demo["actions"])
            del demo["actions"]
            demo["actions"] = np.random.default_rng(size).uniform(-1, 1, (count, size))
    commands.inspect(commands.InspectArgs(path, write_robot=written))
    robot = load_robot(written)
    assert robot.describe_actions().startswith(declared)
    assert robot.action_dim == size
    assert ("continuous gripper" in written.read_text()) == ("gripper" in declared)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"control_freq_hz": 30}, "'my_panda' declares 30 Hz, env_args say 20 Hz; declare 'control_freq_hz: 20'"),
        ({"state": [{"name": "arm", "dims": ["a"]}]}, r"no state field 'arm' of robot 'my_panda' \(obs/arm\), obs has"),
        (
            {"state": [{"name": "joints", "dims": ["a"], "key": "robot0_joint_pos"}]},
            "obs/robot0_joint_pos has 7 numbers, expected 1 for state field 'joints'",
        ),
        ({"cameras": [{"name": "scene", "key": "frontview_image"}]}, "no 'obs/frontview_image' for camera 'scene'"),
        ({"actions": [{"name": "arm", "dims": ["a", "b"]}]}, "actions have 7 numbers, robot 'my_panda' declares 2"),
    ],
)
def test_declarations_that_do_not_fit(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path, yaml_file = tmp_path / "lift.hdf5", tmp_path / "robot.yaml"
    write_robomimic(path)
    yaml_file.write_text(yaml.safe_dump(declaration(**change)))
    with pytest.raises(UserError, match=words):
        open_reader(path, robot=str(yaml_file)).read(0)


def test_states_alone_are_no_observations(tmp_path: Path) -> None:
    """As in the files that come with robosuite: states and actions only."""
    path = tmp_path / "raw.hdf5"
    write_robomimic(path)
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            del demo["obs"]
    with pytest.raises(UserError, match="its episodes have no 'obs', only actions, dones, states"):
        open_reader(path)


def test_a_gripper_recorded_as_a_position_is_not_binary(tmp_path: Path) -> None:
    path, yaml_file = tmp_path / "lift.hdf5", tmp_path / "robot.yaml"
    write_robomimic(path)
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            demo["actions"][:, 6] = np.linspace(0.02, 0.98, len(demo["actions"]))
    yaml_file.write_text(yaml.safe_dump(declaration()))
    with pytest.raises(UserError, match=r"declared binary .* found 0.02, 0.26, .*; declare it continuous"):
        open_reader(path, robot=str(yaml_file)).read(0)
    found = [anomaly.message for anomaly in inspect_dataset(path, robot=str(yaml_file)).anomalies]
    assert len(found) == 2
    assert "action group 'gripper' of robot 'my_panda' is declared binary" in found[0]
