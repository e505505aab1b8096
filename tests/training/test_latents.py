"""Latents on disk: damaged ones are made anew, two runs do not write over each other, a full disk is one line."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml

from statevla.config import Config
from statevla.errors import UserError
from statevla.machine.lock import only_writer_of
from statevla.training.run import train
from statevla.training.setup import RunContext, prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def phase1(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_config.model_copy(update={"output_dir": str(tmp_path_factory.mktemp("phase1"))}), "1")


@pytest.fixture
def config(tiny_config: Config, tmp_path: Path) -> Config:
    data = tiny_config.data.model_copy(update={"cache_dir": str(tmp_path / "cache")})
    return tiny_config.model_copy(update={"data": data, "output_dir": str(tmp_path / "runs")})


def states(config: Config, phase1: Path, said: list[str]) -> np.ndarray:
    return np.array(prepare(config, "2", phase1, context=RunContext(say=said.append)).train.states)


@pytest.mark.parametrize("damage", ["flip", "cut", "record", "no record", "other record"])
def test_damaged_latents_are_said_and_encoded_anew(config: Config, phase1: Path, tmp_path: Path, damage: str) -> None:
    said: list[str] = []
    expected = states(config, phase1, said)
    (file,) = (tmp_path / "cache" / "latents").glob("*.npy")
    record, data = file.with_suffix(".json"), file.read_bytes()
    if damage == "flip":
        file.write_bytes(data[:-9] + bytes([data[-9] ^ 64]) + data[-8:])
    elif damage == "cut":
        file.write_bytes(data[:-4])
    elif damage == "record":
        record.write_text(record.read_text()[:-5])
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text("[]")
    said.clear()
    np.testing.assert_array_equal(states(config, phase1, said), expected)
    named = file if damage in ("flip", "cut") else record
    assert said[0].startswith(f"{named}: ")
    assert said[0].endswith("encoded anew")
    assert said[1].startswith("encoding frames")
    assert file.read_bytes() == data
    said.clear()
    np.testing.assert_array_equal(states(config, phase1, said), expected)
    assert said == []
    assert sorted(path.name for path in file.parent.iterdir()) == [record.name, file.name]


def test_the_second_run_waits_for_the_first_and_uses_its_latents(config: Config, phase1: Path, tmp_path: Path) -> None:
    states(config, phase1, [])
    (file,) = (tmp_path / "cache" / "latents").glob("*.npy")
    whole, record = file.rename(tmp_path / "whole.npy"), file.with_suffix(".json").rename(tmp_path / "whole.json")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(tmp_path / "config.yaml"), "--phase", "2"]
    command += ["--phase1_checkpoint", str(phase1)]
    with only_writer_of(file):
        second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert second.stdout is not None
        said = next(line for line in second.stdout if line.startswith(str(file)))
        assert f"process {os.getpid()} on " in said
        assert said.endswith("is making it; waiting\n")
        record.rename(file.with_suffix(".json"))
        whole.rename(file)
    rest = second.communicate(timeout=120)[0]
    assert second.returncode == 0
    assert "encoding frames" not in rest


def test_many_runs_at_once_encode_once(config: Config, phase1: Path, tmp_path: Path) -> None:
    said: list[str] = []
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(states(config, phase1, said))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(np.array_equal(found[0], other) for other in found)
    assert sum(line.startswith("encoding frames") for line in said) == 1


def test_a_full_disk_is_one_line_and_leaves_nothing(config: Config, phase1: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails writes as a full disk does; a memory map would end with a bus error."""
    states(config, phase1, [])
    (file,) = (tmp_path / "cache" / "latents").glob("*.npy")
    size = file.stat().st_size
    shutil.rmtree(file.parent)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    try:
        with pytest.raises(UserError, match=r"\.npy: cannot be written \(the disk is full\); make room"):
            states(config, phase1, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(file.parent.iterdir()) == []
