"""The selective scan of Mamba-1 as one function and one PyTorch operator, whichever backend computes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statevla.errors import UserError
from statevla.model.mamba.backends import Gradients, ScanInputs, get_backend, resolve_backend
from statevla.model.mamba.scan_reference import compute_dtype

_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state, bool delta_softplus"
)
"""`ScanInputs`, as PyTorch's operators declare their arguments."""
_GRADIENTS = ", ".join(["Tensor"] * 9)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective state-space scan (Gu & Dao 2023, Algorithm 2), channel-last.

    With `d = softplus(delta + delta_bias)` (or without the softplus), per channel and state:
    `h_t = exp(d_t A) h_(t-1) + d_t u_t B_t`, `y_t = (C_t h_t + D u_t) silu(z_t)`.

    Args:
        u, delta, z: `[B, L, d_inner]`, any strides.
        A: `[d_inner, d_state]`, negative.
        B, C: `[B, L, d_state]`.
        D, delta_bias: `[d_inner]`.
        initial_state: `[B, d_inner, d_state]`; zeros if None.
        backend: 'auto', 'reference', 'chunked', 'numba' or 'mamba_ssm'; see `backends.py`.

    Returns:
        `[B, L, d_inner]` in the dtype of `u`; with `return_last_state` also the state `[B, d_inner, d_state]`.

    Raises:
        UserError: if shapes do not fit or the backend's name is unknown.
    """
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus)
    _check_shapes(inputs)
    name = resolve_backend(backend, u.device.type, u.dtype)
    needs_grad = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs)
    if torch.compiler.is_compiling() or (needs_grad and name != "mamba_ssm"):
        out, last_state, _ = _scan_op(*inputs, needs_grad, return_last_state, name)
    else:  # an operator call costs tens of microseconds; and mamba_ssm brings its own autograd function
        out, last_state, _ = get_backend(name).forward(inputs, False, return_last_state)
    return (out, last_state) if return_last_state else out


def _check_shapes(inputs: ScanInputs) -> None:
    u, A = inputs.u, inputs.A
    if u.dim() != 3 or A.dim() != 2 or u.shape[1] < 1:
        raise UserError(
            f"selective_scan: expected u [B, L >= 1, d_inner] and A [d_inner, d_state], got {list(u.shape)} and "
            f"{list(A.shape)}; the layout is channel-last"
        )
    sequence, selection = u.shape, (u.shape[0], u.shape[1], A.shape[1])
    channel = sequence[2:]
    for name, tensor, shape in (
        ("delta", inputs.delta, sequence),
        ("A", A, (sequence[2], selection[2])),
        ("B", inputs.B, selection),
        ("C", inputs.C, selection),
        ("D", inputs.D, channel),
        ("z", inputs.z, sequence),
        ("delta_bias", inputs.delta_bias, channel),
        ("initial_state", inputs.initial_state, (sequence[0], sequence[2], selection[2])),
    ):
        if tensor is not None and tensor.shape != shape:
            raise UserError(
                f"selective_scan: expected {name} {list(shape)}, got {list(tensor.shape)}; the layout is channel-last"
            )


@torch.library.custom_op(
    "statevla::selective_scan",
    mutates_args=(),
    schema=f"({_INPUTS}, bool keep, bool return_last_state, str backend) -> (Tensor, Tensor, Tensor)",
)
def _scan_op(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, keep, return_last_state, backend = arguments
    return tuple(get_backend(backend).forward(ScanInputs._make(inputs), keep, return_last_state))


@_scan_op.register_fake
def _(*arguments):
    *inputs, keep, return_last_state, backend = arguments
    u, (inner, state) = inputs[0], inputs[2].shape
    batch, length, _ = u.shape
    shape = get_backend(backend).checkpoint_shape(batch, length, inner, state) if keep else (0,)
    return (
        u.new_empty(u.shape),
        u.new_empty((batch, inner, state) if return_last_state else (0,), dtype=compute_dtype(u.dtype)),
        u.new_empty(shape, dtype=torch.float32),
    )


@torch.library.custom_op(
    "statevla::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor grad_out, Tensor? grad_last_state, Tensor checkpoints, {_INPUTS}, str backend) -> ({_GRADIENTS})",
)
def _scan_backward_op(*arguments: Any) -> Gradients:
    grad_out, grad_last_state, checkpoints, *inputs, backend = arguments
    kernel = get_backend(backend).backward
    assert kernel is not None
    gradients = kernel(grad_out, grad_last_state, ScanInputs._make(inputs), checkpoints)
    return tuple(grad_out.new_empty(0) if g is None else g for g in gradients)


@_scan_backward_op.register_fake
def _(*arguments):
    grad_out, _, _, *tensors, _, _ = arguments
    return tuple(grad_out.new_empty(0) if t is None else t.new_empty(t.shape) for t in tensors)


def recompute_gradients(
    grad_out: Tensor, grad_last_state: Tensor | None, inputs: ScanInputs, backend: str
) -> Gradients:
    """Run the forward again under autograd: one layer's intermediate states live at a time, never those of all."""
    leaves = [t.detach().requires_grad_() if isinstance(t, Tensor) else None for t in inputs[:9]]
    with torch.enable_grad():
        again = ScanInputs._make([*leaves, inputs.delta_softplus])
        out, last_state, _ = get_backend(backend).forward(again, False, grad_last_state is not None)
        outputs, grads = [out], [grad_out]
        if grad_last_state is not None:
            outputs.append(last_state)
            grads.append(grad_last_state)
        present = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(outputs, present, grads, allow_unused=True, materialize_grads=True))
    return tuple(None if leaf is None else next(found) for leaf in leaves)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.delta_softplus, _keep, ctx.returns_state, ctx.backend = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_last_state: Tensor | None, _: Tensor | None) -> Gradients:
    *tensors, checkpoints = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(tensors[0])
    grad_last_state = grad_last_state if ctx.returns_state else None
    if get_backend(ctx.backend).backward is None:
        inputs = ScanInputs._make([*tensors, ctx.delta_softplus])
        return (*recompute_gradients(grad_out, grad_last_state, inputs, ctx.backend), None, None, None, None)
    gradients = _scan_backward_op(grad_out, grad_last_state, checkpoints, *tensors, ctx.delta_softplus, ctx.backend)
    return (*(None if t is None else g for t, g in zip(tensors, gradients)), None, None, None, None)


_scan_op.register_autograd(_backward, setup_context=_setup_context)
