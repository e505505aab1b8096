"""Data sets that several files of tests read and damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from statevla.data.convert import convert
from statevla.data.lerobot_checksums import CHECKSUMS_PATH
from statevla.robots import KNOWN_ROBOTS

SO101 = KNOWN_ROBOTS["so101"]


@pytest.fixture(scope="module")
def converted(libero_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(libero_dir, tmp_path_factory.mktemp("lerobot") / "blocks", "lerobot")


@pytest.fixture
def own(converted: Path, tmp_path: Path) -> Path:
    """A copy to change: without the checksums that would tell."""
    folder = shutil.copytree(converted, tmp_path / "own")
    (folder / CHECKSUMS_PATH).unlink()
    return folder
