"""Observation → z_t: tokenizer, encoder, projection; and the target and predictor that phase 1 trains it with."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from statevla.config import Config, ModelConfig
from statevla.model.jepa import (
    Encoder,
    InverseDynamics,
    KeyframeHead,
    Tokenizer,
    build_temporal_predictor,
    ema_momentum,
    update_ema,
)
from statevla.types import ModelInput


class JepaStateEncoder(nn.Module):
    """The world-model half of StateVLA.

    `encode` and `encode_for_policy` are all that acting needs; the target, the predictor, the inverse dynamics and the
    keyframe head serve phase 1 and the diagnostics.
    """

    inverse_dynamics: InverseDynamics | None
    keyframe: KeyframeHead | None

    def __init__(self, config: Config, keyframe_dim: int) -> None:
        super().__init__()
        model, phase1 = config.model, config.training.phase1
        self.config = model
        self.tokenizer = Tokenizer(model)
        self.encoder = Encoder(model)
        self.projection = _build_projection(model)
        action_dim = phase1.frame_skip * model.action_dim
        hidden_dim = phase1.temporal_predictor_hidden_dim
        self.predictor = build_temporal_predictor(model.predictor, model.state_dim, action_dim, hidden_dim)
        self.inverse_dynamics = None
        if phase1.loss.inverse_dynamics_weight > 0:
            self.inverse_dynamics = InverseDynamics(model.state_dim, action_dim, hidden_dim)
        self.keyframe = KeyframeHead(model.state_dim, keyframe_dim) if phase1.loss.keyframe_weight > 0 else None
        self.target_config = phase1.target
        self.target = nn.ModuleDict()
        if phase1.target.kind == "ema":
            # Only what is averaged has a copy; the rest of the target's path is shared with the online one.
            encoder_only = phase1.target.scope == "encoder"
            for name in ("encoder",) if encoder_only else ("tokenizer", "encoder", "projection"):
                self.target[name] = copy.deepcopy(getattr(self, name))
            self.target.requires_grad_(False)

    def encode(self, observation: ModelInput) -> Tensor:
        """Observations with leading dims `[...]` → z `[..., Z]`; gradients flow."""
        return self._encode(observation, {})

    @torch.no_grad()
    def encode_target(self, observation: ModelInput) -> Tensor:
        """z of the target, `[..., Z]`; never any gradient."""
        return self._encode(observation, dict(self.target.items()))

    def _encode(self, observation: ModelInput, parts: dict[str, nn.Module]) -> Tensor:
        tokens = parts.get("tokenizer", self.tokenizer)(observation.flatten())
        encoder, projection = parts.get("encoder", self.encoder), parts.get("projection", self.projection)
        assert isinstance(encoder, Encoder)
        return projection(encoder.last(tokens)).reshape(*observation.batch_shape, -1)

    def encode_for_policy(self, observation: ModelInput) -> Tensor:
        """Observations `[B]` → what the policy is conditioned on, `[B, P]` (`PolicyStateLayout`).

        z, then, where `model.policy.condition` asks for them, robot state, language embedding and pooled camera
        tokens: one flat vector, so that it can be computed once per frame and stored.
        """
        condition = self.config.policy.condition
        camera_tokens = []
        if condition.token_grid:
            outputs = self.encoder(self.tokenizer(observation))
            z = self.projection(outputs[:, -1])
            camera_tokens.append(self._pool(outputs, condition.token_grid).flatten(1))
        else:
            z = self.encode(observation)
        parts = [
            z,
            *([observation.robot_state] if condition.robot_state else []),
            *([observation.language] if condition.language else []),
            *camera_tokens,
        ]
        return torch.cat([part.float() for part in parts], dim=-1)

    def _pool(self, outputs: Tensor, grid: int) -> Tensor:
        """Encoder outputs → `[B, V · grid², D]`, average-pooled per camera."""
        cameras = outputs[:, 2:-1].unflatten(1, (len(self.config.cameras), -1))
        side = self.config.image_size // self.config.stem.stride()
        maps = cameras.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))
        pooled = F.adaptive_avg_pool2d(maps, grid).flatten(2).transpose(1, 2)
        return pooled.unflatten(0, (-1, len(self.config.cameras))).flatten(1, 2)

    def update_target(self, step: int, total_steps: int) -> float:
        """Move the target towards the online weights; returns the momentum used (nothing to move: 0)."""
        if not len(self.target):
            return 0.0
        momentum = ema_momentum(step, total_steps, self.target_config.momentum, self.target_config.final_momentum)
        for name, target in self.target.items():
            update_ema(target.parameters(), getattr(self, name).parameters(), momentum)
            # Running statistics are no parameters; the target takes the online ones as they are.
            for mine, online in zip(target.buffers(), getattr(self, name).buffers(), strict=True):
                mine.copy_(online)
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
