"""z_t and an action → the expected z_{t+1}."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TemporalPredictor(nn.Module):
    """Residual MLP: `z' = z + delta(z, a)`, for a small action makes a small change.

    The last layer begins at zero: before training nothing moves, `z' = z`.

    Args:
        state_dim: width of z.
        action_dim: width of the action (block): control steps between two retained frames x 7.
        hidden_dim: width of the two hidden layers.
    """

    def __init__(self, state_dim: int, action_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.action = nn.Sequential(nn.Linear(action_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim))
        self.delta = nn.Sequential(
            nn.Linear(state_dim + hidden_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.GELU(),
            last := nn.Linear(hidden_dim, state_dim),
        )
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """`[..., Z]`, `[..., K·A]` → `[..., Z]`."""
        hidden = torch.cat([state, self.action(action).to(state.dtype)], dim=-1)
        return state + self.delta(hidden).to(state.dtype)
