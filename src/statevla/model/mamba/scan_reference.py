"""The definition of the selective scan, step by step: what every other backend is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statevla.model.mamba.backends import ScanBackend, ScanInputs, ScanOutputs


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half-precision inputs are computed in float32; float32 and float64 as they are."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def effective_delta(inputs: ScanInputs, dtype: torch.dtype) -> Tensor:
    """Step sizes `[B, L, d_inner]` after bias and softplus, in `dtype`."""
    delta = inputs.delta.to(dtype)
    if inputs.delta_bias is not None:
        delta = delta + inputs.delta_bias.to(dtype)
    return F.softplus(delta) if inputs.delta_softplus else delta


def skip_and_gate(y: Tensor, inputs: ScanInputs) -> Tensor:
    """Add `D * u`, multiply by `silu(z)`, and return in the dtype of `u`."""
    if inputs.D is not None:
        y = y + inputs.D.to(y.dtype) * inputs.u.to(y.dtype)
    if inputs.z is not None:
        y = y * F.silu(inputs.z.to(y.dtype))
    return y.to(inputs.u.dtype)


def start_state(inputs: ScanInputs, dtype: torch.dtype) -> Tensor:
    """State before the first step, `[B, d_inner, d_state]`."""
    if inputs.initial_state is not None:
        return inputs.initial_state.to(dtype)
    return inputs.u.new_zeros((inputs.u.shape[0], *inputs.A.shape), dtype=dtype)


def scan_sequential(inputs: ScanInputs, keep_for_backward: bool, return_last_state: bool) -> ScanOutputs:
    """One step at a time (Gu & Dao 2023, eq. 2): `h = exp(delta A) h + delta u B`, `y = C h`.

    Differentiable by autograd, which keeps every state: for tests, not for training.
    """
    dtype = compute_dtype(inputs.u.dtype)
    delta, u = effective_delta(inputs, dtype), inputs.u.to(dtype)
    A, B, C = inputs.A.to(dtype), inputs.B.to(dtype), inputs.C.to(dtype)
    state = start_state(inputs, dtype)
    outputs = []
    for step in range(u.shape[1]):
        decay = torch.exp(delta[:, step, :, None] * A)
        state = decay * state + (delta[:, step] * u[:, step])[..., None] * B[:, step, None, :]
        outputs.append((state * C[:, step, None, :]).sum(-1))
    out = skip_and_gate(torch.stack(outputs, dim=1), inputs)
    return ScanOutputs(out, state if return_last_state else out.new_empty(0), out.new_empty(0))


BACKEND = ScanBackend(forward=scan_sequential)
