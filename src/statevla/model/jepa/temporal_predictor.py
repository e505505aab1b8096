"""z_t and an action → the expected z_{t+1}."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from statevla.config import PredictorConfig

NUM_BLOCKS = 2


def build_temporal_predictor(
    config: PredictorConfig, state_dim: int, action_dim: int, hidden_dim: int
) -> TemporalPredictor | ModulatedPredictor:
    """The predictor that `model.predictor` describes; arguments as in `TemporalPredictor`."""
    kind = TemporalPredictor if config.conditioning == "concat" else ModulatedPredictor
    return kind(state_dim, action_dim, hidden_dim, config.dropout)


class TemporalPredictor(nn.Module):
    """Residual MLP: `z' = z + delta(z, a)`, for a small action makes a small change.

    Args:
        state_dim: width of z.
        action_dim: width of the action (block): control steps between two retained frames x 7.
        hidden_dim: width of the two hidden layers.
        dropout: chance in training that a hidden number is left out.
    """

    def __init__(self, state_dim: int, action_dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.action = _action_mlp(action_dim, hidden_dim)
        self.delta = nn.Sequential(
            nn.Linear(state_dim + hidden_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            _GeluDropout(dropout),
            nn.Linear(hidden_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            _GeluDropout(dropout),
            nn.Linear(hidden_dim, state_dim),
        )

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """`[..., Z]`, `[..., K·A]` → `[..., Z]`."""
        hidden = torch.cat([state, self.action(action).to(state.dtype)], dim=-1)
        return state + self.delta(hidden).to(state.dtype)


class ModulatedPredictor(nn.Module):
    """Residual predictor whose blocks the action scales, shifts and gates (AdaLN-zero: Peebles & Xie 2023, arXiv
    2212.09748, section 3.2; in a latent world model: LeWorldModel, arXiv 2603.19312).

    Gates and output start at zero: before training it copies, `z' = z`. Beside z an action of a few numbers is easily
    overlooked; here nothing gets through without it.

    Args:
        state_dim, action_dim, hidden_dim, dropout: as in `TemporalPredictor`.
    """

    def __init__(self, state_dim: int, action_dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.action = _action_mlp(action_dim, hidden_dim)
        self.input = nn.Linear(state_dim, hidden_dim)
        self.blocks = nn.ModuleList(_ModulatedBlock(hidden_dim, dropout) for _ in range(NUM_BLOCKS))
        self.modulation = _zero_linear(hidden_dim, 2 * hidden_dim)
        self.output = _zero_linear(hidden_dim, state_dim)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """`[..., Z]`, `[..., K·A]` → `[..., Z]`."""
        condition = F.silu(self.action(action))
        hidden = self.input(state)
        for block in self.blocks:
            hidden = block(hidden, condition)
        delta = self.output(_modulate(hidden, *self.modulation(condition).chunk(2, dim=-1)))
        return state + delta.to(state.dtype)


class _ModulatedBlock(nn.Module):
    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.modulation = _zero_linear(dim, 3 * dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), _GeluDropout(dropout), nn.Linear(dim, dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        return x + gate * self.mlp(_modulate(x, shift, scale))


class _GeluDropout(nn.GELU):
    """One module for both, so that the names of parameters do not depend on the dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(super().forward(input), self.dropout, self.training)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def _action_mlp(action_dim: int, hidden_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(action_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim))


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
