"""Residual addition and RMSNorm in one pass over memory, forward and backward.

One task is a run of rows. A row is staged in scratch as float32, padded with zeros to whole vectors.
"""

# mypy: ignore-errors
# (numba's decorators change the signatures: an intrinsic is defined with one more argument than it is called with.)

from __future__ import annotations

import numpy as np
from numba import cfunc, njit, types

from statevla.model.kernels.memory import (
    as_address,
    copy_bits16,
    load,
    load_bf16,
    load_int,
    load_scalar,
    store,
    store_bf16,
    store_scalar,
)
from statevla.model.kernels.simd import LANES, fma, reciprocal_sqrt, splat, sum_lanes, zero
from statevla.model.kernels.staging import (
    ADDRESS,
    CACHE,
    DTYPE,
    FLOAT32,
    FLOAT_BYTES,
    HEADER,
    OPTIONS,
    VECTOR_BYTES,
    claim_scratch,
    claim_task,
    clear,
    read_scalar,
)

# A contiguous [rows, dim] tensor takes two slots: address and dtype.
ROWS, DIM, ROWS_PER_TASK, EPS_BITS = range(HEADER, HEADER + 4)
WEIGHT, GRAD_WEIGHT = HEADER + 4, HEADER + 5
RESIDUAL, UPDATE, OUT, NORMED, GRAD_IN, GRAD_UPDATE = range(HEADER + 6, HEADER + 6 + 12, 2)
# In backward, RESIDUAL is the sum that was normalised, OUT and NORMED are the gradients of the two outputs,
# and GRAD_IN and GRAD_UPDATE the gradients of the two inputs (they differ in dtype only).


