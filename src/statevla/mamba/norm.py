"""RMSNorm, alone and fused with the residual addition before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def add_rms_norm(
    residual: Tensor, update: Tensor | None, weight: Tensor, eps: float, out_dtype: torch.dtype, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """`residual + update` and its RMS norm (Zhang & Sennrich 2019).

    Args:
        residual: `[..., D]`, the residual stream (float32 under autocast).
        update: `[..., D]` in any floating dtype, or None for the first norm.
        weight: `[D]`.

    Returns:
        The new residual stream in the dtype of `residual`, and the normalised value in `out_dtype`.
    """
    if update is not None:
        residual = residual + update.to(residual.dtype)
    normed = F.rms_norm(residual, (residual.shape[-1],), weight.to(residual.dtype), eps)
    return residual, normed.to(out_dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, with a weight and no bias."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D] -> [..., D]`, computed in the dtype of `x`."""
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)
