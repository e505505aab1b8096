"""What every command shares: input errors become one line and an exit status, never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from statevla.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run_command(function: Callable[[], int | None]) -> NoReturn:
    """Call `function` and end the process with its status (None is 0).

    A `UserError` is printed on stderr as one line and gives status 2; Ctrl-C gives 130; a reader that closed the
    pipe (`| head`) ends the command quietly. Any other exception is a bug and keeps its traceback.
    """
    try:
        status = function() or 0
        sys.stdout.flush()
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        prefix = "error" if rank == "0" else f"error (process {rank})"
        print(f"{prefix}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        status = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit; nobody reads it any longer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)
