"""The demo's stages: run once, continued where they were killed, made anew when settings change."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
import yaml
from rich.console import Console

from statevla.demo import DemoArgs, Stage, demo, find_config, outcome_table, plan, run_stage
from statevla.errors import UserError

T = TypeVar("T")
# Stands for the package: writes its arguments, one line per call, and ends with what the file `status` holds.
SCRIPT = """
import pathlib, sys
folder = pathlib.Path(__file__).parent
with open(folder / "calls", "a") as file:
    print(*sys.argv[1:], file=file)
sys.exit(int((folder / "status").read_text()))
"""


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    (tmp_path / "statevla.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)  # `python -m` looks here first
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "status").write_text("0")
    return Stage("one", "work", [], resume=lambda: ["--resume"], fresh=lambda: ["--overwrite"])


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_a_stage_runs_once_per_settings(stage: Stage, tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    for key in ("a", "a", "b", "a"):
        run_stage(stage, key, tmp_path, "[1/1]", console)
    # Done is done; other settings start anew.
    assert calls(tmp_path) == ["work --overwrite"] * 3
    assert "done already" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_failed_stage_is_continued(stage: Stage, tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    (tmp_path / "status").write_text("2")
    with pytest.raises(UserError, match="stage 'one' ended with status 2"):
        run_stage(stage, "a", tmp_path, "[1/1]", console)
    (tmp_path / "status").write_text("0")
    run_stage(stage, "a", tmp_path, "[1/1]", console)
    assert calls(tmp_path) == ["work --overwrite", "work --resume"]
    mark = json.loads((tmp_path / "stages" / "one.json").read_text())
    assert mark["done"]
    assert mark["seconds"] > 0
    assert mark["command"] == "statevla work --resume"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_demo_leaves_no_stage_running(tmp_path: Path, how: signal.Signals) -> None:
    """Else the next run of the demo would train beside the last one's stage, in the same folder."""
    write = f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))"
    child = f"import os, pathlib, time; {write}; time.sleep(60)"
    parent = f"import sys; from statevla.demo import call; call([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent])
    pid = wait_for(lambda: int((tmp_path / "pid").read_text() or 0) if (tmp_path / "pid").exists() else 0)
    assert psutil.pid_exists(pid)
    process.send_signal(how)
    process.wait(30)
    assert wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def wait_for(condition: Callable[[], T], timeout_s: float = 30.0) -> T:
    """What the condition gives as soon as it is true; at the end whatever it gives."""
    end = time.monotonic() + timeout_s
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


def test_the_plan_follows_the_flags(tmp_path: Path) -> None:
    stages = {stage.name: stage for stage in plan(DemoArgs(tasks="0,2", phase2_steps=7, trials=3), tmp_path)}
    assert list(stages) == ["collect", "phase1", "phase2", "offline", "rollout"]
    assert "--training.phase2.max_steps 7" in stages["phase2"].shown([])
    assert "max_steps" not in stages["phase1"].shown([])
    assert "--num_trials 3" in stages["rollout"].shown([])
    assert str(tmp_path / "checkpoints" / "phase1_temporal_jepa") in stages["phase2"].shown([])
    with pytest.raises(UserError, match="at least 1"):
        plan(DemoArgs(trials=0), tmp_path)


def test_a_changed_configuration_changes_the_stages_that_read_it(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    tree = yaml.safe_load(find_config("conf/demo.yaml").read_text())

    def settings() -> dict[str, str]:
        path.write_text(yaml.safe_dump(tree))
        return {stage.name: stage.settings for stage in plan(DemoArgs(config=str(path)), tmp_path)}

    first = settings()
    tree["training"]["phase2"]["max_steps"] = 17
    second = settings()
    assert first["phase1"] == second["phase1"]
    assert first["phase2"] != second["phase2"]
    tree["model"]["encoder_depth"] = 1
    assert settings()["phase1"] != second["phase1"]


def test_the_preset_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("conf/demo.yaml").is_file()
    with pytest.raises(UserError, match="no such file"):
        find_config("conf/absent.yaml")
    assert outcome_table(tmp_path).row_count == 0  # nothing has run yet


@pytest.mark.slow
def test_the_whole_way_with_a_tiny_model(tmp_path: Path) -> None:
    pytest.importorskip("libero")
    tree = yaml.safe_load(find_config("conf/demo.yaml").read_text())
    tree["model"] |= {"embed_dim": 32, "encoder_depth": 1, "image_size": 64, "state_dim": 32}
    tree["model"]["stem"] = {"kind": "conv", "channels": [16, 32], "strides": [8, 2]}
    tree["training"]["validate_every_steps"] = 5
    for phase in ("phase1", "phase2"):
        tree["training"][phase] |= {"max_steps": 5, "batch_size": 8, "warmup_steps": 2}
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tree))
    args = DemoArgs(dir=str(tmp_path / "demo"), config=str(config), tasks="0", demos=2, trials=1, videos=1, workers=1)
    assert demo(args) == 0
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "Success in simulation: libero_object" in page
    assert "data:video/mp4" in page
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*.safetensors")}
    assert demo(args) == 0  # everything is done already
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*.safetensors")}
