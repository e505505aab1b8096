"""A run folder has one writer, and a run that is told to end closes what it has open."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from statevla.checkpoints.checkpoint import load_training_state
from statevla.config import Config
from statevla.errors import UserError
from statevla.machine.lock import only_writer_in
from statevla.training.run import train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tiny_config: Config, tmp_path: Path) -> Config:
    return tiny_config.model_copy(update={"output_dir": str(tmp_path / "runs")})


def command_of(config: Config, folder: Path, *arguments: str) -> list[str]:
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return [str(ROOT / "train.py"), "--config", str(folder / "config.yaml"), "--phase", "bc", *arguments]


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_second_training_is_refused_before_it_writes(
    config: Config, tmp_path: Path, options: dict[str, bool]
) -> None:
    run = tmp_path / "runs" / "behaviour_cloning"
    if options:
        train(config, "bc")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with only_writer_in(run):
        with pytest.raises(UserError, match=rf"{run}: process {os.getpid()} on .* is writing here; wait until it ends"):
            train(config, "bc", **options)
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"} == before


def test_every_process_of_torchrun_ends_where_the_folder_is_taken(config: Config, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "behaviour_cloning"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    with only_writer_in(run):
        done = subprocess.run([*torchrun, *command_of(config, tmp_path)], capture_output=True, text=True, timeout=300)
        assert [path.name for path in run.iterdir()] == [".lock"]
    assert done.returncode != 0
    errors = sorted(line for line in done.stderr.splitlines() if line.startswith("error"))
    assert errors[0] == "error (process 1): ended, as process 0 says why"
    assert errors[1].startswith(f"error: {run}: process {os.getpid()} on ")
    assert len(errors) == 2


def test_a_training_that_is_terminated_can_be_resumed(config: Config, tmp_path: Path) -> None:
    words = command_of(config, tmp_path, "--training.bc.max_steps", "100000")
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any(line.startswith("step 8: validation") for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (143, "terminated\n")
    run = tmp_path / "runs" / "behaviour_cloning"
    assert not (run / ".lock").exists()
    step = load_training_state(run)[0].values["step"]
    assert step >= 4
    section = config.training.bc.model_copy(update={"max_steps": step + 4})
    training = config.training.model_copy(update={"bc": section})
    train(config.model_copy(update={"training": training}), "bc", resume=True)
    assert load_training_state(run)[0].values["step"] == step + 4
