"""What a server refuses, in one line, and whether the connection stays open."""

from __future__ import annotations

from collections.abc import Callable

import msgpack
import numpy as np
import pytest
from tiny_server import HORIZON, open_raw, serving
from websockets.exceptions import ConnectionClosed

from statevla.acting.policy import StateVLAPolicy
from statevla.robots import LIBERO_HAND
from statevla.types import Observation
from statevla_client import PolicyClient, PolicyClientError
from statevla_client.client import request_of
from statevla_client.wire import pack

Observe = Callable[..., Observation]


def test_an_action_without_observation_is_refused(policy: StateVLAPolicy) -> None:
    with serving(policy) as server, PolicyClient(port=server.port) as client:
        with pytest.raises(PolicyClientError, match="expected an observation at this step, got none"):
            client.act()
        assert client.needs_observation()


def test_unfit_requests_leave_the_connection_open(policy: StateVLAPolicy, observe: Observe) -> None:
    with serving(policy) as server, PolicyClient(port=server.port) as client:
        with pytest.raises(PolicyClientError, match=r"robot_state/joint_positions: expected 7 numbers .* got none but"):
            client.act_chunk(observe(0, LIBERO_HAND))
        other = {**request_of(observe()), "instruction": "fold the towel"}
        with pytest.raises(PolicyClientError, match="fold the towel") as caught:
            client.infer(other)
        assert "/" not in str(caught.value), "names a file of the server's machine"
        assert client.act_chunk(observe()).actions.shape == (HORIZON, 7)
        assert server.metrics.errors == {"unfit": 2}


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (
            np.zeros((0, 0, 3), np.uint8),
            r"images/agentview: expected uint8 \[H, W, 3\] with sides of 8 .* got .*\[0, 0, 3\]",
        ),
        (
            np.zeros((480, 640, 3), np.uint8).tolist(),
            r"images/agentview: .* got list; send np.asarray\(frame, np.uint8\)",
        ),
        ([np.zeros((64, 64, 3), np.uint8)], "images/agentview: .* got list"),
    ],
    ids=["0x0", "nested lists", "list of frames"],
)
def test_pictures_that_are_none_are_one_line(
    policy: StateVLAPolicy, observe: Observe, picture: object, words: str
) -> None:
    with serving(policy) as server, PolicyClient(port=server.port) as client:
        with pytest.raises(PolicyClientError, match=words) as caught:
            client.act({**request_of(observe()), "images/agentview": picture})
        assert "\n" not in str(caught.value)
        assert client.act(observe()).shape == (7,)


def test_malformed_messages_close_with_1011(policy: StateVLAPolicy) -> None:
    with serving(policy) as server:
        for bad in (b"\xc1", "text", b"", msgpack.packb([1])):
            connection = open_raw(server)
            connection.send(bad)
            assert connection.recv(10).startswith("message: ")
            with pytest.raises(ConnectionClosed) as caught:
                connection.recv(10)
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1011, "malformed request")


def test_a_failure_inside_tells_clients_nothing(
    policy: StateVLAPolicy, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret in /etc/shadow")

    with serving(policy) as server:
        monkeypatch.setattr(policy.model, "sample_actions", fail)
        connection = open_raw(server)
        connection.send(pack(request_of(observe())))
        assert connection.recv(10) == "server: internal error; its log has the reason"
        with pytest.raises(ConnectionClosed) as caught:
            connection.recv(10)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1011
        monkeypatch.undo()
        with PolicyClient(port=server.port) as client:
            assert client.act_chunk(observe()).actions.shape == (HORIZON, 7)
