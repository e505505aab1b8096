"""Thousands of hostile messages: afterwards the server still answers, and it has told nobody anything."""

from __future__ import annotations

import pickle
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator

import msgpack
import numpy as np
import pytest
from tiny_server import HORIZON, serving
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from statevla.acting.policy import StateVLAPolicy
from statevla.types import Observation
from statevla_client import PolicyClient
from statevla_client.client import request_of
from statevla_client.wire import pack, unpack

KEY = "only-the-fuzzer-knows"
MAX_BYTES = 64 * 1024
REFUSED_DTYPES = ["|O", "|V8", "<c16", "<U4", "|S4", "<M8[s]", "<f4,<i4", "<f16", "O", "float32", "", "🙂", "<f4" * 99]
# The only words with a slash that a message may hold: names of keys.
KEY_NAME = re.compile(r"\b(images|robot_state|observation)/")


class Fuzzer:
    """Draws hostile messages from one well-formed request."""

    def __init__(self, request: dict, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.request = request
        self.packed = pack(request)
        self.kinds = [
            self.noise,
            self.cut,
            self.flipped,
            self.oversized,
            self.pickled,
            self.lying_array,
            self.other_keys,
            self.other_values,
            self.text,
            self.deep,
        ]

    def draw(self, number: int) -> tuple[str, bytes | str]:
        make = self.kinds[number % len(self.kinds)]
        return make.__name__, make()

    def noise(self) -> bytes:
        return self.rng.bytes(int(self.rng.integers(0, 200)))

    def cut(self) -> bytes:
        return self.packed[: int(self.rng.integers(0, len(self.packed)))]

    def flipped(self) -> bytes:
        data = bytearray(self.packed)
        # Half of the flips hit the keys and headers at the front, the others mostly pixels.
        end = 120 if self.rng.random() < 0.5 else len(data)
        for place in self.rng.integers(0, end, int(self.rng.integers(1, 9))):
            data[place] ^= int(self.rng.integers(1, 256))
        return bytes(data)

    def oversized(self) -> bytes:
        return pack({"images/agentview": np.zeros(MAX_BYTES + int(self.rng.integers(1, 9999)), np.uint8)})

    def pickled(self) -> bytes:
        trap = pickle.dumps({"payload": self.rng.bytes(20), "path": "/etc/passwd"})
        return trap if self.rng.random() < 0.5 else self._claim("|O", [1], trap)

    def lying_array(self) -> bytes:
        dtype = REFUSED_DTYPES[self.rng.integers(len(REFUSED_DTYPES))] if self.rng.random() < 0.5 else "<f4"
        shape = [int(side) for side in self.rng.integers(-3, 2**40, int(self.rng.integers(0, 12)))]
        return self._claim(dtype, shape, self.rng.bytes(int(self.rng.integers(0, 64))))

    def other_keys(self) -> bytes:
        message = dict(self.request)
        for key in self.rng.permutation(list(message))[: int(self.rng.integers(0, 4))]:
            del message[str(key)]
        strange = ["/etc/secret", "../../x", "__class__", "image\n", "images/", "x" * 300, "observation/state", "é"]
        strange += ["robot_state", "robot_state/", "robot_state/../x"]
        message[strange[self.rng.integers(len(strange))]] = 1
        return pack(message)

    def other_values(self) -> bytes:
        values = [None, True, -1, 1e308, float("nan"), "/etc/passwd", b"\x00" * 9, [], [[1]], {}, {"a": {}}]
        values += [np.zeros(0), np.zeros((9, 9)), np.zeros((0, 8, 3), np.uint8), np.full(9, np.inf), np.int64(3)]
        key = str(self.rng.choice([*self.request, "mode", "reset", "episode", "image_orientation"]))
        return pack({**self.request, key: values[self.rng.integers(len(values))]})

    def text(self) -> str:
        return str(self.rng.choice(["", "hello", "{}", "GET / HTTP/1.1", "x" * 5000, "\x00"]))

    def deep(self) -> bytes:
        opening = [b"\x91", b"\x81\xa1a", b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xc6\x7f\xff\xff\xff"]
        return b"\x81\xa1a" + opening[self.rng.integers(len(opening))] * int(self.rng.integers(1, 5000))

    def _claim(self, dtype: str, shape: list[int], data: bytes) -> bytes:
        claim = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
        key = "robot_state/joint_positions"
        assert key in self.request
        return msgpack.packb({**dict.fromkeys(self.request, 1), key: claim})


def check_reveals_nothing(text: str) -> None:
    assert "Traceback" not in text
    assert "/" not in KEY_NAME.sub("", text), text
    assert "\\" not in text, text
    assert "\n" not in text.strip(), text
    assert len(text) < 1200, text


class Attacker:
    """Sends messages, opening a new connection whenever the last one was closed on it."""

    def __init__(self, port: int) -> None:
        self._address = f"ws://127.0.0.1:{port}"
        self._connection: ClientConnection | None = None
        self.outcomes: Counter[str] = Counter()

    def open(self, key: str | None = KEY) -> ClientConnection:
        headers = {"Authorization": f"Api-Key {key}"} if key is not None else {}
        return connect(self._address, additional_headers=headers, compression=None, proxy=None, ping_interval=None)

    def send(self, kind: str, data: bytes | str) -> None:
        self.outcomes["sent"] += 1
        if self._connection is None:
            self._connection = self.open()
            self._connection.recv(20)
        try:
            self._connection.send(data)
            answer = self._connection.recv(20)
        except ConnectionClosed as error:
            self._closed(kind, error)
            return
        if isinstance(answer, bytes):
            assert unpack(answer).keys() <= {"actions", "action", "server_timing", "needs_observation", "reset"}
            self.outcomes[f"{kind}: answered"] += 1
            return
        check_reveals_nothing(answer)
        self.outcomes[f"{kind}: refused"] += 1
        if answer.startswith(("message", "array", "scalar", "dtype", "server: internal")):
            with pytest.raises(ConnectionClosed) as caught:
                self._connection.recv(20)
            self._closed(kind, caught.value)

    def send_unauthorized(self, key: str | None) -> None:
        self.outcomes["sent"] += 1
        with pytest.raises(InvalidStatus) as refused:
            self.open(key)
        assert refused.value.response.status_code == 401
        check_reveals_nothing((refused.value.response.body or b"").decode())
        self.outcomes["unauthorized: refused"] += 1

    def _closed(self, kind: str, error: ConnectionClosed) -> None:
        assert error.rcvd is not None, f"{kind}: the connection broke off"
        assert error.rcvd.code in (1009, 1011), f"{kind}: {error.rcvd}"
        check_reveals_nothing(error.rcvd.reason)
        self.outcomes[f"{kind}: closed {int(error.rcvd.code)}"] += 1
        self._connection = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def raw_sockets(port: int, rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """What the server says to bytes that are not even HTTP."""
    starts = [
        b"",
        b"GET / HTTP/1.1\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
    ]
    for number in range(count):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as opened:
            # Two in eight are whole requests and nothing more: bytes left unread may cost the sender the answer.
            noise = rng.bytes(int(rng.integers(0, 99))) + b"\r\n\r\n" if number % 8 < 6 else b""
            opened.sendall(starts[number % 4] + noise)
            answer = b""
            try:
                while block := opened.recv(4096):
                    answer += block
            except ConnectionResetError:
                pass
            yield answer


def attack(policy: StateVLAPolicy, observation: Observation, count: int) -> Counter[str]:
    fuzzer = Fuzzer(request_of(observation), seed=0)
    num_unauthorized, num_raw = count // 20, count // 50
    with serving(policy, api_key=KEY, max_message_bytes=MAX_BYTES) as server:
        attacker = Attacker(server.port)
        for number in range(count - num_unauthorized - num_raw):
            attacker.send(*fuzzer.draw(number))
        attacker.close()
        for number in range(num_unauthorized):
            attacker.send_unauthorized([None, "", KEY[:-1], KEY + "x", "x" * 3000][number % 5])
        for answer in raw_sockets(server.port, fuzzer.rng, num_raw):
            head, _, body = answer.partition(b"\r\n\r\n")
            assert not head or re.match(rb"HTTP/1.1 (400|401) ", head), head
            assert b"Traceback" not in body
            assert b"etc" not in body
            attacker.outcomes["raw: answered"] += bool(head)
            attacker.outcomes["sent"] += 1
        with PolicyClient(port=server.port, api_key=KEY) as client:
            assert client.act_chunk(observation).actions.shape == (HORIZON, 7)
        assert server.metrics.errors["internal"] == 0
        assert server.metrics.clients <= 1
    return attacker.outcomes


@pytest.mark.parametrize(
    "count", [1_000, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.ci, pytest.mark.timeout(600)])]
)
def test_fuzz(policy: StateVLAPolicy, observe: Callable[..., Observation], count: int) -> None:
    outcomes = attack(policy, observe(), count)
    assert outcomes["sent"] == count
    for kind in ("noise", "cut", "pickled", "lying_array", "text", "deep"):
        assert outcomes[f"{kind}: refused"] > 0, outcomes
        assert outcomes[f"{kind}: answered"] == 0, outcomes
    assert outcomes["oversized: closed 1009"] > 0, outcomes
    assert outcomes["unauthorized: refused"] == count // 20
    assert outcomes["raw: answered"] >= count // 50 // 8 * 2, outcomes  # two in eight are whole requests
