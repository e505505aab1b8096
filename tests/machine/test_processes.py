"""Training as a user runs it: real processes, killed, several at once, and given wrong input."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from statevla.checkpoints.checkpoint import load_checkpoint
from statevla.commands.train import parse_overrides
from statevla.config import Config
from statevla.machine.storage import read_tensors
from statevla.training.run import train

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def write_config(config: Config, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def run_train(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, **options)


def step_of(run: Path) -> int:
    """The step of `last`, 0 while there is none."""
    try:
        return int(json.loads((run / "last" / "training_state" / "state.json").read_text())["step"])
    except FileNotFoundError:
        return 0


def test_a_killed_run_ends_with_the_same_weights(tiny_config: Config, tmp_path: Path) -> None:
    """SIGKILL at two arbitrary moments, then on to the end: bit for bit the weights of a run that was left alone."""
    section = tiny_config.training.bc.model_copy(update={"max_steps": 160})
    training = tiny_config.training.model_copy(
        update={"bc": section, "checkpoint_every_steps": 5, "validate_every_steps": 60, "log_every_steps": 10}
    )
    config = tiny_config.model_copy(update={"training": training, "output_dir": str(tmp_path / "whole")})
    arguments = ["--config", str(write_config(config, tmp_path)), "--phase", "bc", "--output_dir"]
    command = [sys.executable, str(ROOT / "train.py"), *arguments, str(tmp_path / "killed")]
    killed = tmp_path / "killed" / "behaviour_cloning"
    for least_step, delay_s, options in ((20, 0.013, []), (60, 0.037, ["--resume"])):
        process = subprocess.Popen([*command, *options], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        while step_of(killed) < least_step and process.poll() is None:
            time.sleep(0.002)
        time.sleep(delay_s)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert least_step <= step_of(killed) < 160
    done = run_train(*arguments, str(tmp_path / "killed"), "--resume")
    assert done.returncode == 0, done.stderr
    whole = train(config, "bc")
    for file in ("last/model.safetensors", "last/training_state/state.safetensors"):
        left, right = read_tensors(whole / file), read_tensors(killed / file)
        assert left.keys() == right.keys()
        for name, tensor in left.items():
            assert torch.equal(tensor, right[name]), name
    assert (
        load_checkpoint(whole / "best").metrics["validation"] == load_checkpoint(killed / "best").metrics["validation"]
    )


def torchrun_command(config: Path, phase: str, output: Path, *arguments: str) -> list[str]:
    """Two processes of `train.py`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command += [str(ROOT / "train.py"), "--config", str(config), "--phase", phase, "--output_dir", str(output)]
    return [*command, *arguments]


def torchrun(config: Path, phase: str, output: Path, *arguments: str) -> None:
    command = torchrun_command(config, phase, output, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("first batch") == int("--resume" not in arguments)


def losses(run: Path, kind: str = "train") -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("time", "samples_per_s", "kind")}
        for line in lines
        if line["kind"] == kind
    ]


def assert_close_runs(left: Path, right: Path) -> None:
    for kind in ("train", "validation"):
        ours, theirs = losses(left, kind), losses(right, kind)
        assert len(ours) == len(theirs) > 0
        for a, b in zip(ours, theirs):
            for name in ("total", "grad_norm", "loss"):
                if name in a:
                    assert a[name] == pytest.approx(b[name], rel=1e-3), (name, a["step"])
    ours_weights, theirs_weights = (read_tensors(run / "last" / "model.safetensors") for run in (left, right))
    for name, tensor in ours_weights.items():
        # A convolution's bias right before a normalisation per channel changes nothing: its gradient is rounding noise,
        # which Adam blows up to full steps.
        if not re.fullmatch(r".*stems\.\d+\.0\.bias", name):
            torch.testing.assert_close(tensor, theirs_weights[name], rtol=1e-3, atol=1e-4, msg=f"{name} differs")


def test_two_processes_equal_one_in_phase_1(tiny_config: Config, tmp_path: Path) -> None:
    """Same global batch, batch statistics over both processes: the same losses and weights."""
    config = tiny_config.model_copy(update={"output_dir": str(tmp_path / "one")})
    torchrun(write_config(config, tmp_path), "1", tmp_path / "two")
    assert_close_runs(train(config, "1"), tmp_path / "two" / "phase1_temporal_jepa")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_equal_one_end_to_end(tiny_config: Config, tmp_path: Path, accumulation: int) -> None:
    """Padded chunks of unequal number, so that a mean of means would differ; noise belongs to samples."""
    config = tiny_config.model_copy(update={"output_dir": str(tmp_path / "one")})
    path = write_config(config, tmp_path)
    torchrun(path, "bc", tmp_path / "two", f"training.gradient_accumulation_steps={accumulation}")
    assert_close_runs(train(config, "bc"), tmp_path / "two" / "behaviour_cloning")


