"""The client: what it sends, and what it says where things go wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from websockets.sync.server import serve

from statevla.types import Observation
from statevla_client import PolicyClient, PolicyClientError
from statevla_client.wire import pack

Observe = Callable[..., Observation]


def test_another_servers_answers_are_one_line() -> None:
    """One that speaks msgpack over websockets but answers something else."""

    def talk(connection) -> None:
        connection.send(pack({}))
        for _ in connection:
            connection.send(pack({"greeting": "hello"}))

    with serve(talk, "127.0.0.1", 0, compression=None) as other:
        thread = threading.Thread(target=other.serve_forever, daemon=True)
        thread.start()
        with PolicyClient(port=other.socket.getsockname()[1]) as client:
            for ask, key in ((client.act, "needs_observation"), (client.act_chunk, "actions")):
                with pytest.raises(PolicyClientError, match=rf"not its protocol \(no '{key}' in its answer\)"):
                    ask({})
    thread.join(30)
    assert not thread.is_alive()
