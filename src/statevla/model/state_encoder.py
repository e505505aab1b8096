"""Observation → z_t: tokenizer, encoder, projection; and the target and predictor that phase 1 trains it with."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from statevla.config import Config, ModelConfig
from statevla.model.jepa.encoder import Encoder, ema_momentum, update_ema
from statevla.model.jepa.inverse_dynamics import InverseDynamics
from statevla.model.jepa.temporal_predictor import TemporalPredictor
from statevla.model.jepa.tokenizer import Tokenizer
from statevla.types import ModelInput

PHASE_1_PARTS = ("target", "predictor", "inverse_dynamics", "keyframe", "later_keyframe")
"""Modules of `JepaStateEncoder` that neither z nor acting needs."""


class JepaStateEncoder(nn.Module):
    """The world-model half of StateVLA.

    `encode` and `policy_state` are all that acting needs; the target, the predictor, the inverse dynamics and the
    keyframe heads serve phase 1 and the diagnostics. The target shares tokenizer and projection with the online path.
    """

    target: Encoder | None
    inverse_dynamics: InverseDynamics | None
    keyframe: nn.Linear | None
    later_keyframe: nn.Linear | None

    def __init__(self, config: Config, keyframe_dim: int) -> None:
        super().__init__()
        model, phase1 = config.model, config.training.phase1
        self.config, self.target_config = model, phase1.target
        self.tokenizer = Tokenizer(model)
        self.encoder = Encoder(model)
        self.projection = _build_projection(model)
        action_dim = phase1.frame_skip * model.action_dim
        hidden_dim = phase1.temporal_predictor_hidden_dim
        self.predictor = TemporalPredictor(model.state_dim, action_dim, hidden_dim)
        self.inverse_dynamics = None
        if phase1.loss.inverse_dynamics_weight > 0:
            self.inverse_dynamics = InverseDynamics(model.state_dim, action_dim, hidden_dim)
        # Predicting the next frame asks for what moves; a linear reading of where the robot will be at the next event
        # asks for what the motion is about, from the first frame on, and z has to hold that ready for use.
        self.keyframe = nn.Linear(model.state_dim, keyframe_dim) if phase1.loss.keyframe_weight > 0 else None
        self.later_keyframe = None
        if phase1.loss.later_keyframe_weight > 0:
            self.later_keyframe = nn.Linear(model.state_dim, keyframe_dim)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False) if phase1.target.kind == "ema" else None

    def encode(self, observation: ModelInput) -> Tensor:
        """Observations with leading dims `[...]` → z `[..., Z]`; gradients flow."""
        return self._encode(observation, self.encoder)

    @torch.no_grad()
    def encode_target(self, observation: ModelInput) -> Tensor:
        """z of the target, `[..., Z]`; never any gradient."""
        return self._encode(observation, self.target or self.encoder)

    def _encode(self, observation: ModelInput, encoder: Encoder) -> Tensor:
        tokens = self.tokenizer(observation.flatten())
        return self.projection(encoder.last(tokens)).reshape(*observation.batch_shape, -1)

    def policy_state(self, z: Tensor, observation: ModelInput) -> Tensor:
        """z `[B, Z]` and its observations → what the policy is conditioned on, `[B, P]` (`PolicyStateLayout`).

        z, then, where `model.policy.condition` asks for them, robot state and language embedding: one flat vector, so
        that it can be computed once per frame and stored.
        """
        condition = self.config.policy.condition
        is_asked = (True, condition.robot_state, condition.language)
        parts = zip((z, observation.robot_state, observation.language), is_asked)
        return torch.cat([part.float() for part, asked in parts if asked], dim=-1)

    def update_target(self, step: int, total_steps: int) -> float:
        """Move the target towards the online weights; returns the momentum used (nothing to move: 0)."""
        if self.target is None:
            return 0.0
        momentum = ema_momentum(step, total_steps, self.target_config.momentum, self.target_config.final_momentum)
        update_ema(self.target.parameters(), self.encoder.parameters(), momentum)
        return momentum


def _build_projection(config: ModelConfig) -> nn.Module:
    if config.state_projection == "layernorm":
        return nn.Sequential(nn.Linear(config.embed_dim, config.state_dim), nn.LayerNorm(config.state_dim))
    hidden_dim = 2 * config.embed_dim
    return nn.Sequential(
        nn.Linear(config.embed_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.GELU(),
        nn.Linear(hidden_dim, config.state_dim),
    )
