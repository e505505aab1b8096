"""A running server: answers, sessions, several clients, limits, keys, metrics, and how it ends."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from tiny_server import HORIZON, serving
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve

from statevla import __version__
from statevla.acting.alarm import Calibration
from statevla.acting.policy import StateVLAPolicy
from statevla.errors import UserError
from statevla.robots import LIBERO, LIBERO_HAND
from statevla.serving.auth import ApiKey, read_api_key
from statevla.serving.client import PolicyClient, request_of
from statevla.serving.wire import pack, unpack
from statevla.types import Observation

Observe = Callable[..., Observation]


def open_raw(server, **options):
    connection = connect(f"ws://127.0.0.1:{server.port}", compression=None, proxy=None, **options)
    connection.recv(10)
    return connection


def get(server, path: str, key: str | None = None) -> tuple[int, str]:
    headers = {"Authorization": f"Api-Key {key}"} if key else {}
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_chunks_are_the_policys_own(policy: StateVLAPolicy, checkpoint: Path, observe: Observe) -> None:
    local = StateVLAPolicy.from_pretrained(checkpoint)
    with serving(policy, model_name="tiny") as server, PolicyClient(port=server.port) as client:
        assert client.metadata == {
            "server": "statevla",
            "version": __version__,
            "model": "tiny",
            "robot": LIBERO.to_dict(),
            "control_freq_hz": 20.0,
            "cameras": ["agentview", "eye_in_hand"],
            "image_size": 32,
            "image_orientations": ["upright", "flipped_vertically", "rotated_180", "mirrored"],
            "robot_state_dim": 9,
            "action_dim": 7,
            "action_horizon": HORIZON,
            "execute_steps": HORIZON,
            "surprise_threshold": None,
            "modes": ["chunk", "act"],
            "max_message_bytes": 16 * 2**20,
        }
        local.reset(5)
        client.reset(5)
        for seed in range(3):
            chunk = client.act_chunk(observe(seed)).actions
            assert chunk.shape == (HORIZON, 7)
            assert chunk.dtype == np.float32
            np.testing.assert_allclose(chunk, local.act_chunk(observe(seed)).actions, atol=1e-5)
        timing = client.infer(request_of(observe()))["server_timing"]
        assert 0 < timing["infer_ms"] < timing["prev_total_ms"] * 1000


@pytest.mark.parametrize("options", [{}, {"execute_steps": 2}, {"temporal_ensembling": 0.1}])
def test_actions_one_by_one_are_the_policys_own(checkpoint: Path, observe: Observe, options: dict) -> None:
    served, local = (StateVLAPolicy.from_pretrained(checkpoint, **options) for _ in range(2))
    with serving(served) as server, PolicyClient(port=server.port) as client:
        for episode in (0, 3):
            local.reset(episode)
            client.reset(episode)
            for step in range(2 * HORIZON + 1):
                assert client.needs_observation() == local.needs_observation()
                np.testing.assert_allclose(client.act(observe(step)), local.act(observe(step)), atol=1e-5)


def test_surprise_goes_over_the_wire_in_both_modes(checkpoint: Path, observe: Observe) -> None:
    served, local = (StateVLAPolicy.from_pretrained(checkpoint) for _ in range(2))
    executed = [local.act(observe(0)) for _ in range(HORIZON)]
    local.act(observe(1))
    assert local.surprise is not None
    with serving(served) as server, PolicyClient(port=server.port) as client:
        for step in range(HORIZON + 1):
            client.act(observe(step // HORIZON))
            assert (client.surprise is None) == (step < HORIZON)
        assert client.surprise == pytest.approx(local.surprise, rel=1e-3)
        client.reset()
        assert client.surprise is None
        client.act_chunk(observe(0))
        client.act_chunk(observe(1))
        assert client.surprise is None  # nobody said what was executed
        client.act_chunk(observe(0))
        client.act_chunk(observe(1), np.stack(executed))
        assert client.surprise == pytest.approx(local.surprise, rel=1e-3)
        assert client.alarm is None
        for bad in (np.zeros((2, 5)), np.zeros((300, 7)), np.full((2, 7), 1e300), [[0.0] * 7]):
            with pytest.raises(UserError, match="executed_actions"):
                client.infer({**request_of(observe(0)), "executed_actions": bad})


def test_an_alarm_that_nobody_judged_is_absent(policy: StateVLAPolicy, observe: Observe) -> None:
    """In mode `chunk` only the client knows what it executed; in mode `act` the first look is compared with nothing."""
    policy.calibration = Calibration(
        0.1, 9, {"surprise": {HORIZON: 1e9}, "novelty": {}}, torch.zeros(1, 24), "", "test"
    )
    with serving(policy) as server, PolicyClient(port=server.port) as client:
        for seed in range(3):
            assert "alarm" not in client.infer(request_of(observe(seed)))
        client.act_chunk(observe(2))
        assert client.alarm is None
        executed = client.act_chunk(observe(3)).actions
        client.act_chunk(observe(4), executed)
        assert client.alarm is False
        client.act_chunk(observe(5))
        assert client.surprise is None
        assert client.alarm is False  # of this episode, still
        client.reset()
        client.act_chunk(observe(6))
        assert client.alarm is None
        client.reset()
        for step in range(HORIZON + 1):
            client.act(observe(7))
            assert client.alarm is (None if step < HORIZON else False)


def test_an_action_without_observation_is_refused(policy: StateVLAPolicy) -> None:
    with serving(policy) as server, PolicyClient(port=server.port) as client:
        with pytest.raises(UserError, match="expected an observation at this step, got none"):
            client.act()
        assert client.needs_observation()


def test_openpi_keys(hand_policy: StateVLAPolicy, hand_checkpoint: Path, observe: Observe) -> None:
    local = StateVLAPolicy.from_pretrained(hand_checkpoint)
    seen = observe(1, LIBERO_HAND)
    request = {
        "observation/image": np.ascontiguousarray(seen.images["agentview"][:, ::-1]),
        "observation/wrist_image": np.ascontiguousarray(seen.images["eye_in_hand"][:, ::-1]),
        "observation/state": LIBERO_HAND.policy_state(seen.robot_state, "test").astype(np.float64),
        "prompt": seen.instruction,
    }
    with serving(hand_policy) as server, PolicyClient(port=server.port) as client:
        answer = client.infer(request)
    assert set(answer) == {"actions", "server_timing"}
    np.testing.assert_allclose(answer["actions"], local.act_chunk(seen).actions, atol=1e-5)


def test_unfit_requests_leave_the_connection_open(policy: StateVLAPolicy, observe: Observe) -> None:
    with serving(policy) as server, PolicyClient(port=server.port) as client:
        with pytest.raises(UserError, match=r"robot_state/joint_positions: expected 7 numbers .* got none but "):
            client.act_chunk(observe(0, LIBERO_HAND))
        other = {**request_of(observe()), "instruction": "fold the towel"}
        with pytest.raises(UserError, match="fold the towel") as caught:
            client.infer(other)
        assert "/" not in str(caught.value), "names a file of the server's machine"
        assert client.act_chunk(observe()).actions.shape == (HORIZON, 7)
        assert server.metrics.errors == {"unfit": 2}


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
    with pytest.raises(UserError, match=rf"policy server ws://\[::1\]:{server.port}: not reachable"):
        PolicyClient(host, server.port)


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
        with pytest.raises(UserError, match=words) as caught:
            client.act({**request_of(observe()), "images/agentview": picture})
        assert "\n" not in str(caught.value)
        assert client.act(observe()).shape == (7,)


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
                with pytest.raises(UserError, match=rf"not its protocol \(no '{key}' in its answer\)"):
                    ask({})
    thread.join(30)
    assert not thread.is_alive()


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
            except UserError as error:
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


def test_web_pages_are_refused(policy: StateVLAPolicy) -> None:
    with serving(policy) as server:
        with pytest.raises(InvalidStatus) as refused:
            open_raw(server, origin="http://evil.example")
        assert refused.value.response.status_code == 403


KEY = "correct-horse-battery"


def test_api_key(policy: StateVLAPolicy, observe: Observe) -> None:
    with serving(policy, api_key=KEY) as server:
        for wrong in (None, "wrong-horse-battery", KEY + "x", KEY[:-1]):
            with pytest.raises(UserError, match="status 401"):
                PolicyClient(port=server.port, api_key=wrong)
        assert get(server, "/metrics")[0] == 401
        assert get(server, "/healthz") == (200, "OK\n")
        with PolicyClient(port=server.port, api_key=KEY) as client:
            assert client.act_chunk(observe()).actions.shape == (HORIZON, 7)
        assert server.metrics.errors == {"unauthorized": 5}
        assert 'statevla_errors_total{kind="unauthorized"} 5' in get(server, "/metrics", KEY)[1]


def test_key_headers() -> None:
    key = ApiKey(KEY)
    assert key.allows(f"Api-Key {KEY}")
    for wrong in (None, "", KEY, f"Bearer {KEY}", f"api-key {KEY}", f"Api-Key {KEY} ", "Api-Key \udcff"):
        assert not key.allows(wrong)


def test_key_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    with pytest.raises(UserError, match="not readable"):
        read_api_key(file)
    file.write_text(KEY + "\n")
    file.chmod(0o644)
    with pytest.raises(UserError, match="expected permissions 600, got 644"):
        read_api_key(file)
    file.chmod(0o600)
    assert read_api_key(file) == KEY
    for bad in ("short", "two words are not a key", "", "line one is long\nline two is long"):
        file.write_text(bad)
        with pytest.raises(UserError, match="expected one line of 16"):
            read_api_key(file)


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
    with pytest.raises(UserError, match="not reachable"):
        PolicyClient(port=server.port)


def test_a_taken_port_is_an_input_error(policy: StateVLAPolicy) -> None:
    with (
        serving(policy) as server,
        pytest.raises(UserError, match="choose another --host or --port"),
        serving(policy, port=server.port),
    ):
        pass
