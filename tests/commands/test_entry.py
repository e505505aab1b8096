"""What every command does with errors: one line and a status, tracebacks only for bugs."""

from __future__ import annotations

import os
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


@pytest.mark.parametrize(
    ("number", "status", "told"), [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "terminated\n")]
)
def test_interruption_closes_what_is_open_and_has_no_traceback(number: signal.Signals, status: int, told: str) -> None:
    # A shell's background job ignores SIGINT, and so would its children.
    heed = "import contextlib, signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"""
from statevla.commands.entry import run_command
{heed}
def work():
    with contextlib.closing(type("Log", (), {{"close": lambda self: print("closed")}})()):
        print("up", flush=True)
        time.sleep(60)
run_command(work)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (status, "closed\n", told)


def test_a_process_of_torchrun_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may wait for a process that is gone: nothing in Python would run."""
    code = IMPORT + "import signal, os; run_command(lambda: print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL))"
    for world_size, expected in (("1", "False"), ("2", "True")):
        monkeypatch.setenv("WORLD_SIZE", world_size)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.strip() == expected


def test_a_closed_pipe_ends_quietly() -> None:
    code = "import statevla.commands.entry as e; e.run_command(lambda: [print('x' * 999) for _ in range(999)] and None)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
@pytest.mark.parametrize(
    "code", ["print('x' * 99_999)", "print('x')", "__import__('pathlib').Path('/dev/full').write_text('x')"]
)
def test_a_full_disk_that_nothing_else_tells_of_is_one_line(code: str) -> None:
    command = [sys.executable, "-c", IMPORT + f"run_command(lambda: {code} and None)"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    where = "what it prints, or a file"
    told = f"error: {where}: cannot be written (the disk is full); make room, and run the same command again\n"
    assert (done.returncode, done.stderr) == (2, told)
