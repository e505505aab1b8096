"""A disk that fills while a data set is converted: one line, and nothing of the copy stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from statevla.data.convert import convert

# A limit on the size of files fails as a full disk does, in the middle of a write.
CODE = """
import resource, signal, sys
from statevla.commands.entry import run_command
from statevla.data.convert import convert
source, target, to, limit = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
run_command(lambda: convert(source, target, to) and None)
"""


@pytest.mark.parametrize(("to", "limit"), [("libero", 20_000), ("libero", 700_000), ("lerobot", 20_000)])
def test_conversion(libero_dir: Path, tmp_path: Path, to: str, limit: int) -> None:
    source = libero_dir if to == "lerobot" else convert(libero_dir, tmp_path / "source", "lerobot")
    target = tmp_path / "target"
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(source), str(target), to, str(limit)], capture_output=True, text=True
    )
    assert done.stderr == (
        f"error: {target}: cannot be written (the disk is full); the source is untouched, and nothing of the copy is "
        "kept; make room or choose another folder\n"
    )
    assert done.returncode == 2
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(tmp_path / "source")]
