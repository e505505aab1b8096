"""The client: what it sends, and what it says where things go wrong."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.sync.server import ServerConnection, serve

from statevla_client import PolicyClient, PolicyClientError
from statevla_client.wire import pack


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes any message and answers `{}`."""

    def talk(connection: ServerConnection) -> None:
        connection.send(pack({}))
        for _ in connection:
            connection.send(pack({}))

    with serve(talk, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.socket.getsockname()[1]
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        ([1, 2], r"expected a mapping in the protocol's keys, got list; send images/<camera>, robot_state and instr"),
        ({0: 1}, r"expected names as keys, got 0; images/<camera> is one"),
        ({"images/front": [[0, 0, 0]]}, r"images/front: expected a uint8 array \[H, W, 3\], got list; send np.asarray"),
        ({"instruction": object()}, r"message not sendable: values of type object are not sent"),
    ],
)
def test_what_is_no_observation_is_one_line(silent: int, observation: Any, words: str) -> None:
    with PolicyClient(port=silent) as client:
        for ask in (client.act, client.act_chunk):
            with pytest.raises(PolicyClientError, match=words) as caught:
                ask(observation)
            assert "\n" not in str(caught.value)


def test_a_greeting_that_is_none_ends_the_connection() -> None:
    ended = threading.Event()

    def talk(connection: ServerConnection) -> None:
        connection.send(b"\xc1")
        for _ in connection:  # until the client has closed it
            pass
        ended.set()

    with serve(talk, "127.0.0.1", 0, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(PolicyClientError, match="not its protocol"):
            PolicyClient(port=server.socket.getsockname()[1])
        assert ended.wait(30)


def test_another_servers_answers_are_one_line(silent: int) -> None:
    """One that speaks msgpack over websockets but answers something else."""
    with PolicyClient(port=silent) as client:
        for ask, key in ((client.act, "needs_observation"), (client.act_chunk, "actions")):
            with pytest.raises(PolicyClientError, match=rf"not its protocol \(no '{key}' in its answer\)"):
                ask({})


def test_the_client_warns_of_nothing(silent: int) -> None:
    """Also not of what websockets will change: connections that are not entered."""
    code = (
        "import sys\n"
        "from statevla_client import PolicyClient\n"
        "for close in (True, False):\n"
        "    client = PolicyClient(port=int(sys.argv[1]))\n"
        "    assert client.infer({}) == {}\n"
        "    client.close() if close else client.__exit__(None, None, None)\n"
        "    client.close()\n"
    )
    run = [sys.executable, "-W", "error", "-X", "dev", "-c", code, str(silent)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_client_says_so(silent: int) -> None:
    client = PolicyClient(port=silent)
    client.close()
    with pytest.raises(PolicyClientError, match="closed the connection"):
        client.infer({})
