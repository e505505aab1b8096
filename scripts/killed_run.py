"""Run a `statevla` command in a forked process that may kill itself: `random_kills.py` says when.

A kill comes right before one of the command's changes of files, or some time after the first one. Changes are those
below the working folder: opening a file to write, renaming, removing, making folders and links. The kill is real, and
of this process alone, as the kernel's or a user's is; what it has started has to notice.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

How = Literal["never", "change", "seconds"]
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status (minus the signal that killed it), what it said, and what it changed until then.

    The number of changes, and the seconds from the first to the end, are known where nothing killed it.
    """

    status: int
    stdout: str
    stderr: str
    changes: int = 0
    seconds: float = 0.0


def run_command(
    words: Sequence[str], folder: Path, scratch: Path, environment: Mapping[str, str], how: How, value: float
) -> Ended:
    """Run a command in `folder`; what it prints goes through files in `scratch`, another folder.

    Args:
        how: `never` kill it; before the `change` number `value`; or so many `seconds` after the first change.
    """
    out, err, note = (scratch / name for name in ("stdout", "stderr", "note.json"))
    note.unlink(missing_ok=True)
    # Forked: PyTorch is loaded once, not hundreds of times.
    pid = os.fork()
    if pid == 0:
        _child(words, folder, (out, err, note), environment, _Watch(str(folder), how, value))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    made = json.loads(note.read_text()) if note.exists() else {}
    return Ended(status, out.read_text(), err.read_text(), **made)


class _Watch:
    """Counts changes, and kills when it is time."""

    def __init__(self, folder: str, how: How, value: float) -> None:
        self.how, self.value = how, value
        self.here = folder + os.sep
        self.count, self.began = 0, 0.0

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        """Of `sys.addaudithook`: called before each event."""
        if event == "open":
            if not args[2] & TO_WRITE:
                return
        elif event not in CHANGES:
            return
        path = args[0]
        if isinstance(path, int) or not os.path.abspath(os.fsdecode(path)).startswith(self.here):
            return
        self.count += 1
        if self.count == 1:
            self.began = time.monotonic()
            if self.how == "seconds":
                threading.Thread(target=self.kill_later, daemon=True).start()
        if self.how == "change" and self.count == int(self.value):
            os.kill(os.getpid(), signal.SIGKILL)

    def kill_later(self) -> None:
        time.sleep(self.value)
        os.kill(os.getpid(), signal.SIGKILL)


def _child(
    words: Sequence[str], folder: Path, files: tuple[Path, Path, Path], environment: Mapping[str, str], watch: _Watch
) -> NoReturn:
    """The forked process; it ends here, whatever happens."""
    status = 1
    try:
        out, err, note = files
        for descriptor, file in ((1, out), (2, err)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        os.environ.update(environment)
        sys.argv = ["statevla", *words]
        from statevla.commands.table import main

        sys.addaudithook(watch.hook)
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        seconds, count, watch.how = time.monotonic() - watch.began, watch.count, "never"
        note.write_text(json.dumps({"changes": count, "seconds": seconds}), encoding="utf-8")
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
