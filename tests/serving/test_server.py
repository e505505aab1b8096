"""A server as a process: addresses, health and metrics, and how it ends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest
from tiny_server import HORIZON, get, open_raw, serving
from websockets.exceptions import ConnectionClosed

from statevla.acting.policy import StateVLAPolicy
from statevla.errors import UserError
from statevla.types import Observation
from statevla_client import PolicyClient, PolicyClientError
from statevla_client.client import request_of
from statevla_client.wire import pack, unpack

Observe = Callable[..., Observation]


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_addresses_of_ipv6_with_and_without_brackets(policy: StateVLAPolicy, observe: Observe, host: str) -> None:
    try:
        with socket.socket(socket.AF_INET6) as free:
            free.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving(policy, host=host) as server:
        for spelling in ("::1", "[::1]", f"ws://[::1]:{server.port}"):
            with PolicyClient(spelling, server.port) as client:
                assert client.act_chunk(observe()).actions.shape == (HORIZON, 7)
        with (
            pytest.raises(UserError, match=rf"serve: ws://\[::1\]:{server.port} cannot be listened on"),
            serving(policy, host=host, port=server.port),
        ):
            pass
    with pytest.raises(PolicyClientError, match=rf"policy server ws://\[::1\]:{server.port}: not reachable"):
        PolicyClient(host, server.port)


def test_a_taken_port_is_an_input_error(policy: StateVLAPolicy) -> None:
    with (
        serving(policy) as server,
        pytest.raises(UserError, match="choose another --host or --port"),
        serving(policy, port=server.port),
    ):
        pass


def test_health_and_metrics(policy: StateVLAPolicy, observe: Observe) -> None:
    with serving(policy) as server, PolicyClient(port=server.port) as client:
        client.act_chunk(observe())
        client.act_chunk(observe())
        assert get(server, "/healthz") == (200, "OK\n")
        assert get(server, "/nothing")[0] == 404
        status, text = get(server, "/metrics")
        assert status == 200
        lines = text.splitlines()
        assert 'statevla_requests_total{mode="chunk"} 2' in lines
        assert "statevla_clients 1" in lines
        assert 'statevla_request_seconds_bucket{le="+Inf"} 2' in lines
        assert "statevla_request_seconds_count 2" in lines
        assert 'statevla_batch_size_bucket{le="1"} 2' in lines
        families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
        assert len(families) == len(set(families)) == 6


def test_running_requests_finish_before_the_end(
    policy: StateVLAPolicy, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, sample = threading.Event(), policy.sample_chunks

    def slow(requests):
        began.set()
        time.sleep(0.5)
        return sample(requests)

    monkeypatch.setattr(policy, "sample_chunks", slow)
    with serving(policy) as server:
        idle, busy = open_raw(server), open_raw(server)
        busy.send(pack(request_of(observe())))
        assert began.wait(10)
    # The block has been left: the server has ended.
    assert unpack(busy.recv(10))["actions"].shape == (HORIZON, 7)
    for connection in (idle, busy):
        with pytest.raises(ConnectionClosed) as caught:
            connection.recv(10)
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1001, "server is shutting down")
    with pytest.raises(PolicyClientError, match="not reachable"):
        PolicyClient(port=server.port)