def scratch_bytes(dim: int, backward: bool) -> int:
    """Scratch that one thread needs, in padded rows: row, weight, spare; in backward also the gradient and a sum."""
    vectors = -(-dim // LANES)
    return ((4 if backward else 2) * vectors + 1) * VECTOR_BYTES


@njit(**OPTIONS)
def _load_row(target, p, tensor, row, dim):
    address, dtype, start = load_int(p, tensor + ADDRESS), load_int(p, tensor + DTYPE), row * dim
    whole = dim // LANES * LANES
    if dtype == FLOAT32:
        for i in range(0, whole, LANES):
            store(target, i, load(address, start + i))
    else:
        for i in range(0, whole, LANES):
            store(target, i, load_bf16(address, start + i))
    if whole < dim:
        store(target, whole, zero())
        for i in range(whole, dim):
            store_scalar(target, i, read_scalar(address, dtype, start + i))


@njit(**OPTIONS)
def _store_row(p, tensor, row, dim, source, spare):
    address, dtype, start = load_int(p, tensor + ADDRESS), load_int(p, tensor + DTYPE), row * dim
    whole = dim // LANES * LANES
    if dtype == FLOAT32:
        for i in range(0, whole, LANES):
            store(address, start + i, load(source, i))
        for i in range(whole, dim):
            store_scalar(address, start + i, load_scalar(source, i))
    else:
        for i in range(0, whole, LANES):
            store_bf16(address, start + i, load(source, i))
        if whole < dim:
            store_bf16(spare, 0, load(source, whole))
            for i in range(whole, dim):
                copy_bits16(address, start + i, spare, i - whole)


@njit(**OPTIONS)
def _load_weight(target, p, dim):
    store(target, dim // LANES * LANES if dim % LANES else 0, zero())
    for i in range(dim):
        store_scalar(target, i, load_scalar(load_int(p, WEIGHT), i))


@njit(**OPTIONS)
def _mean_square(row, dim):
    even, odd = zero(), zero()
    vectors = (dim + LANES - 1) // LANES
    for i in range(0, vectors - 1, 2):
        a, b = load(row, i * LANES), load(row, (i + 1) * LANES)
        even, odd = fma(a, a, even), fma(b, b, odd)
    if vectors % 2 == 1:
        a = load(row, (vectors - 1) * LANES)
        even = fma(a, a, even)
    return sum_lanes(even + odd) / np.float32(dim)


@njit(**OPTIONS)
def _forward_task(p, task, scratch):
    rows, dim, count = load_int(p, ROWS), load_int(p, DIM), load_int(p, ROWS_PER_TASK)
    padded = (dim + LANES - 1) // LANES * LANES
    row, weight = scratch, scratch + padded * FLOAT_BYTES
    spare = weight + padded * FLOAT_BYTES
    eps = load_scalar(p, 2 * EPS_BITS)
    _load_weight(weight, p, dim)
    for r in range(task * count, min(rows, (task + 1) * count)):
        if load_int(p, UPDATE) != 0:
            _load_row(row, p, UPDATE, r, dim)
            address = load_int(p, RESIDUAL)
            whole = dim // LANES * LANES
            for i in range(0, whole, LANES):
                store(row, i, load(row, i) + load(address, r * dim + i))
            for i in range(whole, dim):
                store_scalar(row, i, load_scalar(row, i) + load_scalar(address, r * dim + i))
            _store_row(p, OUT, r, dim, row, spare)
        else:
            _load_row(row, p, RESIDUAL, r, dim)
        scale = splat(reciprocal_sqrt(_mean_square(row, dim) + eps))
        for i in range(0, padded, LANES):
            store(row, i, load(row, i) * scale * load(weight, i))
        _store_row(p, NORMED, r, dim, row, spare)


@njit(**OPTIONS)
def _backward_row(p, r, dim, padded, row, grad, weight, sums, eps):
    """`grad` becomes the gradient of the normalised sum: k w g - x k^3 mean(x w g), k = 1 / rms."""
    _load_row(row, p, RESIDUAL, r, dim)
    _load_row(grad, p, NORMED, r, dim)
    along = zero()
    scale = reciprocal_sqrt(_mean_square(row, dim) + eps)
    k = splat(scale)
    for i in range(0, padded, LANES):
        x, g = load(row, i), load(grad, i)
        store(sums, i, fma(x * k, g, load(sums, i)))
        weighted = g * load(weight, i)
        store(grad, i, weighted)
        along = fma(x, weighted, along)
    back = splat(-scale * scale * scale * sum_lanes(along) / np.float32(dim))
    for i in range(0, padded, LANES):
        store(grad, i, fma(load(row, i), back, k * load(grad, i)))


@njit(**OPTIONS)
def _backward_task(p, task, scratch):
    rows, dim, count = load_int(p, ROWS), load_int(p, DIM), load_int(p, ROWS_PER_TASK)
    padded = (dim + LANES - 1) // LANES * LANES
    row, weight = scratch, scratch + padded * FLOAT_BYTES
    grad, sums = weight + padded * FLOAT_BYTES, weight + 2 * padded * FLOAT_BYTES
    spare = sums + padded * FLOAT_BYTES
    eps = load_scalar(p, 2 * EPS_BITS)
    _load_weight(weight, p, dim)
    clear(sums, padded // LANES)
    for r in range(task * count, min(rows, (task + 1) * count)):
        _backward_row(p, r, dim, padded, row, grad, weight, sums, eps)
        if load_int(p, OUT) != 0:
            _load_row(row, p, OUT, r, dim)
            for i in range(0, padded, LANES):
                store(grad, i, load(grad, i) + load(row, i))
        _store_row(p, GRAD_IN, r, dim, grad, spare)
        if load_int(p, GRAD_UPDATE) != 0:
            _store_row(p, GRAD_UPDATE, r, dim, grad, spare)
    for i in range(dim):
        store_scalar(load_int(p, GRAD_WEIGHT), task * dim + i, load_scalar(sums, i))


@cfunc(types.void(types.voidptr), cache=CACHE)
def norm_forward(parameters):
    """Draw and run forward tasks until none is left."""
    p = as_address(parameters)
    scratch, task = claim_scratch(p), claim_task(p)
    while task >= 0:
        _forward_task(p, task, scratch)
        task = claim_task(p)


@cfunc(types.void(types.voidptr), cache=CACHE)
def norm_backward(parameters):
    """Draw and run backward tasks until none is left."""
    p = as_address(parameters)
    scratch, task = claim_scratch(p), claim_task(p)
    while task >= 0:
        _backward_task(p, task, scratch)
        task = claim_task(p)
