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

from libero_files import smooth_episode, write_official_file
from statevla.data import cli
from statevla.data.convert import convert
from statevla.data.inspect import inspect_dataset
from statevla.errors import UserError


@pytest.fixture
def own(libero_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(libero_dir, tmp_path / "data")


def change_actions(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in folder.glob("*.hdf5"):
        with h5py.File(path, "a") as file:
            for demo in file["data"].values():
                demo["actions"][...] = change(demo["actions"][()])


def test_a_sound_data_set(libero_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.inspect(cli.InspectArgs(libero_dir)) == 0
    text = capsys.readouterr().out
    for part in ("9, 2", "64x64 px", "flipped_vertically", "20 Hz", "push the green block to the left", "no anomalies"):
        assert part in text
    assert "declares no orientation" in text


def test_json(libero_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.inspect(cli.InspectArgs(libero_dir, json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_episodes"] == found["num_episodes_read"] == 9
    assert found["num_steps"] == sum(sum(task["lengths"]) for task in found["tasks"])
    assert found["robot_state_layouts"] == ["ee_gripper", "joint_gripper"]
    assert found["objects"] == ["block_1"]
    assert len(found["actions"]["mean"]) == 7
    assert found["anomalies"] == []


def test_page_is_self_contained(libero_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "pages" / "report.html"
    assert cli.inspect(cli.InspectArgs(libero_dir, report=page)) == 0
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 2 * 2 + 3  # cameras of two tasks, three histograms
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
        (lambda a: np.concatenate([a[:, :6], (a[:, 6:] + 1) / 2], axis=1), "gripper commands are 0, 1; expected -1"),
        (lambda a: np.concatenate([a[:, :6], -a[:, 6:]], axis=1), "sign seems inverted"),
        (lambda a: a * np.array([1, 1, 0, 1, 1, 1, 1]), r"action dims \[2\] never change"),
        (lambda a: a * np.array([0, 0, 0, 0, 0, 0, 1]), r"\d+% of the actions do nothing"),
        (lambda a: a * np.array([0, 0, 0, 0, 0, 0, 1]), "all continuous actions are zero"),
        (lambda a: np.where(np.arange(len(a))[:, None] == 4, np.inf, a), "NaN or infinite values at step 4"),
    ],
)
def test_odd_actions(own: Path, change: Callable[[np.ndarray], np.ndarray], words: str) -> None:
    change_actions(own, change)
    found = [f"{a.where}: {a.message}" for a in inspect_dataset(own).anomalies]
    assert any(re.search(words, line) for line in found), found
    assert cli.inspect(cli.InspectArgs(own)) == 1


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
    assert "demo_2 camera 'agentview' is 64x32, not square" in messages


def test_damaged_files_do_not_hide_the_others(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sorted(own.iterdir())
    first.write_bytes(first.read_bytes()[:5000])
    with h5py.File(second, "a") as file:
        del file["data/demo_1/obs/joint_states"], file["data/demo_1/obs/gripper_states"]
    result = inspect_dataset(own)
    assert (result.num_episodes, result.num_read) == (4, 3)
    assert [a.where for a in result.anomalies] == [first.name, f"{second.name}/demo_1"]
    assert "truncated" in result.anomalies[0].message
    assert cli.inspect(cli.InspectArgs(own)) == 1
    assert "2 anomalies" in capsys.readouterr().out


def test_wrong_number_of_action_dims(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, dims in (("a", 7), ("b", 6)):
        episode = smooth_episode(rng, 8, 16, (9, 9, 9))
        episode["actions"] = episode["actions"][:, -dims:]
        write_official_file(tmp_path / f"{name}_demo.hdf5", name, [episode])
    messages = " | ".join(a.message for a in inspect_dataset(tmp_path).anomalies)
    assert "actions have 6 numbers, expected 7" in messages
    assert "actions have [6, 7] numbers in different episodes" in messages


def test_a_single_broken_file_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.hdf5"
    broken.write_text("no")
    with pytest.raises(UserError, match="not a readable HDF5 file"):
        inspect_dataset(broken)
    with pytest.raises(UserError, match="no such file"):
        inspect_dataset(tmp_path / "absent")
    with pytest.raises(UserError, match="--max-episodes 0: expected at least 1"):
        cli.inspect(cli.InspectArgs(tmp_path, max_episodes=0))


def test_convert_and_cache_commands(libero_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "converted"
    assert cli.convert(cli.ConvertArgs(libero_dir, target, "lerobot")) == 0
    assert str(target) in capsys.readouterr().out
    config = tmp_path / "config.yaml"
    config.write_text("model: {image_size: 32, stem: {kind: patch, patch_size: 8}}\n")
    overrides = (f"data.path={target}", f"data.cache_dir={tmp_path / 'cache'}")
    assert cli.cache(cli.CacheArgs(overrides, config)) == 0
    assert "9 episodes" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "cache").iterdir() if not p.name.startswith(".")]
    with pytest.raises(UserError, match="--num-processes 0"):
        cli.cache(cli.CacheArgs(overrides, config, num_processes=0))
