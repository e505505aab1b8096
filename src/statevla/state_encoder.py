"""Observation → z_t: tokenizer, encoder, projection; and the target and predictor that phase 1 trains it with."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from statevla.config import Config
from statevla.jepa import Encoder, TemporalPredictor, Tokenizer, ema_momentum, update_ema
from statevla.types import ModelInput


class JepaStateEncoder(nn.Module):
    """The world-model half of StateVLA.

    `encode` is all that acting needs; `encode_target` and `predictor` serve phase 1 and the diagnostics.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        model, phase1 = config.model, config.training.phase1
        self.tokenizer = Tokenizer(model)
        self.encoder = Encoder(model)
        self.projection = nn.Sequential(nn.Linear(model.embed_dim, model.state_dim), nn.LayerNorm(model.state_dim))
        self.predictor = TemporalPredictor(
            model.state_dim, phase1.frame_skip * model.action_dim, phase1.temporal_predictor_hidden_dim
        )
        self.target_config = phase1.target
        # Only what is averaged has a copy; the rest of the target's path is shared with the online one.
        averaged = ("encoder",) if phase1.target.scope == "encoder" else ("tokenizer", "encoder", "projection")
        self.target = nn.ModuleDict({name: copy.deepcopy(getattr(self, name)) for name in averaged})
        self.target.requires_grad_(False)

    def encode(self, observation: ModelInput) -> Tensor:
        """`[..., ]` observations → z `[..., Z]`; gradients flow."""
        return self._encode(observation, {})

    @torch.no_grad()
    def encode_target(self, observation: ModelInput) -> Tensor:
        """z of the EMA target, `[..., Z]`; never any gradient."""
        return self._encode(observation, dict(self.target.items()))

    def _encode(self, observation: ModelInput, parts: dict[str, nn.Module]) -> Tensor:
        tokens = parts.get("tokenizer", self.tokenizer)(observation.flatten())
        cls = parts.get("encoder", self.encoder)(tokens)[:, -1]
        state = parts.get("projection", self.projection)(cls)
        return state.reshape(*observation.batch_shape, -1)

    def update_target(self, step: int, total_steps: int) -> float:
        """Move the target towards the online weights; returns the momentum used."""
        momentum = ema_momentum(step, total_steps, self.target_config.momentum, self.target_config.final_momentum)
        for name, target in self.target.items():
            update_ema(target.parameters(), getattr(self, name).parameters(), momentum)
        return momentum
