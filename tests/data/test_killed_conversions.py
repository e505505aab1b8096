"""A conversion that is killed at any moment leaves nothing that looks whole, and the next one is none the wiser."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_flipped_bits import read_data_set

pytest.importorskip("pyarrow")
pytest.importorskip("av")

from libero_files import smooth_episode, write_official_file
from statevla.data.convert import convert

KILLS = 15
CODE = "from statevla.commands.table import main; main()"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    for task in ("first", "second", "third"):
        episodes = [smooth_episode(rng, 60, 96, (200, 60, 30)) for _ in range(4)]
        write_official_file(folder / f"{task}_demo.hdf5", f"the {task} one", episodes)
    return folder


def start(source: Path, target: Path, to: str) -> subprocess.Popen[bytes]:
    """A conversion that has begun to write."""
    command = [sys.executable, "-c", CODE, "data", "convert", str(source), str(target), "--to", to]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (target.exists() or list(target.parent.glob(".*.part/*"))):
        assert process.poll() is None
        time.sleep(0.002)
    return process


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("to", ["lerobot", "libero"])
def test_killed_at_any_moment(source: Path, tmp_path: Path, to: str) -> None:
    if to == "libero":
        source = convert(source, tmp_path / "source", "lerobot")
    whole = read_data_set(convert(source, tmp_path / "whole", to))
    place = tmp_path / "place"
    place.mkdir()
    target, rng = place / "target", random.Random(0)
    begin = time.monotonic()
    start(source, target, to).wait()
    duration_s = time.monotonic() - begin
    shutil.rmtree(target)
    killed = 0
    for number in range(KILLS):
        process = start(source, target, to)
        # Half of them late: at the end, most is to be put in place.
        time.sleep(rng.random() * duration_s * (0.2 if number % 2 else 0.6))
        process.send_signal(signal.SIGKILL if number % 3 else signal.SIGTERM)
        process.communicate()
        if target.exists():
            assert read_data_set(target) == whole
            shutil.rmtree(target)
        else:
            killed += 1
            assert not [path for path in place.iterdir() if not path.name.startswith(".")]
    assert killed > KILLS // 3
    assert read_data_set(convert(source, target, to)) == whole
    assert os.listdir(place) == ["target"]


@pytest.mark.parametrize("to", ["lerobot", "libero"])
def test_one_at_a_time(source: Path, tmp_path: Path, to: str) -> None:
    if to == "libero":
        source = convert(source, tmp_path / "source", "lerobot")
    target = tmp_path / "target"
    first = start(source, target, to)
    first.send_signal(signal.SIGSTOP)
    command = [sys.executable, "-c", CODE, "data", "convert", str(source), str(target), "--to", to]
    second = subprocess.run(command, capture_output=True, text=True)
    first.send_signal(signal.SIGCONT)
    first.communicate()
    assert first.returncode == 0
    assert second.returncode == 2
    assert second.stderr.startswith(f"error: {target}: process {first.pid} on ")
    assert second.stderr.count("\n") == 1
    assert target.is_dir()
