"""What a server answers: the policy's own chunks and actions, surprise and alarm, in both vocabularies."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_server import HORIZON, INSTRUCTIONS, save_tiny_checkpoint, serving

from statevla import __version__
from statevla.acting.alarm import Calibration
from statevla.acting.policy import StateVLAPolicy
from statevla.robots import ALOHA, DROID, LIBERO, LIBERO_HAND, RobotSpec
from statevla.types import Observation
from statevla_client import PolicyClient, PolicyClientError
from statevla_client.client import request_of

Observe = Callable[..., Observation]


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
            with pytest.raises(PolicyClientError, match="executed_actions"):
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


@pytest.mark.parametrize("robot", [LIBERO, ALOHA, DROID], ids=lambda robot: robot.name)
def test_what_the_metadata_promise_holds(robot: RobotSpec, tmp_path: Path) -> None:
    """A client that knows nothing but the metadata."""
    policy = StateVLAPolicy.from_pretrained(save_tiny_checkpoint(tmp_path, robot), execute_steps=2)
    with serving(policy, max_message_bytes=100_000) as server, PolicyClient(port=server.port) as client:
        told = client.metadata
        assert told["robot"]["name"] == robot.name
        frame = np.zeros((told["image_size"], told["image_size"], 3), np.uint8)
        request = {f"images/{camera}": frame for camera in told["cameras"]}
        request |= {"robot_state": np.zeros(told["robot_state_dim"], np.float32), "instruction": INSTRUCTIONS[0]}
        for orientation in told["image_orientations"]:
            for mode in told["modes"]:
                client.reset()
                answer = client.infer({**request, "image_orientation": orientation, "mode": mode})
                assert answer.get("actions", np.zeros((told["action_horizon"], 1))).shape[0] == told["action_horizon"]
                assert {"chunk": "actions", "act": "action"}[mode] in answer
                assert answer.get("action", answer.get("actions")).shape[-1] == told["action_dim"]
        client.reset()
        needed = [client.infer({**request, "mode": "act"})["needs_observation"] for _ in range(told["execute_steps"])]
        assert needed == [*[False] * (told["execute_steps"] - 1), True]
        frame = np.zeros((told["max_message_bytes"] // 3 // 100, 100, 3), np.uint8)
        with pytest.raises(PolicyClientError, match="code 1009"):
            client.infer({**request, f"images/{told['cameras'][0]}": frame})


def test_what_means_nothing_is_noted_once(hand_policy: StateVLAPolicy, caplog: pytest.LogCaptureFixture) -> None:
    frame = np.zeros((32, 32, 3), np.uint8)
    request = {"observation/image": frame, "observation/wrist_image": frame, "observation/state": np.zeros(8)}
    caplog.set_level(logging.INFO, logger="statevla.serving.server")
    with serving(hand_policy, default_prompt=INSTRUCTIONS[0]) as server, PolicyClient(port=server.port) as client:
        first = client.infer(request)["actions"]
        client.reset()
        for _ in range(2):
            client.infer({**request, "timestamp": 1.0})
        client.reset()
        np.testing.assert_array_equal(client.infer({**request, "prompt": INSTRUCTIONS[0]})["actions"], first)
    notes = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert notes == ["a client sends keys that mean nothing here, they are ignored: timestamp"]
