"""`statevla view` writes recordings that Rerun reads back: what was logged is what the files hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from robot_files import BENCH, write_bench_file
from statevla.errors import UserError
from statevla.robots import save_robot

pytest.importorskip("rerun")

from statevla.commands.view import ViewArgs, view


def entities(recording: Path) -> set[str]:
    """Entity paths of a recording, read by Rerun itself."""
    from rerun.experimental import RrdReader

    store = RrdReader(str(recording)).store()
    return {str(path) for path in store.schema().entity_paths()}


def test_data_set_becomes_a_recording(libero_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new folder" / "data.rrd"
    assert view(ViewArgs(str(libero_dir), episodes=2, out=str(out))) == 0
    assert capsys.readouterr().out.startswith("2 episodes of")
    found = entities(out)
    for episode in ("episode_0", "episode_1"):
        for part in ("agentview", "eye_in_hand", "action/hand/rz", "action/gripper/gripper", "objects", "instruction"):
            assert f"/{episode}/{part}" in found
        assert f"/{episode}/state/joint_positions/joint_7" in found
        assert f"/{episode}/state/hand_position/z" in found
    assert not any(path.startswith("/episode_2") for path in found)
    assert times(out, "/episode_0/action/hand/x")[:3] == pytest.approx([0.0, 0.05, 0.1])


def test_a_declared_robot_gives_names_and_time(tmp_path: Path) -> None:
    """Names that are no paths, from a declaration that the file itself lacks; ten steps a second."""
    arm = BENCH.actions[0].model_copy(update={"dims": ("motor 1/a", "motor 1/b")})
    robot = BENCH.model_copy(update={"actions": (arm, *BENCH.actions[1:])})
    save_robot(robot, tmp_path / "robot.yaml")
    data = write_bench_file(tmp_path / "turn_demo.hdf5", num_episodes=1, robot=None)
    with pytest.raises(UserError, match="declares no robot"):
        view(ViewArgs(str(data), out=str(tmp_path / "x.rrd")))
    out = tmp_path / "data.rrd"
    view(ViewArgs(str(data), robot=str(tmp_path / "robot.yaml"), out=str(out)))
    assert {"/episode_0/side", "/episode_0/action/valve/valve", "/episode_0/state/arm/lift"} <= entities(out)
    assert times(out, r"/episode_0/action/arm/motor\ 1\/b")[:3] == pytest.approx([0.0, 0.1, 0.2])


def times(recording: Path, entity: str) -> list[float]:
    """At which seconds an entity was logged."""
    from rerun.experimental import RrdReader

    rows = []
    for chunk in RrdReader(str(recording)).store().stream():
        if str(chunk.entity_path) == entity:
            rows += chunk.to_record_batch()["time"].cast("int64").to_pylist()
    return [time_ns / 1e9 for time_ns in sorted(rows)]


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    """Results of two episodes and an error, one with a video."""
    from statevla.worlds.video import write_mp4

    folder = tmp_path / "rollouts"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"execute_steps": 4, "surprise_threshold": 0.3}))
    plain = {"task": 0, "instruction": "pick up the soup", "num_steps": 12}
    lines = [
        {**plain, "trial": 0, "success": True, "surprise": [0.1, 0.2], "novelty": [1.0, 2.0, 3.0]},
        {**plain, "trial": 1, "success": None, "surprise": [], "novelty": []},
        {**plain, "trial": 2, "success": False, "surprise": [0.4], "novelty": []},
    ]
    (folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    frames = [np.full((64, 64, 3), 20 * number, np.uint8) for number in range(10)]
    write_mp4(folder / "videos" / "task00_trial000_success.mp4", frames, 10.0)
    return folder


def test_rollouts_become_a_recording(rollouts: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    out = tmp_path / "rollouts.rrd"
    view(ViewArgs(str(rollouts), out=str(out)))
    found = entities(out)
    assert {"/task00_trial000_success/video", "/task00_trial000_success/novelty"} <= found
    assert {"/task00_trial002_failure/surprise", "/task00_trial002_failure/surprise_threshold"} <= found
    assert not any("trial001" in path for path in found)  # an error is no episode
    # Without a word about it, at LIBERO's 20 steps a second.
    assert times(out, "/task00_trial000_success/novelty") == pytest.approx([0.0, 0.2, 0.4])
    settings = json.loads((rollouts / "settings.json").read_text())
    (rollouts / "settings.json").write_text(json.dumps({**settings, "control_freq_hz": 5.0}))
    view(ViewArgs(str(rollouts), out=str(out)))
    assert times(out, "/task00_trial000_success/novelty") == pytest.approx([0.0, 0.8, 1.6])


def test_a_torn_line_is_left_out_and_links_are_not_followed(rollouts: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    out, video = tmp_path / "rollouts.rrd", rollouts / "videos" / "task00_trial000_success.mp4"
    with (rollouts / "episodes.jsonl").open("a") as file:
        file.write('{"task": 0, "tri')
    view(ViewArgs(str(rollouts), out=str(out)))
    before = out.read_bytes()
    video.rename(tmp_path / "elsewhere.mp4")
    video.symlink_to(tmp_path / "elsewhere.mp4")
    with pytest.raises(UserError, match=r"got a link to .*elsewhere\.mp4"):
        view(ViewArgs(str(rollouts), out=str(out)))
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_recording_without_its_end_is_none(libero_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what a disk that is full at the last moment leaves, of which Rerun raises nothing."""
    import rerun

    monkeypatch.setattr(rerun.RecordingStream, "disconnect", lambda recording: None)
    with pytest.raises(UserError, match="cannot be written \\(its end is missing"):
        view(ViewArgs(str(libero_dir), episodes=1, out=str(tmp_path / "data.rrd")))
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_one_line(tmp_path: Path, libero_dir: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        view(ViewArgs(str(tmp_path / "absent"), out=str(tmp_path / "x.rrd")))
    with pytest.raises(UserError, match="at least 1"):
        view(ViewArgs(str(libero_dir), episodes=0))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        view(ViewArgs(str(libero_dir), out=str(tmp_path / "file" / "x.rrd")))
