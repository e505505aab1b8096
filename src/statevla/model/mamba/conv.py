"""Causal depthwise convolution followed by SiLU, channel-last: plain PyTorch, or a fused CPU kernel as an operator."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statevla.model.mamba.backends import resolve_backend


def causal_conv1d_silu(x: Tensor, weight: Tensor, bias: Tensor, backend: str = "auto") -> Tensor:
    """`silu(conv(x))` where output t sees inputs t - d_conv + 1 … t of its own channel.

    Args:
        x: `[B, L, d_inner]`, any strides.
        weight: `[d_inner, 1, d_conv]`, as in `nn.Conv1d`; d_conv from 2 to 4.
        bias: `[d_inner]`.
        backend: as in `selective_scan`; the kernel runs where the scan's 'numba' backend does.

    Returns:
        `[B, L, d_inner]` in the dtype of `x`.
    """
    if resolve_backend(backend, x.device.type, x.dtype) != "numba":
        return _plain(x, weight, bias)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        return _conv_op(x, weight, bias)
    return _run_forward(x, weight, bias)


def _plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    inner, _, width = weight.shape
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    return F.silu(F.conv1d(padded, weight.to(x.dtype), bias.to(x.dtype), groups=inner)).transpose(1, 2)


def _run_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from statevla.model.kernels import call as host

    batch, length, inner = x.shape
    groups, per_group = host.channel_groups(batch, inner)
    out = torch.empty(x.shape, dtype=x.dtype)
    weight, bias = weight.detach().float().contiguous(), bias.detach().float().contiguous()
    parameters = [length, inner, groups, per_group, weight.shape[-1], weight.data_ptr(), bias.data_ptr(), 0, 0]
    parameters += [*host.tensor_slots(x), *host.tensor_slots(out), *host.ABSENT]
    scratch = host.conv_kernel.scratch_bytes(per_group, False)
    host.run_operation(host.program_kernel.CONV, parameters, batch * groups, scratch)
    return out


@torch.library.custom_op("statevla::causal_conv1d_silu", mutates_args=(), device_types="cpu")
def _conv_op(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _run_forward(x, weight, bias)


@_conv_op.register_fake
def _(x, weight, bias):
    return x.new_empty(x.shape)


@torch.library.custom_op("statevla::causal_conv1d_silu_backward", mutates_args=(), device_types="cpu")
def _conv_backward_op(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from statevla.model.kernels import call as host

    batch, length, inner = x.shape
    width = weight.shape[-1]
    groups, per_group = host.channel_groups(batch, inner)
    grad_x = torch.empty(x.shape, dtype=x.dtype)
    grad_weight, grad_bias = torch.empty(batch, inner, width), torch.empty(batch, inner)
    taps, offset = weight.detach().float().contiguous(), bias.detach().float().contiguous()
    parameters = [length, inner, groups, per_group, width, taps.data_ptr(), offset.data_ptr()]
    parameters += [grad_weight.data_ptr(), grad_bias.data_ptr()]
    for tensor in (x, grad, grad_x):
        parameters += host.tensor_slots(tensor)
    scratch = host.conv_kernel.scratch_bytes(per_group, True)
    host.run_kernel(host.conv_kernel.conv_backward, parameters, batch * groups, scratch)
    return grad_x, grad_weight.sum(0).view(weight.shape).to(weight.dtype), grad_bias.sum(0).to(bias.dtype)


@_conv_backward_op.register_fake
def _(grad, x, weight, bias):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _conv_backward_op(grad, *ctx.saved_tensors)


_conv_op.register_autograd(_backward, setup_context=_setup_context)
