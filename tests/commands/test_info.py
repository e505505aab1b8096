"""`statevla info`: parameters, robot and shapes, of a configuration for any robot or of a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from checkpoint_edits import edit
from robot_files import BENCH
from statevla.commands.info import InfoArgs, info
from statevla.errors import UserError
from statevla.robots import save_robot

SHIPPED = Path(__file__).parents[2] / "models" / "libero_object_compact"


def printed(capsys: pytest.CaptureFixture[str], args: InfoArgs) -> str:
    """All that is printed, with the tables' lines and line breaks taken out."""
    info(args)
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_the_specs_configuration_and_robot(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, InfoArgs())
    for part in (
        "14,862,096",
        "robot libero, 20 Hz",
        "hand x, y, z, rx, ry, rz: continuous, delta, -1 to 1",
        "gripper gripper: binary, -1 (off) or 1 (on), gripper",
        "finger_positions left, right (m): gripper opening",
        "[B, 9] joint_positions (7), finger_positions (2)",
        "[lang(1)] [robot(1)] [agentview(196)]",
        "[B, 10, 7]",
    ):
        assert part in text


def test_a_configuration_for_another_robot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.yaml"
    save_robot(BENCH.model_copy(update={"control_freq_hz": 12.5}), file)
    text = printed(capsys, InfoArgs(config="conf/compact.yaml", robot=str(file)))
    for part in (
        "robot bench, 12.5 Hz",
        "arm pan, lift: continuous, absolute, measured by arm",
        "valve valve: binary, 0 (off) or 1 (on), gripper",
        "base turn: continuous, delta, -1 to 1",
        "arm pan, lift (rad)",
        "side stored upright; a frame that is not square is cropped to its middle",
        "[B, 3] arm (2), base (1)",
        "[B, 16, 4]",
    ):
        assert part in text
    # Without a binary number there is no classifier.
    text = printed(capsys, InfoArgs(config="conf/compact.yaml", robot="unitree_g1"))
    assert "[B, 16, 26]" in text
    assert "gripper classifier" not in text


def test_data_robot_of_the_configuration_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dims = "{action_dim: auto, robot_state_dim: auto, cameras: auto}"
    (tmp_path / "config.yaml").write_text(f"model: {dims}\ndata: {{robot: so101}}\n")
    assert "robot so101, 30 Hz" in printed(capsys, InfoArgs(config=str(tmp_path / "config.yaml")))


def test_a_checkpoint_brings_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, InfoArgs(checkpoint=str(SHIPPED)))
    assert "3,851,222" in text
    assert "robot libero, 20 Hz" in text
    # Nothing but the declaration says so.
    folder = shutil.copytree(SHIPPED, tmp_path / "renamed")
    tree = json.loads((folder / "robot.json").read_text())
    edit(folder / "robot.json", json.dumps({**tree, "name": "panda", "assumed": ["frames are <upright>"]}))
    text = printed(capsys, InfoArgs(checkpoint=str(folder)))
    assert "robot panda, 20 Hz" in text
    assert "assumed: frames are <upright>" in text


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    for args, words in (
        (InfoArgs(robot="so101"), r"model.action_dim is 7, robot 'so101' has 6: arm .*; set model.action_dim to auto"),
        (InfoArgs(robot="so100"), r"robot 'so100': did you mean 'so101'\?"),
        (InfoArgs(robot="libero", checkpoint=str(SHIPPED)), r"expected --checkpoint alone"),
        (InfoArgs(checkpoint=str(tmp_path)), r"not found \(.* is empty or absent\)"),
    ):
        with pytest.raises(UserError, match=words) as error:
            info(args)
        assert "\n" not in str(error.value)
