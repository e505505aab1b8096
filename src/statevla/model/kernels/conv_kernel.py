"""Causal depthwise convolution of up to four taps with bias and SiLU, forward and backward.

One task is one sequence and one group of channel vectors. Blocks of time outside, channels inside: a block's rows are
read while they are in the cache. Fewer taps than four are padded with zeros at the oldest end.
"""

# mypy: ignore-errors
# (numba's decorators change the signatures: an intrinsic is defined with one more argument than it is called with.)

from __future__ import annotations

import numpy as np
from numba import cfunc, njit, types

from statevla.model.kernels.exponential import sigmoid
from statevla.model.kernels.memory import as_address, load, load_int, load_scalar, store, store_scalar
from statevla.model.kernels.simd import LANES, fma, splat
from statevla.model.kernels.staging import (
    CACHE,
    HEADER,
    OPTIONS,
    TENSOR,
    VECTOR_BYTES,
    claim_scratch,
    claim_task,
    clear,
    close_target,
    load_lanes,
    load_rows,
    open_rows,
    open_target,
    read_row,
    store_tile,
    write_row,
)

BLOCK = 32
TAPS = 4
PAST = TAPS - 1
LENGTH, INNER, GROUPS, VECTORS_PER_GROUP, WIDTH = range(HEADER, HEADER + 5)
WEIGHT, BIAS, GRAD_WEIGHT, GRAD_BIAS = range(HEADER + 5, HEADER + 9)
X, OUT, GRAD_X = range(HEADER + 9, HEADER + 9 + 3 * TENSOR, TENSOR)
# In backward, OUT is the gradient of the output.


def scratch_bytes(vectors_per_group: int, backward: bool) -> int:
    """Scratch that one thread needs: parameters (and sums and carried gradients) per vector, and staged rows."""
    per_vector = (TAPS + 1) * (2 if backward else 1) + (PAST if backward else 0)
    rows = 2 * BLOCK + PAST if not backward else 3 * BLOCK + 2 * PAST
    return (vectors_per_group * per_vector + rows + 1) * VECTOR_BYTES


@njit(**OPTIONS)
def _load_taps(target, p, channel, lanes):
    """Four vectors of weights, the oldest first, then the bias."""
    width = load_int(p, WIDTH)
    clear(target, TAPS)
    for tap in range(width):
        for lane in range(lanes):
            value = load_scalar(load_int(p, WEIGHT), (channel + lane) * width + tap)
            store_scalar(target, (TAPS - width + tap) * LANES + lane, value)
    load_lanes(target + TAPS * VECTOR_BYTES, load_int(p, BIAS), channel, lanes)


@njit(**OPTIONS)
def _convolve(x, t, w0, w1, w2, w3, bias):
    """The convolution's value at step t; `x` begins three steps earlier."""
    recent = fma(w3, load(x, (t + 3) * LANES), fma(w2, load(x, (t + 2) * LANES), bias))
    return recent + fma(w1, load(x, (t + 1) * LANES), w0 * load(x, t * LANES))


