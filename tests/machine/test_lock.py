"""Locks: the second writer is refused or waits, a killed holder leaves none, and nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from statevla.errors import UserError
from statevla.machine.lock import LOCK_NAME, only_writer_in, only_writer_of

HOLD = """
import sys
from pathlib import Path
from statevla.machine.lock import only_writer_in, only_writer_of
with getattr(sys.modules["__main__"], sys.argv[1])(Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held(kind: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process has the lock; it lets go when its input ends."""
    command = [sys.executable, "-c", HOLD, kind, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


LOCKS = {"only_writer_in": only_writer_in, "only_writer_of": only_writer_of}


@pytest.mark.parametrize("kind", LOCKS)
def test_the_second_writer_is_told_who_is_there_since_when(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "made" / "out"
    with held(kind, target) as process:
        (lock,) = [path for path in target.parent.rglob("*") if path.name.endswith(".lock")]
        holder = json.loads(lock.read_text())
        assert holder["pid"] == process.pid
        with pytest.raises(UserError) as raised, LOCKS[kind](target):
            pass
        told = f"process {process.pid} on {holder['host']} (since {holder['since']}) is writing here"
        assert str(raised.value) == f"{target}: {told}; wait until it ends, or choose another place"
        assert json.loads(lock.read_text()) == holder
    with LOCKS[kind](target):
        pass
    assert not list(target.parent.rglob("*"))


@pytest.mark.parametrize("kind", LOCKS)
def test_a_killed_holder_leaves_no_lock(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with held(kind, target) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        left = [path for path in tmp_path.rglob("*") if path.name.endswith(".lock")]
        assert len(left) == 1
        with LOCKS[kind](target):
            assert json.loads(left[0].read_text())["pid"] == os.getpid()
        assert not left[0].exists()


@pytest.mark.parametrize("kind", LOCKS)
def test_what_a_killed_holder_was_writing_goes_and_nothing_else(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    place = target / "deeper" if kind == "only_writer_in" else tmp_path
    place.mkdir(exist_ok=True, parents=True)
    with held(kind, target) as process:
        parts = [place / f".out.{pid}.part" for pid in (process.pid, os.getpid(), int(f"1{process.pid}"))]
        for part in (*parts, place / "out.part"):
            part.touch()
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    with LOCKS[kind](target):
        assert [part.exists() for part in parts] == [False, True, True]
        assert (place / "out.part").exists()


def test_one_may_wait_and_is_told_for_whom(tmp_path: Path) -> None:
    target, said = tmp_path / "latents.npy", []
    with held("only_writer_of", target) as process:
        assert process.stdin is not None

        def release(line: str) -> None:
            said.append(line)
            process.stdin.close()  # type: ignore[union-attr]

        with only_writer_of(target, say=release):
            assert process.wait(30) == 0
    (line,) = said
    assert line.startswith(f"{target}: process {process.pid} on ")
    assert line.endswith("is making it; waiting")


def test_a_lock_on_a_file_that_is_gone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder ended, and removed it, just after it was opened here; then somebody else came."""
    target, real_open = tmp_path / "file", os.open
    lock = tmp_path / ".file.lock"
    with contextlib.ExitStack() as stack:

        def open_late(path: Path, *arguments: int) -> int:
            descriptor = real_open(path, *arguments)
            if path == lock:
                monkeypatch.undo()
                lock.unlink()
                stack.enter_context(held("only_writer_of", target))
            return descriptor

        monkeypatch.setattr(os, "open", open_late)
        with pytest.raises(UserError, match="is writing here"), only_writer_of(target):
            pass
        assert lock.is_file()


def test_what_was_in_the_folder_stays_and_an_empty_new_one_goes(tmp_path: Path) -> None:
    with only_writer_in(tmp_path / "new"):
        assert (tmp_path / "new" / LOCK_NAME).is_file()
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with only_writer_in(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()
    with only_writer_in(tmp_path / "filled"):
        (tmp_path / "filled" / "result").touch()
    assert [path.name for path in (tmp_path / "filled").iterdir()] == ["result"]


def test_where_nothing_can_be_written_there_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for lock in (
        only_writer_in(tmp_path / "file", "choose another"),
        only_writer_of(tmp_path / "file" / "x", "choose"),
    ):
        with pytest.raises(UserError, match=r"file.*: cannot be written \(.*\); choose"), lock:
            pass
