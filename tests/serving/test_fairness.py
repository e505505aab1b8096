"""What one client costs is not paid by the others: who waits, for what, and what stays behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_server import HORIZON, IMAGE_SIZE, serving

from statevla.acting.policy import StateVLAPolicy
from statevla.serving.server import PolicyServer
from statevla.serving.shares import CREDIT_S, FREE_BYTES, SECONDS_PER_BYTE, Shares
from statevla.types import Observation
from statevla_client import PolicyClient, PolicyClientError
from statevla_client.client import request_of
from statevla_client.wire import pack

Observe = Callable[..., Observation]
LARGE = np.zeros((2230, 2230, 3), np.uint8)
"""15 MB: one such costs more than half of a connection's credit."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATEVLA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def model_sized(observe: Observe) -> dict:
    """A request that needs no preparation but its instruction, which is known."""
    seen = observe()
    return request_of(Observation({n: p[:32, :32] for n, p in seen.images.items()}, seen.robot_state, seen.instruction))


def ask(server: PolicyServer, request: dict) -> dict:
    with PolicyClient(port=server.port) as client:
        return client.infer(request)


# Off the policy's thread ----------------------------------------------------------------------------------------------


class Held:
    """Stands before a function: calls that `is_held` says so of wait until `release`."""

    def __init__(self, function: Callable, is_held: Callable[..., bool]) -> None:
        self._function, self._is_held = function, is_held
        self._go_on = threading.Event()
        self.began = threading.Event()

    def __call__(self, *arguments: object) -> object:
        if self._is_held(*arguments):
            self.began.set()
            assert self._go_on.wait(60)
        return self._function(*arguments)

    def release(self) -> None:
        self._go_on.set()


@pytest.mark.parametrize("what", ["instruction", "picture"])
def test_what_one_client_needs_prepared_holds_up_no_other(
    policy: StateVLAPolicy, observe: Observe, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    slow = model_sized(observe)
    if what == "instruction":
        slow["instruction"] = "open the drawer"
        held = Held(policy.language.encode, lambda texts: "open the drawer" in texts)
        monkeypatch.setattr(policy.language, "encode", held)
    else:
        slow["images/agentview"] = np.zeros((64, 64, 3), np.uint8)
        held = Held(policy.transform.frame_to_model_size, lambda frame, _: len(frame) == 64)
        monkeypatch.setattr(policy.transform, "frame_to_model_size", held)
    with (
        serving(policy) as server,
        ThreadPoolExecutor(1) as pool,
        PolicyClient(port=server.port, timeout_s=30) as client,
    ):
        client.infer(model_sized(observe))
        answer = pool.submit(ask, server, slow)
        try:
            assert held.began.wait(30)
            for _ in range(5):
                assert client.infer(model_sized(observe))["actions"].shape == (HORIZON, 7)
            assert not answer.done()
        finally:
            held.release()
        assert answer.result(30)["actions"].shape == (HORIZON, 7)


def test_prepared_pictures_are_answered_as_the_policy_would(
    policy: StateVLAPolicy, checkpoint: Path, observe: Observe
) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (90, 700, 3), np.uint8)
    seen = observe(1)
    large = Observation(
        {"agentview": np.tile(frame, (12, 1, 1)), "eye_in_hand": frame}, seen.robot_state, "open the drawer"
    )
    assert large.images["agentview"].nbytes > FREE_BYTES
    with serving(policy) as server:
        answer = ask(server, request_of(large))
    local = StateVLAPolicy.from_pretrained(checkpoint)
    np.testing.assert_allclose(answer["actions"], local.act_chunk(large).actions, atol=1e-5)


# Shares ---------------------------------------------------------------------------------------------------------------


def spend_credit(client: PolicyClient, observe: Observe) -> None:
    for _ in range(2):
        client.infer({**model_sized(observe), "images/agentview": LARGE})


def test_a_client_beyond_its_share_waits_and_no_other_does(policy: StateVLAPolicy, observe: Observe) -> None:
    with (
        serving(policy, heavy_share=1e-6) as server,
        ThreadPoolExecutor(1) as pool,
        PolicyClient(port=server.port) as heavy,
    ):
        with PolicyClient(port=server.port) as other:
            spend_credit(heavy, observe)
            waiting = pool.submit(heavy.infer, model_sized(observe))
            for _ in range(50):
                other.infer(model_sized(observe))
            assert not waiting.done()
        # Nobody waits who is alone.
        assert waiting.result(30)["actions"].shape == (HORIZON, 7)
        spend_credit(heavy, observe)
        spend_credit(heavy, observe)


def test_connecting_anew_renews_no_credit(policy: StateVLAPolicy, observe: Observe) -> None:
    with serving(policy, heavy_share=1e-6) as server, ThreadPoolExecutor(1) as pool:
        with PolicyClient(port=server.port) as other:
            with PolicyClient(port=server.port) as heavy:
                spend_credit(heavy, observe)
            again: Future[dict] = pool.submit(ask, server, model_sized(observe))
            for _ in range(50):
                other.infer(model_sized(observe))
            assert not again.done()
            assert server.metrics.connections == 2
        assert again.result(30)["actions"].shape == (HORIZON, 7)


