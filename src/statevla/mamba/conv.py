"""Causal depthwise convolution followed by SiLU, channel-last."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def causal_conv1d_silu(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str = "auto") -> Tensor:
    """`silu(conv(x))` where output t sees inputs t - d_conv + 1 … t of its own channel.

    Args:
        x: `[B, L, d_inner]`, any strides.
        weight: `[d_inner, 1, d_conv]`, as in `nn.Conv1d`.
        bias: `[d_inner]` or None.

    Returns:
        `[B, L, d_inner]` in the dtype of `x`.
    """
    inner, _, width = weight.shape
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return F.silu(F.conv1d(padded, weight, bias, groups=inner)).transpose(1, 2)