@njit(**OPTIONS)
def conv_task(p, task, scratch):
    """Forward: one sequence and one group of channel vectors."""
    groups, per_group = load_int(p, GROUPS), load_int(p, VECTORS_PER_GROUP)
    length, inner = load_int(p, LENGTH), load_int(p, INNER)
    batch, first_vector = task // groups, (task % groups) * per_group
    last_vector = min((inner + LANES - 1) // LANES, first_vector + per_group)
    stride = (TAPS + 1) * VECTOR_BYTES
    x = scratch + per_group * stride
    out = x + (BLOCK + PAST) * VECTOR_BYTES
    for v in range(first_vector, last_vector):
        _load_taps(scratch + (v - first_vector) * stride, p, v * LANES, min(LANES, inner - v * LANES))
    for first_row in range(0, length, BLOCK):
        steps = min(BLOCK, length - first_row)
        for v in range(first_vector, last_vector):
            lanes, w = min(LANES, inner - v * LANES), scratch + (v - first_vector) * stride
            load_rows(x, p, X, batch, first_row - PAST, steps + PAST, v * LANES, lanes)
            target, dtype, index, row_stride = open_target(p, OUT, batch, first_row, v * LANES, lanes, out)
            w0, w1, w2, w3 = load(w, 0), load(w, LANES), load(w, 2 * LANES), load(w, 3 * LANES)
            bias = load(w, 4 * LANES)
            for t in range(steps):
                value = _convolve(x, t, w0, w1, w2, w3, bias)
                write_row(target, dtype, index + t * row_stride, value * sigmoid(value))
            close_target(p, OUT, batch, first_row, steps, v * LANES, lanes, out, x)


@njit(**OPTIONS)
def _backward_vector(p, batch, first_row, steps, channel, lanes, w, sums, carried, x, grad):
    """One vector over one block. `grad` has room for `BLOCK + 3` rows: three of the block after it, in `carried`."""
    load_rows(x, p, X, batch, first_row - PAST, steps + PAST, channel, lanes)
    g_at, g_dtype, g_index, g_stride = open_rows(p, OUT, batch, first_row, steps, channel, lanes, grad)
    w0, w1, w2, w3 = load(w, 0), load(w, LANES), load(w, 2 * LANES), load(w, 3 * LANES)
    bias, one = load(w, 4 * LANES), splat(np.float32(1.0))
    s0, s1, s2, s3 = load(sums, 0), load(sums, LANES), load(sums, 2 * LANES), load(sums, 3 * LANES)
    sum_bias = load(sums, 4 * LANES)
    for t in range(steps):
        value = _convolve(x, t, w0, w1, w2, w3, bias)
        s = sigmoid(value)
        g = read_row(g_at, g_dtype, g_index + t * g_stride) * (s * fma(value, one - s, one))
        store(grad, t * LANES, g)
        s0, s1 = fma(g, load(x, t * LANES), s0), fma(g, load(x, (t + 1) * LANES), s1)
        s2, s3 = fma(g, load(x, (t + 2) * LANES), s2), fma(g, load(x, (t + 3) * LANES), s3)
        sum_bias = sum_bias + g
    store(sums, 0, s0)
    store(sums, LANES, s1)
    store(sums, 2 * LANES, s2)
    store(sums, 3 * LANES, s3)
    store(sums, 4 * LANES, sum_bias)
    for i in range(PAST):
        store(grad, (steps + i) * LANES, load(carried, i * LANES))
        store(carried, i * LANES, load(grad, i * LANES))
    target, dtype, index, row_stride = open_target(p, GRAD_X, batch, first_row, channel, lanes, x)
    for t in range(steps):
        recent = fma(w3, load(grad, t * LANES), w2 * load(grad, (t + 1) * LANES))
        value = fma(w1, load(grad, (t + 2) * LANES), fma(w0, load(grad, (t + 3) * LANES), recent))
        write_row(target, dtype, index + t * row_stride, value)
    close_target(p, GRAD_X, batch, first_row, steps, channel, lanes, x, x + (BLOCK + PAST) * VECTOR_BYTES)


@njit(**OPTIONS)
def _backward_task(p, task, scratch):
    groups, per_group = load_int(p, GROUPS), load_int(p, VECTORS_PER_GROUP)
    length, inner, width = load_int(p, LENGTH), load_int(p, INNER), load_int(p, WIDTH)
    batch, first_vector = task // groups, (task % groups) * per_group
    last_vector = min((inner + LANES - 1) // LANES, first_vector + per_group)
    stride = (TAPS + 1) * VECTOR_BYTES
    sums = scratch + per_group * stride
    carried = sums + per_group * stride
    x = carried + per_group * PAST * VECTOR_BYTES
    grad = x + (BLOCK + PAST + 1) * VECTOR_BYTES
    clear(sums, per_group * (TAPS + 1 + PAST))
    for v in range(first_vector, last_vector):
        _load_taps(scratch + (v - first_vector) * stride, p, v * LANES, min(LANES, inner - v * LANES))
    for block in range((length + BLOCK - 1) // BLOCK - 1, -1, -1):
        first_row = block * BLOCK
        steps = min(BLOCK, length - first_row)
        for v in range(first_vector, last_vector):
            i, lanes = v - first_vector, min(LANES, inner - v * LANES)
            w, s, c = scratch + i * stride, sums + i * stride, carried + i * PAST * VECTOR_BYTES
            _backward_vector(p, batch, first_row, steps, v * LANES, lanes, w, s, c, x, grad)
    for v in range(first_vector, last_vector):
        lanes, s = min(LANES, inner - v * LANES), sums + (v - first_vector) * stride
        first = batch * inner + v * LANES
        store_tile(load_int(p, GRAD_WEIGHT), first, lanes, width, s + (TAPS - width) * VECTOR_BYTES)
        store_tile(load_int(p, GRAD_BIAS), first, lanes, 1, s + TAPS * VECTOR_BYTES)


@cfunc(types.void(types.voidptr), cache=CACHE)
def conv_backward(parameters):
    """Draw and run backward tasks until none is left."""
    p = as_address(parameters)
    scratch, task = claim_scratch(p), claim_task(p)
    while task >= 0:
        _backward_task(p, task, scratch)
        task = claim_task(p)