def test_two_processes_equal_one_in_phase_2(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config.model_copy(update={"output_dir": str(tmp_path / "one")})
    phase1 = train(config, "1")
    path = write_config(config, tmp_path)
    torchrun(path, "2", tmp_path / "two", "--phase1_checkpoint", str(phase1 / "checkpoint_best.pt"))
    assert_close_runs(train(config, "2", phase1), tmp_path / "two" / "phase2_flow_matching")


@pytest.mark.slow
def test_phase_2_in_two_processes_survives_being_killed(tiny_config: Config, tmp_path: Path) -> None:
    """SIGKILL of torchrun and both processes at an arbitrary moment, then on to the end: the same weights, bit for bit,
    as two processes that were left alone."""
    section = tiny_config.training.phase2.model_copy(update={"max_steps": 400})
    training = tiny_config.training.model_copy(
        update={"phase2": section, "checkpoint_every_steps": 5, "validate_every_steps": 150, "log_every_steps": 10}
    )
    config = tiny_config.model_copy(update={"training": training, "output_dir": str(tmp_path)})
    path = write_config(config, tmp_path)
    phase1 = ["--phase1_checkpoint", str(train(config, "1") / "checkpoint_best.pt")]
    torchrun(path, "2", tmp_path / "whole", *phase1)

    run = tmp_path / "killed" / "phase2_flow_matching"
    command = torchrun_command(path, "2", tmp_path / "killed", *phase1)
    # torchrun starts its processes in sessions of their own: they are found by their parent, and must end with it.
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while step_of(run) < 40 and process.poll() is None:
        time.sleep(0.005)
    time.sleep(0.023)
    assert process.poll() is None, "it ended before it could be killed"
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    for victim in (psutil.Process(process.pid), *workers):
        victim.kill()
    process.wait()
    psutil.wait_procs(workers)
    assert 40 <= step_of(run) < 400

    torchrun(path, "2", tmp_path / "killed", *phase1, "--resume")
    whole = tmp_path / "whole" / "phase2_flow_matching"
    assert step_of(run) == step_of(whole) == 400
    for file in ("last/model.safetensors", "last/training_state/state.safetensors"):
        left, right = read_tensors(whole / file), read_tensors(run / file)
        assert left.keys() == right.keys()
        for name, tensor in left.items():
            assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--phase", "2"], "phase 2 needs --phase1_checkpoint"),
        (["--phase", "2", "--phase1-checkpoint", "nowhere/checkpoint_best.pt"], "not found"),
        (["--training.phase1.batch_sise", "8"], "did you mean 'training.phase1.batch_size'"),
        (["--config", "nowhere.yaml"], "no such file"),
        (["stray"], "expected --key value or key=value"),
        (["--data.path", "/nowhere"], "no such file or folder"),
    ],
)
def test_wrong_input_gives_one_line_and_status_2(
    tiny_config: Config, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run_train("--config", str(write_config(tiny_config, tmp_path)), *arguments, "--output_dir", str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_full_disk_while_training_keeps_the_last_checkpoint(tiny_config: Config, tmp_path: Path) -> None:
    """On a real full file system where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        path = write_config(tiny_config, tmp_path)
        arguments = ["--config", str(path), "--phase", "1", "--output_dir", str(disk / "runs")]
        assert run_train(*arguments).returncode == 0
        run = disk / "runs" / "phase1_temporal_jepa"
        before = read_tensors(run / "last" / "model.safetensors")
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
        (disk / "ballast").write_bytes(b"0" * max(free - 600_000, 0))
        done = run_train(*arguments, "--resume", "training.phase1.max_steps=12")
        assert done.returncode == 2, done.stdout + done.stderr
        assert "the disk is full" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert step_of(run) == 8
        for name, tensor in load_checkpoint(run / "last").model.state_dict().items():
            assert torch.equal(tensor, before[name])
        (disk / "ballast").unlink()
        assert run_train(*arguments, "--resume", "training.phase1.max_steps=12").returncode == 0
        assert step_of(run) == 12
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # tensors read from it may still be mapped


def test_overrides_in_every_spelling() -> None:
    words = [
        "--training.phase1.batch-size",
        "8",
        "--device=cpu",
        "model.cameras=[a]",
        "--training.compile",
        "--seed",
        "-1",
    ]
    assert parse_overrides(words) == [
        "training.phase1.batch_size=8",
        "device=cpu",
        "model.cameras=[a]",
        "training.compile=true",
        "seed=-1",
    ]
