"""vla-eval's harness: what its LIBERO sends is understood, its connection gets the policy's own chunks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest

pytest.importorskip("vla_eval")

from vla_eval.connection import Connection
from vla_eval.model_servers.serve import serve_async
from vla_eval.specs import check_specs

from statevla.acting.policy import StateVLAPolicy, load_policy
from statevla.commands.serve import ServeArgs, serve
from statevla.errors import UserError
from statevla.robots import LIBERO_HAND
from statevla.serving.vla_eval import HarnessServer, as_openpi
from statevla.types import Observation


def as_sent(observation: Observation) -> dict[str, Any]:
    """As the harness's LIBERO makes it of the simulator's frames, which are upside down: both axes turned."""
    raw = {name: image[::-1] for name, image in observation.images.items()}
    state = np.concatenate([observation.robot_state[field.name] for field in LIBERO_HAND.policy_fields])
    return {
        "images": {"agentview": raw["agentview"][::-1, ::-1], "wrist": raw["eye_in_hand"][::-1, ::-1]},
        "states": state.astype(np.float64),
        "controller_states": np.zeros(8),
        "task_description": observation.instruction,
    }


@pytest.mark.parametrize("trained", ["hand_checkpoint", "either_checkpoint"])
def test_the_harness_gets_the_policys_actions(
    trained: str, request: pytest.FixtureRequest, observe: Callable[..., Observation]
) -> None:
    checkpoint = request.getfixturevalue(trained)
    policy = load_policy(checkpoint, execute_steps=3, sampling_temperature=0.0)
    first, second = observe(0, LIBERO_HAND), observe(1, LIBERO_HAND)
    wanted = [*policy.act_chunk(first).actions[:3], *policy.act_chunk(second).actions[:3]]
    elsewhere = Observation(first.images, {k: -v for k, v in first.robot_state.items()}, first.instruction)
    assert not np.array_equal(policy.act_chunk(elsewhere).actions[:3], wanted[:3])  # the hand's pose matters
    answers: list[np.ndarray] = []

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            port = await tasks.start(serve_async, HarnessServer(policy), "127.0.0.1", 0)
            async with Connection(f"ws://127.0.0.1:{port}") as connection:
                await connection.start_episode({"task": {"name": "any"}})
                for step in range(6):  # an observation at every step, of which the first of each chunk counts
                    reply = await connection.act(as_sent(first if step < 3 else second))
                    answers.append(np.asarray(reply["actions"]))
                await connection.end_episode({"success": True})
            tasks.cancel_scope.cancel()

    anyio.run(run)
    np.testing.assert_array_equal(answers, wanted)
    assert set(np.stack(answers)[:, 6]) <= {-1.0, 1.0}  # as the harness takes them: -1 opens, 1 closes


def test_both_sides_mean_the_same(hand_policy: StateVLAPolicy) -> None:
    before = dict(os.environ)
    from vla_eval.benchmarks.libero.benchmark import LIBEROBenchmark  # sets PYOPENGL_PLATFORM, for others' tests too

    os.environ.clear()
    os.environ.update(before)
    server = HarnessServer(hand_policy)
    benchmark = LIBEROBenchmark(**server.get_observation_params())
    assert not check_specs(
        server.get_action_spec(),
        benchmark.get_action_spec(),
        server.get_observation_spec(),
        benchmark.get_observation_spec(),
    )


def test_what_does_not_fit_is_said(
    policy: StateVLAPolicy, checkpoint: Any, observe: Callable[..., Observation]
) -> None:
    with pytest.raises(UserError, match=r"vla-eval's LIBERO: expected state joint_positions .*libero_hand"):
        HarnessServer(policy)
    sent = as_sent(observe(0, LIBERO_HAND))
    del sent["images"]["wrist"]
    with pytest.raises(UserError, match="got no observation/wrist_image; set send_wrist_image"):
        as_openpi(sent)
    with pytest.raises(UserError, match="--max-clients: vla-eval's protocol has no such thing"):
        serve(ServeArgs(str(checkpoint), protocol="vla-eval", max_clients=2))
