"""A policy behind vla-evaluation-harness (PyPI `vla-eval`), whose LIBERO sends openpi's numbers under other names.

The harness runs the simulator, counts steps and successes, and knows nothing of the policy but what this file says.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from vla_eval.model_servers.base import SessionContext
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import serve
from vla_eval.specs import (
    GRIPPER_CLOSE_POS,
    IMAGE_RGB,
    LANGUAGE,
    POSITION_DELTA,
    ROTATION_AA,
    STATE_EEF_POS_AA_GRIP,
    DimSpec,
)

from statevla.acting.policy import StateVLAPolicy
from statevla.acting.session import PolicySession
from statevla.errors import UserError
from statevla.serving.formats import read_request
from statevla.serving.openpi import OPENPI_LIBERO

logger = logging.getLogger(__name__)


class HarnessServer(PredictModelServer):
    """Answers the harness's LIBERO.

    Args:
        policy: of LIBERO's robot, seen by its hand's pose and fingers (8 numbers): `libero_hand` or `libero_either`.

    Raises:
        UserError: the policy is another robot's, or sees another state, which the harness does not send.
    """

    def __init__(self, policy: StateVLAPolicy) -> None:
        misfit = OPENPI_LIBERO.misfit(policy.robot)
        if misfit is not None:
            raise UserError(
                f"policy '{policy.name}': vla-eval's LIBERO: {misfit}; serve a policy that was trained with data.robot "
                "libero_hand or libero_either"
            )
        super().__init__(chunk_size=policy.execute_steps)
        self._policy = policy
        self._sessions: dict[str, PolicySession] = {}
        self._num_episodes = 0

    async def on_episode_start(self, config: dict[str, Any], ctx: SessionContext) -> None:
        await super().on_episode_start(config, ctx)
        self._sessions[ctx.session_id] = self._policy.new_session(self._num_episodes)
        self._num_episodes += 1

    async def on_episode_end(self, result: dict[str, Any], ctx: SessionContext) -> None:
        await super().on_episode_end(result, ctx)
        self._sessions.pop(ctx.session_id, None)

    def get_observation_params(self) -> dict[str, Any]:
        return {"send_wrist_image": True, "send_state": True}

    def get_action_spec(self) -> dict[str, DimSpec]:
        return {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}

    def get_observation_spec(self) -> dict[str, DimSpec]:
        return {
            "agentview": IMAGE_RGB,
            "wrist": IMAGE_RGB,
            "state": STATE_EEF_POS_AA_GRIP,
            "language": LANGUAGE,
        }

    def predict(self, obs: Mapping[str, Any], ctx: SessionContext) -> dict[str, Any]:
        """A chunk of actions `[execute_steps, 7]` for one observation of the harness."""
        request = read_request(as_openpi(obs), self._policy.robot)
        assert request.observation is not None  # the message has nothing else
        session = self._sessions[ctx.session_id]
        self._policy.query([(session, request.observation)])
        return {"actions": session.next_actions()}


def as_openpi(obs: Mapping[str, Any]) -> dict[str, Any]:
    """What vla-eval's LIBERO sends, by openpi's keys: the same frames, turned by 180 degrees, and the same numbers.

    Raises:
        UserError: something is missing.
    """
    images = obs.get("images", {})
    message = {
        "observation/image": images.get("agentview"),
        "observation/wrist_image": images.get("wrist"),
        "observation/state": None if obs.get("states") is None else np.asarray(obs["states"]),
        "prompt": obs.get("task_description"),
    }
    if missing := [key for key, value in message.items() if value is None]:
        raise UserError(
            f"vla-eval: expected images agentview and wrist, states and task_description, got no {missing[0]}; set "
            "send_wrist_image and send_state of the benchmark to true"
        )
    return message


def run(policy: StateVLAPolicy, host: str, port: int) -> None:
    """Serve until a signal comes.

    Raises:
        UserError: the policy does not fit, or the port is taken.
    """
    server = HarnessServer(policy)
    policy.warm_up()
    policy.language.warm_up()
    logger.info("listening on ws://%s:%d for vla-eval", host, port)
    try:
        serve(server, host=host, port=port)
    except* OSError as group:
        error = group.exceptions[0]
        raise UserError(f"--port {port}: {error}; choose another, or stop who holds it") from None
