"""What every command shares: input errors become one line and an exit status, never a traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from statevla.errors import UserError
from statevla.machine.extras import extra_of, install_line
from statevla.machine.storage import FULL_DISK

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception: what is open is closed on the way out, as with Ctrl-C."""


def run_command(function: Callable[[], int | None]) -> NoReturn:
    """Call `function` and end the process with its status (None is 0).

    A `UserError` is printed on stderr as one line and gives status 2; Ctrl-C gives 130 and SIGTERM, which ends a
    command in the same way, 143; a reader that closed the pipe (`| head`) ends the command quietly. A package of an
    extra that is not installed, and a disk that is full, are told like a `UserError`. Any other exception is a bug and
    keeps its traceback.
    """
    try:
        with _sigterm_raises():
            status = function() or 0
            sys.stdout.flush()
    except UserError as error:
        status = _tell(str(error))
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra is None:
            raise
        status = _tell(f"needs the package {error.name}, which is not installed; {install_line(extra)}")
    except KeyboardInterrupt as error:
        ended = isinstance(error, _Terminated)
        print("terminated" if ended else "interrupted", file=sys.stderr, flush=True)
        status = EXIT_TERMINATED if ended else EXIT_INTERRUPTED
    except BrokenPipeError:
        _give_up_stdout()
        status = 0
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        _give_up_stdout()
        where = error.filename or "what it prints, or a file"
        status = _tell(f"{where}: cannot be written (the disk is full); make room, and run the same command again")
    sys.exit(status)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Inside the block SIGTERM raises; not in a process of torchrun, which may wait for others that are gone already
    and has to end at once."""
    if os.environ.get("WORLD_SIZE", "1") != "1" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _give_up_stdout() -> None:
    """Python flushes stdout once more at exit, which nobody takes any longer."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(text: str) -> int:
    """Print an error as one line; the exit status."""
    rank = os.environ.get("RANK", "0")
    prefix = "error" if rank == "0" else f"error (process {rank})"
    # In one piece: print() writes the line's end by itself, and another process may come between.
    sys.stderr.write(f"{prefix}: {' '.join(text.split())}\n")
    sys.stderr.flush()
    return EXIT_USER_ERROR
