"""Logs of a run: what a resumed one keeps, what TensorBoard reads, and a full disk in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from statevla.training.run_log import RunLog


def test_log_drops_what_will_be_written_again(tmp_path: Path) -> None:
    log = RunLog(tmp_path, "title", 10, 0, {})
    for step in (2, 4, 6):
        log.record("train", step, {"total": float("nan") if step == 2 else 1.0, "shapes": {"a": "x"}})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    RunLog(tmp_path, "title", 10, 4, {}).close()
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [2, 4]
    assert entries[0]["total"] is None


def test_tensorboard_reads_the_scalars_and_a_resumed_run_goes_on_from_its_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, steps in ((0, (2, 4, 6)), (4, (5, 7))):
        log = RunLog(tmp_path, "title", 10, first, {})
        for step in steps:
            log.record("train", step, {"total": 0.5 * step, "epoch": 1, "shapes": {"a": "x"}})
        log.close()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert read.Tags()["scalars"] == ["train/total", "train/epoch"]
    assert [(event.step, event.value) for event in read.Scalars("train/total")] == [(2, 1), (4, 2), (5, 2.5), (7, 3.5)]


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full and /proc are Linux's")
@pytest.mark.parametrize("name", ["tensorboard", "log.jsonl"])
@pytest.mark.parametrize("is_saved", [False, True])
def test_a_disk_that_fills_up_is_one_line_that_says_what_is_safe(tmp_path: Path, name: str, is_saved: bool) -> None:
    """The open file becomes /dev/full, which fails every write as a full disk does."""
    if name == "tensorboard":
        pytest.importorskip("tensorboard")
    if is_saved:
        (tmp_path / "last").mkdir()
    code = f"""
import contextlib, os, pathlib
from statevla.commands.entry import run_command
from statevla.training.run_log import RunLog

def work():
    with contextlib.closing(RunLog(pathlib.Path({str(tmp_path)!r}), "title", 10, 0, {{}})) as log:
        log.record("train", 1, {{"total": 0.5}})
        for descriptor in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if {str(tmp_path / name)!r} in os.readlink(f"/proc/self/fd/{{descriptor}}"):
                    os.dup2(os.open("/dev/full", os.O_WRONLY), int(descriptor))
        log.record("train", 2, {{"total": 0.25}})

run_command(work)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    safe = (
        f"the last checkpoint in {tmp_path} is intact; make room, and go on with --resume"
        if is_saved
        else "no checkpoint was written yet; make room, and start again"
    )
    assert done.stderr == f"error: {tmp_path / name}: cannot be written (the disk is full); {safe}\n"
    assert done.returncode == 2
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["total"] == 0.5
