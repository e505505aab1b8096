"""The selective scan in plain PyTorch operators at a bearable speed: the fallback without numba or CUDA kernels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from statevla.model.mamba.backends import ScanBackend, ScanInputs, ScanOutputs
from statevla.model.mamba.scan_reference import compute_dtype, effective_delta, skip_and_gate, start_state


def scan_chunked(inputs: ScanInputs, keep_for_backward: bool, return_last_state: bool) -> ScanOutputs:
    """Two-level scan: about sqrt(L) steps inside all chunks at once, then one step per chunk for what they hand on.

    The state is linear in what enters a chunk, so each chunk first runs from zero; afterwards the state `carried` into
    it adds `C_t exp(A sum(delta)) carried` to its outputs. No quotient of exponentials, hence no overflow.
    """
    dtype = compute_dtype(inputs.u.dtype)
    batch, length, inner = inputs.u.shape
    steps = max(1, math.isqrt(length))
    chunks = -(-length // steps)

    def split(tensor: Tensor) -> Tensor:
        # Padding with delta = 0 leaves the state as it is (decay 1, input 0), so the last state stays right.
        padded = F.pad(tensor.to(dtype), (0, 0, 0, chunks * steps - length))
        return padded.view(batch, chunks, steps, -1)

    delta = split(effective_delta(inputs, dtype))
    delta_u = delta * split(inputs.u)
    A, B, C = inputs.A.to(dtype), split(inputs.B), split(inputs.C)
    elapsed = delta.cumsum(2)

    state = delta.new_zeros(batch, chunks, *A.shape)
    local = []
    for step in range(steps):
        decay = torch.exp(delta[:, :, step, :, None] * A)
        state = decay * state + delta_u[:, :, step, :, None] * B[:, :, step, None, :]
        local.append((state * C[:, :, step, None, :]).sum(-1))

    whole_chunk = torch.exp(elapsed[:, :, -1, :, None] * A)
    carried, entering = start_state(inputs, dtype), []
    for chunk in range(chunks):
        entering.append(carried)
        carried = whole_chunk[:, chunk] * carried + state[:, chunk]
    before = torch.stack(entering, dim=1)
    for step in range(steps):
        decay = torch.exp(elapsed[:, :, step, :, None] * A)
        local[step] = local[step] + (decay * before * C[:, :, step, None, :]).sum(-1)

    y = torch.stack(local, dim=2).reshape(batch, chunks * steps, inner)[:, :length]
    out = skip_and_gate(y, inputs)
    return ScanOutputs(out, carried if return_last_state else out.new_empty(0), out.new_empty(0))


BACKEND = ScanBackend(forward=scan_chunked)
