"""Host side of the CPU scan kernels: shapes, strides and buffers for `kernels/scan_layout.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from statevla.model.kernels.call import (
    LANES,
    address,
    channel_groups,
    packed,
    program_kernel,
    readable,
    run_kernel,
    run_operation,
    scan_backward,
    scan_layout,
    tensor_slots,
)
from statevla.model.mamba.backends import Gradients, ScanBackend, ScanInputs, ScanOutputs
from statevla.model.mamba.scan_reference import scan_sequential
from statevla.model.mamba.selective_scan import recompute_gradients


def checkpoint_shape(batch: int, length: int, inner: int, states: int) -> tuple[int, ...]:
    """States before each block of steps, `[B, blocks, channel vectors, padded states, lanes]`, in one dimension.

    (With five, an export with a dynamic length would distinguish one block from several.)
    """
    blocks, vectors = -(-length // scan_layout.BLOCK), -(-inner // LANES)
    return (batch * blocks * vectors * scan_layout.padded_states(states) * LANES,)


class _Call:
    """Sizes and parameter slots that forward and backward share. Holds what the kernel points at."""

    def __init__(self, inputs: ScanInputs) -> None:
        self.batch, self.length, self.inner = inputs.u.shape
        self.states = inputs.A.shape[1]
        self.groups, self.vectors_per_group = channel_groups(self.batch, self.inner)
        self.softplus = int(inputs.delta_softplus)
        self.arrays = [packed(t) for t in (inputs.A, inputs.D, inputs.delta_bias, inputs.initial_state)]
        self.tensors = [readable(t) for t in (inputs.u, inputs.delta, inputs.z, inputs.B, inputs.C)]

    def run(self, arrays: list[Tensor | None], tensors: list[Tensor | None], backward: bool) -> None:
        parameters = [self.length, self.inner, self.states, self.groups, self.vectors_per_group, self.softplus]
        parameters.extend(address(array) for array in [*self.arrays, *arrays])
        for tensor in [*self.tensors, *tensors]:
            parameters.extend(tensor_slots(tensor))
        scratch = scan_layout.scratch_bytes(self.states, self.vectors_per_group, backward)
        if backward:
            run_kernel(scan_backward, parameters, self.batch * self.groups, scratch)
        else:
            run_operation(program_kernel.SCAN, parameters, self.batch * self.groups, scratch)


def forward(inputs: ScanInputs, keep_for_backward: bool, return_last_state: bool) -> ScanOutputs:
    """See `selective_scan`; `checkpoints` as in `checkpoint_shape`, if kept."""
    call, u = _Call(inputs), inputs.u
    out = torch.empty(u.shape, dtype=u.dtype)
    last = torch.empty((call.batch, *inputs.A.shape) if return_last_state else (0,))
    shape = checkpoint_shape(call.batch, call.length, call.inner, call.states)
    checkpoints = torch.empty(shape if keep_for_backward else (0,))
    kept = checkpoints if keep_for_backward else None
    call.run([last if return_last_state else None, kept, *[None] * 7], [out, None, None, None], backward=False)
    return ScanOutputs(out, last, checkpoints)


def backward(grad_out: Tensor, grad_last_state: Tensor | None, inputs: ScanInputs, checkpoints: Tensor) -> Gradients:
    """Gradients of all tensors of `inputs`, each in the dtype of its input."""
    call, u, A = _Call(inputs), inputs.u, inputs.A
    grad_u, grad_delta = torch.empty(u.shape, dtype=u.dtype), torch.empty(u.shape, dtype=inputs.delta.dtype)
    grad_z = None if inputs.z is None else torch.empty(u.shape, dtype=inputs.z.dtype)
    per_sequence = torch.empty((call.batch, *A.shape))
    partial = torch.empty((2, call.batch, call.groups, call.length, call.states))
    channel = torch.empty((2, call.batch, call.inner))
    has_initial = inputs.initial_state is not None
    grad_initial = torch.empty((call.batch, *A.shape)) if has_initial else None
    grad_last = packed(grad_last_state)
    call.run(
        [None, checkpoints, grad_last, per_sequence, partial[0], partial[1], channel[0], channel[1], grad_initial],
        [readable(grad_out), grad_u, grad_delta, grad_z],
        backward=True,
    )
    # Sums, not views: the outputs of an operator must not share storage.
    grad_b, grad_c = partial[0].sum(1), partial[1].sum(1)
    grad_d, grad_bias = channel[0].sum(0), channel[1].sum(0)
    gradients = (grad_u, grad_delta, per_sequence.sum(0), grad_b, grad_c, grad_d, grad_z, grad_bias, grad_initial)
    return tuple(
        None if tensor is None or gradient is None else gradient.to(tensor.dtype)
        for tensor, gradient in zip(inputs[:9], gradients)
    )


def _self_check() -> None:
    """Compare with the definition once: a compiler for a processor that nobody tested on may err.

    Raises:
        RuntimeError: if the kernel computes something else; `backends` then falls back.
    """
    if type(torch.empty(0)) is not Tensor:  # PyTorch is tracing: its tensors have no values now
        return
    # The first block may be built where another default device rules (`torch.device("meta")` to count parameters).
    with torch.device("cpu"), torch.inference_mode(False):
        _compare_with_reference()


def _compare_with_reference() -> None:
    numbers = torch.linspace(-1, 1, 3 * 5 * (LANES + 3)).view(1, 3 * 5, LANES + 3)
    u, B = numbers, numbers[:, :, :3]
    A = -torch.linspace(1, 3, 3 * (LANES + 3)).view(LANES + 3, 3)
    inputs = ScanInputs(u, numbers.flip(1), A, B, B.flip(1), u[0, 0], u.flip(2), u[0, 1], None, True)
    found, ones = forward(inputs, True, False), torch.ones_like(u)
    ours = (found.out, *backward(ones, None, inputs, found.checkpoints))
    wanted = (scan_sequential(inputs, False, False).out, *recompute_gradients(ones, None, inputs, "reference"))
    pairs = [(a, b) for a, b in zip(ours, wanted) if a is not None and b is not None]
    if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs):
        raise RuntimeError("the compiled kernel does not compute what the reference does")


_self_check()
BACKEND = ScanBackend(
    forward=forward,
    backward=backward,
    devices=("cpu",),
    dtypes=(torch.float32, torch.bfloat16),
    checkpoint_shape=checkpoint_shape,
)
