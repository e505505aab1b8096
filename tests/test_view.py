"""`statevla view` writes recordings that Rerun reads back: what was logged is what the files hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from statevla.errors import UserError

pytest.importorskip("rerun")

from statevla.view import ViewArgs, view


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
        for part in ("agentview", "eye_in_hand", "action/gripper", "joint_gripper/8", "objects", "instruction"):
            assert f"/{episode}/{part}" in found
    assert not any(path.startswith("/episode_2") for path in found)


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


def test_bad_input_is_one_line(tmp_path: Path, libero_dir: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        view(ViewArgs(str(tmp_path / "absent"), out=str(tmp_path / "x.rrd")))
    with pytest.raises(UserError, match="at least 1"):
        view(ViewArgs(str(libero_dir), episodes=0))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        view(ViewArgs(str(libero_dir), out=str(tmp_path / "file" / "x.rrd")))
