"""Fixtures that several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from libero_files import make_libero_dir, make_tiny_config
from statevla.config import Config


@pytest.fixture(scope="session")
def libero_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set in LIBERO's official HDF5 layout, see `make_libero_dir`."""
    return make_libero_dir(tmp_path_factory.mktemp("libero"))


@pytest.fixture(autouse=True, scope="session")
def statevla_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep caches of tests out of the user's home."""
    patch = pytest.MonkeyPatch()
    home = tmp_path_factory.mktemp("statevla_home")
    patch.setenv("STATEVLA_HOME", str(home))
    yield home
    patch.undo()


@pytest.fixture(scope="session")
def tiny_config(libero_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A model that trains in seconds on `libero_dir`, see `make_tiny_config`."""
    return make_tiny_config(libero_dir, tmp_path_factory.mktemp("tiny"))
