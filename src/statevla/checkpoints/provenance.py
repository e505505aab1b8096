"""What made a result: versions, commit, machine, command."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import statevla


def versions() -> dict[str, str]:
    """Versions of the code and of what numbers depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("statevla", "numpy", "numba", "safetensors"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def git_commit() -> str | None:
    """Commit of the source tree that this code runs from, with `+` for uncommitted changes; None outside of git."""
    here = Path(statevla.__file__).parent
    try:
        # An installed package may lie inside some other repository: only files that git tracks count.
        _git(here, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(here, "rev-parse", "HEAD")
        return commit + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def run_info(seed: int, world_size: int, device: torch.device) -> dict[str, Any]:
    """Command, seed, versions and machine of this run, for `run.json`."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": seed,
        "num_processes": world_size,
        "device": str(device),
        "num_threads": torch.get_num_threads(),
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
