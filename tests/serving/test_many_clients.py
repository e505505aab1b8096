"""Several clients of one server: shared forwards, and the limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_server import HORIZON, open_raw, serving
from websockets.exceptions import ConnectionClosed, InvalidStatus

from statevla.acting.policy import StateVLAPolicy
from statevla.types import Observation
from statevla_client import PolicyClient, PolicyClientError
from statevla_client.client import request_of
from statevla_client.wire import pack, unpack

Observe = Callable[..., Observation]


def test_eight_clients_at_once(policy: StateVLAPolicy, checkpoint: Path, observe: Observe) -> None:
    """Each gets its own answers, and some of them share a forward."""
    local = StateVLAPolicy.from_pretrained(checkpoint)
    ready = threading.Barrier(8)

    def talk(number: int) -> list[np.ndarray]:
        with PolicyClient(port=server.port) as client:
            client.reset(number)
            ready.wait(30)
            return [client.act_chunk(observe(100 * number + step)).actions for step in range(10)]

    with serving(policy, batch_window_s=0.05) as server:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(talk, range(8)))
        forwards = int(server.metrics.batch_size.lines("b")[-1].split()[-1])
        assert server.metrics.requests == {"reset": 8, "chunk": 80}
        assert not server.metrics.errors
    assert forwards < 80
    for number, chunks in enumerate(answers):
        local.reset(number)
        for step, chunk in enumerate(chunks):
            np.testing.assert_allclose(chunk, local.act_chunk(observe(100 * number + step)).actions, atol=1e-4)


def test_one_bad_request_does_not_spoil_the_batch(policy: StateVLAPolicy, observe: Observe) -> None:
    """An instruction that the language encoder refuses fails inside the shared forward."""
    ready = threading.Barrier(4)

    def talk(number: int) -> object:
        with PolicyClient(port=server.port) as client:
            request = request_of(observe(number))
            if number == 2:
                request["instruction"] = "sing a song"
            ready.wait(30)
            try:
                return client.infer(request)["actions"].shape
            except PolicyClientError as error:
                return error

    with serving(policy, batch_window_s=0.2) as server, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(talk, range(4)))
    assert [answers[i] for i in (0, 1, 3)] == [(HORIZON, 7)] * 3
    assert "'sing a song': not among the 2" in str(answers[2])


def test_limits(policy: StateVLAPolicy, observe: Observe) -> None:
    with serving(policy, max_clients=2, max_message_bytes=50_000) as server:
        first, second = open_raw(server), open_raw(server)
        with pytest.raises(InvalidStatus) as refused:
            open_raw(server)
        assert refused.value.response.status_code == 503
        first.send(bytes(60_000))
        with pytest.raises(ConnectionClosed) as caught:
            first.recv(10)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009
        second.send(pack(request_of(observe())))
        assert unpack(second.recv(10))["actions"].shape == (HORIZON, 7)
        second.close()


def test_full_queue_says_busy(policy: StateVLAPolicy, observe: Observe, monkeypatch: pytest.MonkeyPatch) -> None:
    held, sample = threading.Event(), policy.sample_chunks

    def slow(requests):
        held.wait(30)
        return sample(requests)

    monkeypatch.setattr(policy, "sample_chunks", slow)
    with serving(policy, max_queue_size=1, max_batch_size=1) as server:
        connections = [open_raw(server) for _ in range(3)]
        for connection in connections:
            connection.send(pack(request_of(observe())))
            time.sleep(0.2)
        assert "too many requests are waiting" in connections[2].recv(10)
        held.set()
        for connection in connections[:2]:
            assert unpack(connection.recv(10))["actions"].shape == (HORIZON, 7)
        connections[2].send(pack(request_of(observe())))
        assert unpack(connections[2].recv(10))["actions"].shape == (HORIZON, 7)


def test_idle_clients_are_closed(policy: StateVLAPolicy) -> None:
    with serving(policy, idle_timeout_s=0.2) as server:
        connection = open_raw(server)
        with pytest.raises(ConnectionClosed) as caught:
            connection.recv(10)
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1001, "idle for too long")
