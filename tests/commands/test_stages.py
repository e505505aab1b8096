"""Stages run once, are continued where they were killed, and made anew when settings change."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
from rich.console import Console

from statevla.commands.stages import Stage, run_stage, run_stages, set_aside, training_stage
from statevla.config import Config
from statevla.errors import UserError
from statevla.machine.lock import only_writer_in

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
    return Stage("one", "work", [], resume=lambda: ["--resume"], fresh=lambda: set_aside(tmp_path / "results"))


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_a_stage_runs_once_per_settings(stage: Stage, tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    for key in ("a", "a", "b", "a"):
        run_stages([replace(stage, settings=key)], tmp_path, console)
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / "key").write_text(key)
    # Done is done; other settings start anew, and what was there is kept.
    assert calls(tmp_path) == ["work"] * 3
    assert "done already" in console.file.getvalue()  # type: ignore[attr-defined]
    kept = {path.parent.name: path.read_text() for path in (tmp_path / "earlier").rglob("key")}
    assert kept == {"results-1": "a", "results-2": "b"}


def test_another_number_of_processes_makes_nothing_stale(stage: Stage, tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    for workers in ("1", "2"):
        first = replace(stage, name="first", resources=("--workers", workers))
        run_stages([first, stage], tmp_path, console)
    assert calls(tmp_path) == ["work --workers 1", "work"]
    run_stages([replace(first, arguments=["--demos", "7"]), stage], tmp_path, console)
    assert calls(tmp_path)[2:] == ["work --demos 7 --workers 2", "work"]


def test_data_that_are_gone_are_made_again_before_a_training_reads_them(stage: Stage, tmp_path: Path) -> None:
    """Else it would train without them, in silence; what no stage is going to read stays away."""
    console, made = Console(file=io.StringIO()), tmp_path / "data" / "demos"
    collect = replace(stage, name="collect", command="collect", makes=made)
    train = replace(stage, name="train", command="train", reads=(tmp_path / "data",))
    made.mkdir(parents=True)
    run_stages([collect, train], tmp_path, console)
    made.rmdir()
    run_stages([collect, train], tmp_path, console)
    assert calls(tmp_path) == ["collect", "train"]
    run_stages([collect, train, replace(train, name="more")], tmp_path, console)
    assert calls(tmp_path)[2:] == ["collect --resume", "train"]


def test_a_failed_stage_is_continued(stage: Stage, tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    (tmp_path / "status").write_text("2")
    with pytest.raises(UserError, match="stage 'one' ended with status 2"):
        run_stage(stage, "a", tmp_path, "[1/1]", console)
    (tmp_path / "status").write_text("0")
    run_stage(stage, "a", tmp_path, "[1/1]", console)
    assert calls(tmp_path) == ["work", "work --resume"]
    mark = json.loads((tmp_path / "stages" / "one.json").read_text())
    assert mark["done"]
    assert mark["seconds"] > 0
    assert mark["command"] == "statevla work --resume"


def test_stages_of_a_folder_have_one_runner_and_what_is_being_written_stays(stage: Stage, tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    with only_writer_in(tmp_path), pytest.raises(UserError, match="is writing here"):
        run_stages([stage], tmp_path, console)
    assert not (tmp_path / "calls").exists()
    (tmp_path / "results").mkdir()
    with only_writer_in(tmp_path / "results"), pytest.raises(UserError, match=r"results: process .* is writing here"):
        set_aside(tmp_path / "results")
    assert (tmp_path / "results").is_dir()
    set_aside(tmp_path / "results")
    assert [path.name for path in (tmp_path / "earlier" / "results-1").iterdir()] == []


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_parent_leaves_no_stage_running(tmp_path: Path, how: signal.Signals) -> None:
    """Else the next run would train beside the last one's stage, in the same folder."""
    write = f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))"
    child = f"import os, pathlib, time; {write}; time.sleep(900)"
    parent = f"import sys; from statevla.commands.stages import call; call([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent])
    pid = wait_for(lambda: int((tmp_path / "pid").read_text() or 0) if (tmp_path / "pid").exists() else 0)
    assert psutil.pid_exists(pid)
    process.send_signal(how)
    process.wait(240)
    assert wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def wait_for(condition: Callable[[], T], timeout_s: float = 240.0) -> T:
    """What the condition gives as soon as it is true; at the end whatever it gives."""
    end = time.monotonic() + timeout_s
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


def test_a_training_is_stale_when_what_its_phase_reads_changes(tmp_path: Path) -> None:
    def settings(phase: str, **training: object) -> str:
        config = Config.model_validate({"training": training})
        return training_stage(phase, config, [], tmp_path).settings

    other = {"phase2": {"max_steps": 7}}
    assert settings("1", **other) == settings("1")
    assert settings("2", **other) != settings("2")
    assert settings("1", weight_decay=0.5) != settings("1")


def test_phase_2_builds_on_phase_1(tmp_path: Path) -> None:
    def words(phase: str, **more: Path) -> list[str]:
        return training_stage(phase, Config(), ["--seed", "1"], tmp_path / "own", **more).arguments

    assert words("1") == ["--phase", "1", "--seed", "1"]
    assert str(tmp_path / "own" / "phase1_temporal_jepa" / "checkpoint_best.pt") in words("2")
    other = words("2", phase1_checkpoints=tmp_path / "other")
    assert str(tmp_path / "other" / "phase1_temporal_jepa" / "checkpoint_best.pt") in other


def test_an_initial_checkpoint_brings_its_encoder(tmp_path: Path) -> None:
    for phase in ("1", "2", "bc"):
        words = training_stage(phase, Config(), [], tmp_path, init_checkpoint="models/first").arguments
        assert words == ["--phase", phase, "--init_checkpoint", "models/first"]
