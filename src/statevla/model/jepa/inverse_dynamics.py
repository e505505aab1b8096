"""Two consecutive latents → the action block between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InverseDynamics(nn.Module):
    """MLP h([z_t, z_{t+1}]) (eb_jepa, arXiv 2602.03604): keeps in z what actions change.

    Args:
        state_dim: width of z.
        action_dim: width of the action block.
        hidden_dim: width of the hidden layer.
    """

    def __init__(self, state_dim: int, action_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * state_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, action_dim))

    def forward(self, state: Tensor, next_state: Tensor) -> Tensor:
        """`[..., Z]`, `[..., Z]` → `[..., K·A]`."""
        return self.mlp(torch.cat([state, next_state], dim=-1))
