"""`statevla data inspect` finds what it should, and nothing in a sound data set."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from lerobot_files import Dataset, Episode, write_dataset
from libero_files import smooth_episode, write_official_file
from statevla.commands import data as commands
from statevla.data.convert import convert
from statevla.data.inspect import inspect_dataset
from statevla.errors import UserError
from statevla.robots import LIBERO, RobotSpec, load_robot


@pytest.fixture
def own(libero_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(libero_dir, tmp_path / "data")


def change_actions(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in folder.glob("*.hdf5"):
        with h5py.File(path, "a") as file:
            for demo in file["data"].values():
                demo["actions"][...] = change(demo["actions"][()])


def test_a_sound_data_set(libero_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.inspect(commands.InspectArgs(libero_dir)) == 0
    text = capsys.readouterr().out
    for part in (
        "9, 2",
        "libero, 20 Hz",
        "hand (6 continuous, delta), gripper (1 binary)",
        "joint_positions (7, rad); finger_positions (2, m); hand_position (3, m, not for the policy)",
        "agentview 64x64 px, stored flipped_vertically, fit pad",
        "joint_positions joint_1 (rad)",
        "push the green block to the left",
        "no anomalies",
    ):
        assert part in text, part
    assert "declares no orientation" in text


def test_json(libero_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.inspect(commands.InspectArgs(libero_dir, json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_episodes"] == found["num_episodes_read"] == 9
    assert found["num_steps"] == sum(sum(task["lengths"]) for task in found["tasks"])
    assert RobotSpec.from_dict(found["robot"], "test").difference(LIBERO) is None
    assert list(found["robot_states"]) == ["joint_positions", "finger_positions", "hand_position", "hand_orientation"]
    assert found["objects"] == ["block_1"]
    assert len(found["actions"]["mean"]) == 7
    assert found["anomalies"] == []


def test_page_is_self_contained(libero_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "pages" / "report.html"
    assert commands.inspect(commands.InspectArgs(libero_dir, report=page)) == 0
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 2 * 2 + 2  # cameras of two tasks, two pages of histograms
    assert not re.search(r"(src|href)='?\"?(http|/|\.)", text)


def test_lerobot(libero_dir: Path, tmp_path: Path) -> None:
    result = inspect_dataset(convert(libero_dir, tmp_path / "lerobot", "lerobot"))
    assert (result.format, result.num_episodes, result.anomalies) == ("lerobot", 9, [])


def test_part_of_the_episodes(libero_dir: Path) -> None:
    result = inspect_dataset(libero_dir, max_episodes=3)
    assert (result.num_read, result.num_episodes) == (3, 9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: np.concatenate([a[:, :6] * 2, a[:, 6:]], axis=1), r"actions leave \[-1, 1\] \(largest 1\.2\)"),
        (
            lambda a: np.concatenate([a[:, :6], (a[:, 6:] + 1) / 2], axis=1),
            r"'gripper' of robot 'libero' is declared binary .* -1 and 1, found 0, 1; .*values: \[0, 1\]",
        ),
        (lambda a: np.concatenate([a[:, :6], -a[:, 6:]], axis=1), "sign seems inverted"),
        (lambda a: np.where(np.arange(7) == 6, np.where(a > 0, 0.98, 0.02), a), r"found 0.02, 0.98; declare it contin"),
        (lambda a: a * np.array([1, 1, 0, 1, 1, 1, 1]), r"action dims z never change"),
        (lambda a: a * np.array([0, 0, 0, 0, 0, 0, 1]), r"\d+% of the actions do nothing"),
        (lambda a: a * np.array([0, 0, 0, 0, 0, 0, 1]), "all continuous actions are zero"),
        (lambda a: np.where(np.arange(len(a))[:, None] == 4, np.inf, a), "NaN or infinite values at step 4"),
    ],
)
def test_odd_actions(own: Path, change: Callable[[np.ndarray], np.ndarray], words: str) -> None:
    change_actions(own, change)
    found = [f"{a.where}: {a.message}" for a in inspect_dataset(own).anomalies]
    assert any(re.search(words, line) for line in found), found
    assert commands.inspect(commands.InspectArgs(own)) == 1


def test_odd_pictures(own: Path) -> None:
    first, second = sorted(own.iterdir())
    with h5py.File(first, "a") as file:
        file["data/demo_0/obs/agentview_rgb"][3:5] = 0
        file["data/demo_1/obs/eye_in_hand_rgb"][:] = file["data/demo_1/obs/eye_in_hand_rgb"][0]
    with h5py.File(second, "a") as file:
        obs = file["data/demo_2/obs"]
        wide = obs["agentview_rgb"][:, :32]
        del obs["agentview_rgb"]
        obs["agentview_rgb"] = wide
    messages = " | ".join(f"{a.where} {a.message}" for a in inspect_dataset(own).anomalies)
    assert re.search(r"demo_0 camera 'agentview': 2 of \d+ frames are blank", messages)
    assert re.search(r"demo_1 camera 'eye_in_hand': all \d+ frames are the same", messages)
    # Frames need not be square: the declaration says how they are fitted.
    assert "demo_2" not in messages


def test_damaged_files_do_not_hide_the_others(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sorted(own.iterdir())
    first.write_bytes(first.read_bytes()[:5000])
    with h5py.File(second, "a") as file:
        del file["data/demo_1/obs/joint_states"], file["data/demo_1/obs/gripper_states"]
    result = inspect_dataset(own)
    assert (result.num_episodes, result.num_read) == (4, 3)
    assert [a.where for a in result.anomalies] == [first.name, f"{second.name}/demo_1"]
    assert "truncated" in result.anomalies[0].message
    assert commands.inspect(commands.InspectArgs(own)) == 1
    assert "2 anomalies" in capsys.readouterr().out


def test_wrong_number_of_action_dims(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, dims in (("a", 7), ("b", 6)):
        episode = smooth_episode(rng, 8, 16, (9, 9, 9))
        episode["actions"] = episode["actions"][:, -dims:]
        write_official_file(tmp_path / f"{name}_demo.hdf5", name, [episode])
    messages = " | ".join(a.message for a in inspect_dataset(tmp_path).anomalies)
    assert messages.endswith(
        "robot 'libero' declares 7: hand (6 continuous, delta), gripper (1 binary); "
        "declare the robot that made them (data.robot)"
    )
    assert "actions have 6 numbers" in messages


def test_a_single_broken_file_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.hdf5"
    broken.write_text("no")
    with pytest.raises(UserError, match="not a readable HDF5 file"):
        inspect_dataset(broken)
    with pytest.raises(UserError, match="no such file"):
        inspect_dataset(tmp_path / "absent")
    with pytest.raises(UserError, match="--max-episodes 0: expected at least 1"):
        commands.inspect(commands.InspectArgs(tmp_path, max_episodes=0))


def test_convert_and_cache_commands(libero_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "converted"
    assert commands.convert(commands.ConvertArgs(libero_dir, target, "lerobot")) == 0
    assert str(target) in capsys.readouterr().out
    config = tmp_path / "config.yaml"
    config.write_text("model: {image_size: 32, stem: {kind: patch, patch_size: 8}}\n")
    overrides = (f"data.path={target}", f"data.cache_dir={tmp_path / 'cache'}")
    assert commands.cache(commands.CacheArgs(overrides, config)) == 0
    assert "9 episodes" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "cache").iterdir() if not p.name.startswith(".")]
    with pytest.raises(UserError, match="--num-processes 0"):
        commands.cache(commands.CacheArgs(overrides, config, num_processes=0))


def test_two_values_and_their_declaration(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A continuous group with two values: the line that is printed, put into the YAML, declares it."""
    written = tmp_path / "robots" / "mine.yaml"
    assert commands.inspect(commands.InspectArgs(own, write_robot=written)) == 0
    tree = yaml.safe_load(written.read_text())
    assert tree["cameras"][0] == {"name": "agentview", "orientation": "flipped_vertically"}
    tree["actions"] = [{"name": "action", "dims": [*"abcdef", "jaw grip"], "mode": "delta"}]
    loose = tmp_path / "loose.yaml"
    loose.write_text(yaml.safe_dump(tree))
    capsys.readouterr()
    assert commands.inspect(commands.InspectArgs(own, robot=str(loose))) == 0
    line = "- {name: jaw_grip, dims: [jaw grip], kind: binary, values: [-1, 1]}"
    assert line in capsys.readouterr().out
    tree["actions"] = [{"name": "action", "dims": [*"abcdef"], "mode": "delta"}, *yaml.safe_load(line)]
    loose.write_text(yaml.safe_dump(tree))
    result = inspect_dataset(own, robot=str(loose))
    assert (result.binary_hints, result.anomalies) == ([], [])
    assert load_robot(loose).is_binary.tolist() == [False] * 6 + [True]
    with pytest.raises(UserError, match=r"mine\.yaml: exists already"):
        commands.inspect(commands.InspectArgs(own, write_robot=written))


def test_what_is_assumed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers that nobody declared are no anomalies: not many, not large, not at rest."""
    actions = np.linspace(50, 170, 20)[:, None] * [1, -1, 0]
    columns = {"observation.state": actions[:, :2], "action": actions}
    root = write_dataset(tmp_path / "x", Dataset({"action": ["pan", "tilt", "lock"]}, [Episode(columns)], cameras=()))
    assert commands.inspect(commands.InspectArgs(root)) == 0
    text = capsys.readouterr().out
    for part in (
        "note: actions are taken as absolute targets (mode: absolute)",
        "note: units of the state are not known",
        "note: action dims lock hold one value throughout",
        "state (2, units not known)",
        "no anomalies",
    ):
        assert part in text, part


def test_names_out_of_the_data_are_only_text(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in own.glob("*.hdf5"):
        with h5py.File(path, "a") as file:
            file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "go [/red] <script>$x$</script>"})
    page = tmp_path / "page.html"
    assert commands.inspect(commands.InspectArgs(own, report=page)) == 0
    assert "go [/red] <script>" in capsys.readouterr().out
    assert "<script>" not in page.read_text()
