"""One writer at a time for every folder and file that a command writes, by a lock of the operating system's.

The lock ends with its holder, however that dies. Its file says who holds it and since when; one that a killed process
left behind is nobody's: the next holder takes it, and removes what the killed one had not finished writing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from statevla.errors import UserError
from statevla.machine.storage import FIX, part_name, writing

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"
"""In a folder that is filled in place; what is put in place as a whole has its lock beside it, `.<name>.lock`."""
_HELD = {errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}
_LOCKED_BYTE = 1 << 30
"""Windows locks bytes, which others then cannot read: one far behind what the file says."""
_POLL_S = 0.05


@contextlib.contextmanager
def only_writer_in(folder: Path, fix: str = FIX) -> Iterator[None]:
    """Be the only one who fills `folder`, which is made if needed, and removed again if nothing came of it.

    Raises:
        UserError: another process is, and is named; or the folder cannot be written, which ends with `fix`.
    """
    is_new = not folder.exists()
    try:
        with _locked(folder / LOCK_NAME, folder, fix, None) as killed:
            for part in folder.rglob(part_name("*", killed)) if killed else ():
                part.unlink(missing_ok=True)
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


@contextlib.contextmanager
def only_writer_of(target: Path, fix: str = FIX, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Be the only one who makes `target`, a file or folder that is put in place at the end.

    Args:
        target: its parent folders are made if needed.
        fix: how the error of a folder that cannot be written ends.
        say: wait for whoever has the lock, and take a line that names it; by default the second one is refused.

    Raises:
        UserError: another process makes it, and is named; or the folder cannot be written.
    """
    with _locked(target.with_name(f".{target.name}.lock"), target, fix, say) as killed:
        if killed:
            target.with_name(part_name(target.name, killed)).unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def _locked(path: Path, target: Path, fix: str, say: Callable[[str], None] | None) -> Iterator[int | None]:
    """Inside the lock; gives the process that had it last, if that was killed."""
    descriptor = _acquire(path, target, fix, say)
    try:
        killed = _read_holder(path).get("pid")
        # On a full disk it says nothing, and holds all the same.
        with contextlib.suppress(OSError):
            os.truncate(descriptor, 0)
            since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
            os.write(descriptor, json.dumps(holder).encode() + b"\n")
        yield killed if isinstance(killed, int) else None
    finally:
        # Removed while it is held: who opened it meanwhile finds out that it is gone, and takes a new one.
        with contextlib.suppress(OSError):
            if _is_at(descriptor, path):
                path.unlink()
        os.close(descriptor)


def _acquire(path: Path, target: Path, fix: str, say: Callable[[str], None] | None) -> int:
    """An open file that holds the lock."""
    told = False
    while True:
        with writing(target, fix):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # who left just now removed the empty folder
                continue
        try:
            if _try_lock(descriptor, target):
                if _is_at(descriptor, path):
                    return descriptor
                os.close(descriptor)
                continue
            holder = _holder(path)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if say is None:
            raise UserError(f"{target}: {holder} is writing here; wait until it ends, or choose another place")
        if not told:
            say(f"{target}: {holder} is making it; waiting")
            told = True
        time.sleep(_POLL_S)


def _try_lock(descriptor: int, target: Path) -> bool:
    """Whether this process holds the lock now; also where the file system has none, which is said."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
    except OSError as error:
        if error.errno in _HELD:
            return False
        print(
            f"warning: {target}: its file system has no locks ({error.strerror}); let no second command write there",
            file=sys.stderr,
        )
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    """Who holds the lock; in the moment before that is written, and on a full disk, nobody knows."""
    for _ in range(4):
        if holder := _read_holder(path):
            return f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('since')})"
        time.sleep(_POLL_S)
    return "another process"


def _read_holder(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
