"""`statevla serve` as a process: it answers, ends gracefully on signals, and turns bad input into one line."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_server import HORIZON

from statevla.commands.serve import ServeArgs
from statevla.types import Observation
from statevla_client import PolicyClient
from statevla_client.protocol import DEFAULT_HOST, DEFAULT_PORT


@contextlib.contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "statevla", "serve", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_port(process: subprocess.Popen[str], host: str = "127.0.0.1") -> int:
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if found := re.search(rf"listening on ws://{re.escape(host)}:(\d+)$", line):
            return int(found[1])
    raise AssertionError("the server never listened:\n" + "".join(lines))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_and_ends(number: signal.Signals, checkpoint: Path, observe: Callable[..., Observation]) -> None:
    given = checkpoint if number is signal.SIGTERM else checkpoint.parent  # a checkpoint, or the folder of a run
    with command("--checkpoint", str(given), "--port", "0") as process:
        with PolicyClient(port=wait_for_port(process)) as client:
            assert client.metadata["model"] == checkpoint.parent.name
            assert client.act_chunk(observe()).actions.shape == (HORIZON, 7)
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "Traceback" not in errors


def test_the_log_says_an_address_that_clients_take(checkpoint: Path, observe: Callable[..., Observation]) -> None:
    try:
        with socket.socket(socket.AF_INET6) as free:
            free.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with command("--checkpoint", str(checkpoint), "--host", "::1", "--port", "0") as process:
        port = wait_for_port(process, "[::1]")
        with PolicyClient(f"ws://[::1]:{port}") as client:
            assert client.act_chunk(observe()).actions.shape == (HORIZON, 7)


def test_bad_input_is_one_line(tmp_path: Path, checkpoint: Path) -> None:
    key = tmp_path / "key"
    key.write_text("x" * 32)
    key.chmod(0o644)
    for arguments, words in [
        (["--checkpoint", str(tmp_path / "none")], "not found"),
        (["--checkpoint", str(checkpoint), "--port", "99999"], "--port: expected 0 to 65535"),
        (["--checkpoint", str(checkpoint), "--default-prompt", " "], "--default-prompt: expected the task in words"),
        (["--checkpoint", str(checkpoint), "--heavy-share", "0"], "--heavy-share: expected more than 0, got 0"),
        (["--checkpoint", str(checkpoint), "--api-key-file", str(key)], "expected permissions 600, got 644"),
    ]:
        with command(*arguments) as process:
            _, errors = process.communicate(timeout=120)
        assert process.returncode == 2
        (line,) = errors.splitlines()
        assert words in line


def test_its_defaults_are_the_clients() -> None:
    """Written twice, as the command's help needs no client."""
    args = ServeArgs("some policy")
    assert (args.host, args.port) == (DEFAULT_HOST, DEFAULT_PORT)
