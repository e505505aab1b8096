"""What every command does with errors: one line and a status, tracebacks only for bugs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from statevla.commands.entry import run_command
from statevla.errors import UserError

IMPORT = "from statevla.commands.entry import run_command; "


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (1, 1)])
def test_status_is_what_the_function_returns(result: int | None, status: int) -> None:
    with pytest.raises(SystemExit) as raised:
        run_command(lambda: result)
    assert raised.value.code == status


def test_user_errors_are_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError("file x: expected a\nthing, got none")

    with pytest.raises(SystemExit) as raised:
        run_command(fail)
    assert raised.value.code == 2
    assert capsys.readouterr().err == "error: file x: expected a thing, got none\n"


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_interruption_gives_130_without_a_traceback() -> None:
    # A shell's background job ignores SIGINT, and so would its children.
    heed = "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code = heed + "run_command(lambda: print('up', flush=True) or time.sleep(60))"
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORT + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == "interrupted\n"


def test_a_closed_pipe_ends_quietly() -> None:
    code = "import statevla.commands.entry as e; e.run_command(lambda: [print('x' * 999) for _ in range(999)] and None)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
