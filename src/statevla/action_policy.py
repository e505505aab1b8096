"""z_t → a chunk of actions: flow matching for the continuous dims, a classifier for the gripper."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from statevla.config import ModelConfig
from statevla.mamba import MambaStack
from statevla.types import Gripper


class SinusoidalTimeEmbedding(nn.Module):
    """Flow time in [0, 1] → sinusoids (Vaswani et al. 2017, on 1000 t as in diffusion models) → MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        """`[B]` → `[B, D]`."""
        half = self.dim // 2
        frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000.0) / max(half - 1, 1)))
        angles = 1000.0 * t.float().unsqueeze(-1) * frequencies
        sinusoids = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return self.mlp(F.pad(sinusoids, (0, self.dim - 2 * half)))


class FlowMatchingPolicy(nn.Module):
    """Velocity field over the chunk's continuous dims: Mamba over [z][t][x_1 … x_H]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, policy = config.embed_dim, config.policy
        self.horizon, self.continuous_dim = config.action_seq_len, config.action_dim - 1
        self.state = nn.Linear(config.state_dim, dim)
        self.time = SinusoidalTimeEmbedding(dim)
        self.action = nn.Linear(self.continuous_dim, dim)
        self.positions = nn.Parameter(torch.empty(self.horizon + 2, dim))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.positions._no_weight_decay = True  # type: ignore[attr-defined]
        self.stack = MambaStack(
            dim,
            policy.depth,
            d_state=policy.d_state,
            d_conv=config.mamba.d_conv,
            expand=config.mamba.expand,
            dt_rank=config.mamba.dt_rank,
            mlp_hidden_dim=policy.mlp_hidden_dim,
            backend=config.mamba.scan_backend,
        )
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, self.continuous_dim))

    def forward(self, x_t: Tensor, t: Tensor, state: Tensor) -> Tensor:
        """Velocity at `x_t`.

        Args:
            x_t: `[B, H, A-1]`, normalised.
            t: `[B]`, flow time in [0, 1].
            state: `[B, Z]`.

        Returns:
            `[B, H, A-1]`.
        """
        condition = torch.stack([self.state(state), self.time(t)], dim=1)
        tokens = torch.cat([condition, self.action(x_t).to(condition.dtype)], dim=1) + self.positions
        return self.head(self.stack(tokens)[:, 2:]).float()


class GripperClassifier(nn.Module):
    """z → one logit per step of the chunk; positive means close."""

    def __init__(self, config: ModelConfig, hidden_dim: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(config.state_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, config.action_seq_len),
        )

    def forward(self, state: Tensor) -> Tensor:
        """`[B, Z]` → logits `[B, H]`."""
        return self.mlp(state).float()


def gripper_loss(logits: Tensor, command: Tensor, mask: Tensor | None = None) -> Tensor:
    """Binary cross-entropy against the commands.

    Args:
        logits: `[B, H]`.
        command: `[B, H]`, `Gripper.OPEN` (-1) or `Gripper.CLOSE` (+1).
        mask: bool `[B, H]`, true where a step counts; None counts all.
    """
    is_close = (command > 0).to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, is_close, reduction="none")
    if mask is None:
        return loss.mean()
    weight = mask.to(loss.dtype)
    return (loss * weight).sum() / weight.sum().clamp_min(1.0)


def gripper_command(logits: Tensor) -> Tensor:
    """Logits → exactly `Gripper.OPEN` or `Gripper.CLOSE`, as floats."""
    return torch.where(logits > 0, float(Gripper.CLOSE), float(Gripper.OPEN))
