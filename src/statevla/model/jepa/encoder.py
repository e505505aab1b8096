"""The context encoder, and the exponential average that makes its target."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from statevla.config import ModelConfig
from statevla.model.mamba import MambaStack


class Encoder(nn.Module):
    """Mamba stack over the token sequence, then a LayerNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        mamba = config.mamba
        self.stack = MambaStack(
            config.embed_dim, config.encoder_depth, d_state=mamba.d_state, backend=mamba.scan_backend
        )
        self.norm = nn.LayerNorm(config.embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, N, D]` → `[B, N, D]`; output i has seen tokens 0…i."""
        return self.norm(self.stack(tokens))

    def last(self, tokens: Tensor) -> Tensor:
        """The output at CLS alone, `[B, N, D]` → `[B, D]`: `forward(tokens)[:, -1]` for less."""
        return self.norm(self.stack(tokens, last_only=True))


def ema_momentum(step: int, total_steps: int, base: float, final: float) -> float:
    """Cosine schedule of the target's momentum (BYOL, Grill et al. 2020, section 3.1), from base to final."""
    progress = min(max(step / max(total_steps, 1), 0.0), 1.0)
    return final - (final - base) * (math.cos(math.pi * progress) + 1) / 2


@torch.no_grad()
def update_ema(target: Iterable[Tensor], online: Iterable[Tensor], momentum: float) -> None:
    """`target ← momentum · target + (1 - momentum) · online`, in place, all tensors at once."""
    torch._foreach_lerp_(list(target), [tensor.detach() for tensor in online], 1.0 - momentum)