def spend_all_but(left_s: float, client: PolicyClient, observe: Observe) -> None:
    """Two requests that leave so much of a fresh connection's credit, to 2 µs."""
    small = model_sized(observe)
    for share in (0.6, 0.4):
        num_bytes = round((CREDIT_S - left_s) * share / SECONDS_PER_BYTE) + FREE_BYTES
        bulk = (num_bytes - len(pack(small))) // 6000
        request = {**small, "images/agentview": np.zeros((bulk, 2000, 3), np.uint8)}
        width = IMAGE_SIZE + (num_bytes - len(pack(request))) // (3 * IMAGE_SIZE)
        client.infer({**request, "images/eye_in_hand": np.zeros((IMAGE_SIZE, width, 3), np.uint8)})


def test_ordinary_requests_cost_nothing(policy: StateVLAPolicy, observe: Observe) -> None:
    frame = np.zeros((480, 640, 3), np.uint8)
    request = {**model_sized(observe), "images/agentview": frame, "images/eye_in_hand": frame}
    with (
        serving(policy, heavy_share=1e-9) as server,
        PolicyClient(port=server.port) as client,
        PolicyClient(port=server.port) as other,
    ):
        other.infer(model_sized(observe))  # the instruction is new to the server, and paid for
        for _ in range(20):
            client.infer(request)
        spend_all_but(1e-4, client, observe)
        # Had each of them cost 5 µs, it would be below zero, and wait for as long as the other is there.
        assert client.infer(request)["actions"].shape == (HORIZON, 7)


def test_texts_that_are_refused_are_paid_for(policy: StateVLAPolicy, observe: Observe) -> None:
    with (
        serving(policy, heavy_share=1e-9) as server,
        ThreadPoolExecutor(1) as pool,
        PolicyClient(port=server.port) as client,
        PolicyClient(port=server.port) as other,
    ):
        other.infer(model_sized(observe))  # pays for the instruction
        spend_all_but(1e-5, client, observe)
        assert client.infer(model_sized(observe))["actions"].shape == (HORIZON, 7)
        with pytest.raises(PolicyClientError, match="not among the 2"):
            client.infer({**model_sized(observe), "instruction": "sing " * 200})
        waiting = pool.submit(client.infer, model_sized(observe))
        for _ in range(50):
            other.infer(model_sized(observe))
        assert not waiting.done()
        other.close()
        assert waiting.result(30)["actions"].shape == (HORIZON, 7)


def test_accounts() -> None:
    """Of an address the emptiest one is taken up again, and full ones are forgotten."""
    others = 1
    shares = Shares(1e-9, lambda: others)
    accounts = [shares.open("here") for _ in range(3)]
    for account, megabytes in zip(accounts, (4, 12, 1)):
        shares.charge_message(account, megabytes * 2**20)
        shares.close("here", account)
    assert accounts[1].credit_s == pytest.approx(CREDIT_S - SECONDS_PER_BYTE * 10 * 2**20)
    assert accounts[2].credit_s == CREDIT_S
    assert shares.open("elsewhere") not in accounts
    assert shares.open("here") is accounts[1]
    assert shares.open("here") is accounts[0]
    assert shares.open("here") not in accounts
    shares.close("here", accounts[1])
    others = 0
    shares.close("elsewhere", accounts[2])
    assert shares.open("elsewhere") not in accounts
    assert shares.open("here") not in accounts
    asyncio.run(shares.settle_address("here"))


# What is warm ---------------------------------------------------------------------------------------------------------


def test_what_only_the_first_requests_would_cost_is_done_before(
    policy: StateVLAPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards, resized = [], []
    warm_up, resize = policy.warm_up, policy.transform.frame_to_model_size

    def noted_warm_up(batch_size: int = 1) -> None:
        warm_up(batch_size)
        forwards.append((threading.current_thread().name.partition("_")[0], batch_size))

    def noted_resize(frame: np.ndarray, fit: Any) -> np.ndarray:
        resized.append((threading.current_thread().name.partition("_")[0], frame.shape))
        return resize(frame, fit)

    monkeypatch.setattr(policy, "warm_up", noted_warm_up)
    monkeypatch.setattr(policy.transform, "frame_to_model_size", noted_resize)
    with serving(policy, max_batch_size=3):
        assert forwards == [("policy", 1), ("policy", 3)]
        assert [shape for name, shape in resized if name == "prepare"] == [(480, 640, 3)] * 2


# The sentence encoder -------------------------------------------------------------------------------------------------

COMPACT = "models/libero_object_compact"


def test_the_text_model_is_warm_and_leaves_no_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = StateVLAPolicy.from_pretrained(COMPACT, device="cpu")
    frame = np.zeros((128, 128, 3), np.uint8)
    request = {"images/agentview": frame, "images/eye_in_hand": frame, "robot_state": np.zeros(9)}
    with serving(policy) as server, PolicyClient(port=server.port) as client:

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("the text model is loaded while a client waits")

        monkeypatch.setattr("transformers.AutoModel.from_pretrained", refuse)
        for number in range(3):
            answer = client.infer({**request, "instruction": f"pick up the {number}. milk"})
            assert answer["actions"].shape == (policy.horizon, 7)
        assert policy.language.remembers("pick up the 0. milk")
    assert not home.exists()
