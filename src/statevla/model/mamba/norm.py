"""RMSNorm fused with the residual addition before it: plain PyTorch, or a CPU kernel as an operator."""

from __future__ import annotations

import struct
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statevla.model.mamba.backends import resolve_backend

_ROWS_PER_TASK = 64


class RMSNorm(nn.RMSNorm):
    """PyTorch's, of which a stack takes weight and `eps` for `add_rms_norm`."""

    eps: float


def add_rms_norm(
    residual: Tensor, update: Tensor | None, weight: Tensor, eps: float, out_dtype: torch.dtype, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """`residual + update` and its RMS norm (Zhang & Sennrich 2019).

    Args:
        residual: `[..., D]`, the residual stream (float32 under autocast).
        update: `[..., D]` in any floating dtype, or None for the first norm.
        weight: `[D]`.
        backend: as in `selective_scan`; the kernel runs where the scan's 'numba' backend does.

    Returns:
        The new residual stream in the dtype of `residual`, and the normalised value in `out_dtype`.
    """
    if not _takes(residual, update, out_dtype, backend):
        if update is not None:
            residual = residual + update.to(residual.dtype)
        normed = F.rms_norm(residual, (residual.shape[-1],), weight.to(residual.dtype), eps)
        return residual, normed.to(out_dtype)
    tensors = (residual, weight) if update is None else (residual, weight, update)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        total, normed = _norm_op(residual, update, weight, eps, out_dtype)
    else:
        total, normed = _run_forward(residual, update, weight, eps, out_dtype)
    return (residual if update is None else total), normed


def _takes(residual: Tensor, update: Tensor | None, out_dtype: torch.dtype, backend: str) -> bool:
    """Whether the kernel reads and writes these dtypes here."""
    half_or_float = (torch.float32, torch.bfloat16)
    return (
        residual.dtype == torch.float32
        and out_dtype in half_or_float
        and (update is None or update.dtype in half_or_float)
        and resolve_backend(backend, residual.device.type, residual.dtype) == "numba"
    )


def _parameters(weight: Tensor, rows: int, dim: int, rows_per_task: int, eps: float, grad_weight: int) -> list[int]:
    eps_bits = struct.unpack("<i", struct.pack("<f", eps))[0]
    return [rows, dim, rows_per_task, eps_bits, weight.data_ptr(), grad_weight]


def _run_forward(
    residual: Tensor, update: Tensor | None, weight: Tensor, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    from statevla.model.kernels import call as host

    residual, weight = residual.detach().contiguous(), weight.detach().float().contiguous()
    dim = residual.shape[-1]
    rows = residual.numel() // dim
    normed = torch.empty(residual.shape, dtype=out_dtype)
    total = torch.empty(residual.shape if update is not None else (0,))
    update = None if update is None else update.detach().contiguous()
    parameters = _parameters(weight, rows, dim, _ROWS_PER_TASK, eps, 0)
    for tensor in (residual, update, total, normed, None, None):
        parameters += host.tensor_slots(tensor)[:2]
    scratch = host.norm_kernel.scratch_bytes(dim, False)
    host.run_kernel(host.norm_kernel.norm_forward, parameters, -(-rows // _ROWS_PER_TASK), scratch)
    return total, normed


@torch.library.custom_op("statevla::add_rms_norm", mutates_args=(), device_types="cpu")
def _norm_op(
    residual: Tensor, update: Tensor | None, weight: Tensor, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return _run_forward(residual, update, weight, eps, out_dtype)


@_norm_op.register_fake
def _(residual, update, weight, eps, out_dtype):
    total = residual.new_empty((0,) if update is None else residual.shape)
    return total, residual.new_empty(residual.shape, dtype=out_dtype)


@torch.library.custom_op("statevla::add_rms_norm_backward", mutates_args=(), device_types="cpu")
def _norm_backward_op(
    grad_total: Tensor | None, grad_normed: Tensor, total: Tensor, weight: Tensor, eps: float, update_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the residual, of the weight, and of the update if its dtype is another (else empty)."""
    from statevla.model.kernels import call as host

    dim = total.shape[-1]
    rows = total.numel() // dim
    per_task = max(_ROWS_PER_TASK, -(-rows // 16))
    tasks = -(-rows // per_task)
    total, scale = total.contiguous(), weight.detach().float().contiguous()
    grad_normed = grad_normed.contiguous()
    grad_total = None if grad_total is None else grad_total.contiguous()
    grad = torch.empty(total.shape)
    grad_update = torch.empty(total.shape if update_dtype != torch.float32 else (0,), dtype=update_dtype)
    grad_weight = torch.empty(tasks, dim)
    parameters = _parameters(scale, rows, dim, per_task, eps, grad_weight.data_ptr())
    written = grad_update if update_dtype != torch.float32 else None
    for tensor in (total, None, grad_total, grad_normed, grad, written):
        parameters += host.tensor_slots(tensor)[:2]
    scratch = host.norm_kernel.scratch_bytes(dim, True)
    host.run_kernel(host.norm_kernel.norm_backward, parameters, tasks, scratch)
    return grad, grad_weight.sum(0).to(weight.dtype), grad_update


@_norm_backward_op.register_fake
def _(grad_total, grad_normed, total, weight, eps, update_dtype):
    shape = total.shape if update_dtype != torch.float32 else (0,)
    return total.new_empty(total.shape), weight.new_empty(weight.shape), total.new_empty(shape, dtype=update_dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    residual, update, weight, ctx.eps, _ = inputs
    ctx.update_dtype = torch.float32 if update is None else update.dtype
    ctx.has_update = update is not None
    ctx.save_for_backward(output[0] if ctx.has_update else residual, weight)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_total: Tensor | None, grad_normed: Tensor | None) -> tuple[Tensor | None, ...]:
    total, weight = ctx.saved_tensors
    grad_total = grad_total if ctx.has_update else None
    if grad_normed is None:
        grad_update = None if grad_total is None else grad_total.to(ctx.update_dtype)
        return grad_total, grad_update, None, None, None
    grad, grad_weight, other = _norm_backward_op(grad_total, grad_normed, total, weight, ctx.eps, ctx.update_dtype)
    grad_update = None if not ctx.has_update else grad if ctx.update_dtype == torch.float32 else other
    return grad, grad_update, grad_weight, None, None


_norm_op.register_autograd(_backward, setup_context=_setup_context)
