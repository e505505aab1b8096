"""A disk that fills while a data set is converted or cached: one line, and nothing of it looks whole."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from statevla.data.convert import convert

COMMAND = [sys.executable, "-c", "from statevla.commands.table import main; main()"]
# A limit on the size of files fails as a full disk does, in the middle of a write.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from statevla.commands.table import main
main()
"""
FULL = (
    "error: {target}: cannot be written (the disk is full); the source is untouched, and nothing of the copy is kept; "
    "make room or choose another folder\n"
)


def run_with_limit(limit: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", LIMITED, str(limit), *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(("to", "limit"), [("libero", 20_000), ("libero", 700_000), ("lerobot", 20_000)])
def test_conversion(libero_dir: Path, tmp_path: Path, to: str, limit: int) -> None:
    source = libero_dir if to == "lerobot" else convert(libero_dir, tmp_path / "source", "lerobot")
    target = tmp_path / "target"
    done = run_with_limit(limit, "data", "convert", str(source), str(target), "--to", to)
    assert done.stderr == FULL.format(target=target)
    assert done.returncode == 2
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(tmp_path / "source")]


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_frame_cache(libero_dir: Path, tmp_path: Path, codec: str) -> None:
    """What was encoded stays, for when there is room."""
    options = [f"data.path={libero_dir}", f"data.cache_dir={tmp_path}", f"data.cache_codec={codec}"]
    done = run_with_limit(100_000, "data", "cache", *options, "--config", "compact")
    assert done.returncode == 2
    words = r"cannot be written \(the disk is full\); make room or set data.cache_dir"
    assert re.fullmatch(rf"error: frame cache {tmp_path}/\S+: {words}\n", done.stderr)
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    whole = subprocess.run([*COMMAND, "data", "cache", *options, "--config", "compact"], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    assert [path.is_dir() for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize("to", ["libero", "lerobot"])
def test_conversion_to_a_small_disk(libero_dir: Path, tmp_path: Path, to: str) -> None:
    """A disk of its own for the process, where the system lets us have one."""
    source = libero_dir if to == "lerobot" else convert(libero_dir, tmp_path / "source", "lerobot")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size={"2m" if to == "libero" else "150k"} tmpfs "{disk}" || exit 77; "$@"; status=$?; '
    code = mount + f'find "{disk}" -mindepth 1; exit $status'
    own = ["unshare", "--map-root-user", "--mount", "sh", "-c", code, "sh"]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    command = [*COMMAND, "data", "convert", str(source), str(disk / "target"), "--to", to]
    done = subprocess.run([*own, *command], capture_output=True, text=True)
    if done.returncode in (1, 77):
        pytest.skip(f"no disk of our own: {done.stderr}")
    assert done.returncode == 2
    assert done.stderr == FULL.format(target=disk / "target")
    assert not done.stdout
