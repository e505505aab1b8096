"""Compiled code has a place even where the home cannot be written, and never in a folder that others can write."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from statevla.machine.kernel_cache import VARIABLE, choose_kernel_cache

CODE = """
import torch
from statevla.data import pixels
pixels.frames_to_float(torch.zeros(1, 1, 1, 8, 8, 3, dtype=torch.uint8), None, None)
"""


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home's cache that nobody can make, root included: it lies below a file. Returns the temporary folder."""
    (tmp_path / "file").touch()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv(VARIABLE, raising=False)
    return temporary


def test_a_writable_home_and_the_users_choice_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "to be made"))
    assert choose_kernel_cache() == tmp_path / "to be made"
    assert VARIABLE not in os.environ
    monkeypatch.setenv(VARIABLE, "/chosen")
    assert choose_kernel_cache() == Path("/chosen")


def test_without_a_home_it_is_the_users_own_temporary_folder(no_home: Path) -> None:
    folder = choose_kernel_cache()
    assert folder.parent == no_home
    assert os.environ[VARIABLE] == str(folder)
    assert folder.stat().st_mode & 0o077 == 0
    del os.environ[VARIABLE]
    assert choose_kernel_cache() == folder  # what was compiled is found again


@pytest.mark.parametrize("kind", ["open to all", "link", "file"])
def test_a_folder_that_others_may_have_made_is_not_used(no_home: Path, tmp_path: Path, kind: str) -> None:
    usual = no_home / f"statevla-kernels-{os.getuid()}"
    if kind == "open to all":
        usual.mkdir()
        usual.chmod(0o777)
    elif kind == "link":
        usual.symlink_to(tmp_path)
    else:
        usual.touch()
    folder = choose_kernel_cache()
    assert folder != usual
    assert folder.parent == no_home
    assert folder.stat().st_mode & 0o077 == 0


def test_numba_compiles_into_it(no_home: Path) -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=300)
    assert list(no_home.glob("statevla-kernels-*/**/*.nbi"))
