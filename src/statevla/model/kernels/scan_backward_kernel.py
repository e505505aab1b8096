"""The selective scan as a SIMD kernel, backward from checkpoints.

From the last block of steps to the first, the states of a block are recomputed from its checkpoint and walked back
through, so memory grows by `L / BLOCK` states instead of `L`. Vectors and tasks are as in the forward kernel.
"""

# mypy: ignore-errors
# (numba's decorators change the signatures: an intrinsic is defined with one more argument than it is called with.)

from __future__ import annotations

import numpy as np
from numba import cfunc, njit, types

from statevla.model.kernels.exponential import LOG2_E, sigmoid
from statevla.model.kernels.memory import as_address, broadcast, load, load_int, store, store_scalar
from statevla.model.kernels.scan_layout import (
    BIAS,
    BLOCK,
    CHECKPOINTS,
    GRAD_A,
    GRAD_B,
    GRAD_BIAS,
    GRAD_C,
    GRAD_D,
    GRAD_DELTA,
    GRAD_INITIAL,
    GRAD_LAST,
    GRAD_U,
    GRAD_Z,
    GROUPS,
    INNER,
    LENGTH,
    LN_2,
    OUT,
    ROWS,
    STATES,
    UNROLL,
    VECTORS_PER_GROUP,
    A,
    B,
    C,
    D,
    Z,
    bounded_power,
    is_bounded,
    power,
    prepare_steps,
    store_fastest,
)
from statevla.model.kernels.simd import LANES, fma, splat, sum_lanes
from statevla.model.kernels.staging import (
    CACHE,
    FLOAT_BYTES,
    OPTIONS,
    VECTOR_BYTES,
    claim_scratch,
    claim_task,
    clear,
    close_target,
    load_lanes,
    load_tile,
    load_wide_rows,
    open_rows,
    open_target,
    read_row,
    store_tile,
    write_row,
)


@njit(**OPTIONS)
def _advance_keeping(power_of, steps, delta, delta_u, y, b, c, width, decay, decays, states):
    """As `_advance`, starting from `states[0]` and keeping `2^(delta decay)` and the state of every step."""
    a0, a1, a2, a3 = load(decay, 0), load(decay, LANES), load(decay, 2 * LANES), load(decay, 3 * LANES)
    h0, h1, h2, h3 = load(states, 0), load(states, LANES), load(states, 2 * LANES), load(states, 3 * LANES)
    for t in range(steps):
        d, x, row = load(delta, t * LANES), load(delta_u, t * LANES), t * width
        here = t * UNROLL * LANES
        e0, e1, e2, e3 = power_of(d, a0), power_of(d, a1), power_of(d, a2), power_of(d, a3)
        store(decays, here, e0)
        store(decays, here + LANES, e1)
        store(decays, here + 2 * LANES, e2)
        store(decays, here + 3 * LANES, e3)
        h0 = fma(e0, h0, x * broadcast(b, row))
        h1 = fma(e1, h1, x * broadcast(b, row + 1))
        h2 = fma(e2, h2, x * broadcast(b, row + 2))
        h3 = fma(e3, h3, x * broadcast(b, row + 3))
        after = here + UNROLL * LANES
        store(states, after, h0)
        store(states, after + LANES, h1)
        store(states, after + 2 * LANES, h2)
        store(states, after + 3 * LANES, h3)
        even = fma(h0, broadcast(c, row), fma(h2, broadcast(c, row + 2), load(y, t * LANES)))
        store(y, t * LANES, fma(h1, broadcast(c, row + 1), fma(h3, broadcast(c, row + 3), even)))


@njit(**OPTIONS)
def _retreat_one(grad_h, into_u, dy, x, decay_t, state_before, state_after, b, c, index, grad_b, grad_c, slot):
    """One state, one step back. Returns the gradient of the state before, the sum for u, and the decay's share."""
    grad_h = fma(dy, broadcast(c, index), grad_h)
    store(grad_c, slot, fma(dy, state_after, load(grad_c, slot)))
    store(grad_b, slot, fma(grad_h, x, load(grad_b, slot)))
    into_u = fma(grad_h, broadcast(b, index), into_u)
    grad_h = grad_h * decay_t
    return grad_h, into_u, grad_h * state_before


@njit(**OPTIONS)
def _retreat_four(
    steps, delta, delta_u, grad_y, b, c, width, decay, decays, states, grad_state, grad_a, grad_b, grad_c, to_u, to_dt
):
    """Four states back through a block, from the gradients of `y` and of the state after the block.

    Accumulates per lane: `grad_a` (for A), `grad_b`, `grad_c` `[steps, 4]`, `to_u` (sum of grad_h B: the gradient of
    `delta_u`) and `to_dt` (sum of grad_h h' decay, the gradient of delta through the exponential, over ln 2).
    """
    a0, a1, a2, a3 = load(decay, 0), load(decay, LANES), load(decay, 2 * LANES), load(decay, 3 * LANES)
    g0, g1 = load(grad_state, 0), load(grad_state, LANES)
    g2, g3 = load(grad_state, 2 * LANES), load(grad_state, 3 * LANES)
    s0, s1, s2, s3 = load(grad_a, 0), load(grad_a, LANES), load(grad_a, 2 * LANES), load(grad_a, 3 * LANES)
    end = steps * UNROLL * LANES
    h0, h1 = load(states, end), load(states, end + LANES)
    h2, h3 = load(states, end + 2 * LANES), load(states, end + 3 * LANES)
    for t in range(steps - 1, -1, -1):
        d, x, dy = load(delta, t * LANES), load(delta_u, t * LANES), load(grad_y, t * LANES)
        row, k = t * width, t * UNROLL * LANES
        p0, p1 = load(states, k), load(states, k + LANES)
        p2, p3 = load(states, k + 2 * LANES), load(states, k + 3 * LANES)
        into_u, k1, k2, k3 = load(to_u, t * LANES), k + LANES, k + 2 * LANES, k + 3 * LANES
        e0, e1, e2, e3 = load(decays, k), load(decays, k1), load(decays, k2), load(decays, k3)
        g0, into_u, q0 = _retreat_one(g0, into_u, dy, x, e0, p0, h0, b, c, row, grad_b, grad_c, k)
        g1, into_u, q1 = _retreat_one(g1, into_u, dy, x, e1, p1, h1, b, c, row + 1, grad_b, grad_c, k1)
        g2, into_u, q2 = _retreat_one(g2, into_u, dy, x, e2, p2, h2, b, c, row + 2, grad_b, grad_c, k2)
        g3, into_u, q3 = _retreat_one(g3, into_u, dy, x, e3, p3, h3, b, c, row + 3, grad_b, grad_c, k3)
        h0, h1, h2, h3 = p0, p1, p2, p3
        store(to_u, t * LANES, into_u)
        through = fma(q0, a0, fma(q1, a1, fma(q2, a2, fma(q3, a3, load(to_dt, t * LANES)))))
        store(to_dt, t * LANES, through)
        s0, s1, s2, s3 = fma(q0, d, s0), fma(q1, d, s1), fma(q2, d, s2), fma(q3, d, s3)
    store(grad_state, 0, g0)
    store(grad_state, LANES, g1)
    store(grad_state, 2 * LANES, g2)
    store(grad_state, 3 * LANES, g3)
    store(grad_a, 0, s0)
    store(grad_a, LANES, s1)
    store(grad_a, 2 * LANES, s2)
    store(grad_a, 3 * LANES, s3)


@njit(**OPTIONS)
def _retreat_two(
    steps, delta, delta_u, grad_y, b, c, width, decay, decays, states, grad_state, grad_a, grad_b, grad_c, to_u, to_dt
):
    """Two of the four states of a row, as `_retreat_four`."""
    a0, a1 = load(decay, 0), load(decay, LANES)
    g0, g1 = load(grad_state, 0), load(grad_state, LANES)
    s0, s1 = load(grad_a, 0), load(grad_a, LANES)
    end = steps * UNROLL * LANES
    h0, h1 = load(states, end), load(states, end + LANES)
    for t in range(steps - 1, -1, -1):
        d, x, dy = load(delta, t * LANES), load(delta_u, t * LANES), load(grad_y, t * LANES)
        row, k = t * width, t * UNROLL * LANES
        p0, p1, into_u = load(states, k), load(states, k + LANES), load(to_u, t * LANES)
        e0, e1 = load(decays, k), load(decays, k + LANES)
        g0, into_u, q0 = _retreat_one(g0, into_u, dy, x, e0, p0, h0, b, c, row, grad_b, grad_c, k)
        g1, into_u, q1 = _retreat_one(g1, into_u, dy, x, e1, p1, h1, b, c, row + 1, grad_b, grad_c, k + LANES)
        h0, h1 = p0, p1
        store(to_u, t * LANES, into_u)
        store(to_dt, t * LANES, fma(q0, a0, fma(q1, a1, load(to_dt, t * LANES))))
        s0, s1 = fma(q0, d, s0), fma(q1, d, s1)
    store(grad_state, 0, g0)
    store(grad_state, LANES, g1)
    store(grad_a, 0, s0)
    store(grad_a, LANES, s1)


@njit(**OPTIONS)
def _retreat(
    steps, delta, delta_u, grad_y, b, c, width, decay, decays, states, grad_state, grad_a, grad_b, grad_c, to_u, to_dt
):
    """Four states at once with AVX-512; two by two where 16 registers would spill."""
    if LANES == 16:
        _retreat_four(
            steps, delta, delta_u, grad_y, b, c, width, decay, decays, states, grad_state, grad_a, grad_b, grad_c,
            to_u, to_dt,
        )  # fmt: skip
    else:
        for first in range(0, UNROLL, 2):
            at, vectors = first * FLOAT_BYTES, first * VECTOR_BYTES
            _retreat_two(
                steps, delta, delta_u, grad_y, b + at, c + at, width, decay + vectors, decays + vectors,
                states + vectors, grad_state + vectors, grad_a + vectors, grad_b + vectors, grad_c + vectors,
                to_u, to_dt,
            )  # fmt: skip


@njit(**OPTIONS)
def _gate_gradient(p, batch, first_row, steps, channel, lanes, grad_y, to_z):
    """Read the output's gradient; with a gate, split it into that of `y` and a factor of `y` for that of `z`."""
    g_at, g_dtype, g_index, g_stride = open_rows(p, OUT, batch, first_row, steps, channel, lanes, grad_y)
    if load_int(p, Z) != 0:
        z_at, z_dtype, z_index, z_stride = open_rows(p, Z, batch, first_row, steps, channel, lanes, to_z)
        one = splat(np.float32(1.0))
        for t in range(steps):
            z, grad = read_row(z_at, z_dtype, z_index + t * z_stride), read_row(g_at, g_dtype, g_index + t * g_stride)
            s = sigmoid(z)
            store(grad_y, t * LANES, grad * (z * s))
            store(to_z, t * LANES, grad * (s * fma(z, one - s, one)))
    else:
        for t in range(steps):
            store(grad_y, t * LANES, read_row(g_at, g_dtype, g_index + t * g_stride))


@njit(**OPTIONS)
def _finish_steps(p, batch, first_row, steps, channel, lanes, bias, skip, rows, grad_skip, grad_bias):
    """Turn the sums of a block into gradients of u, delta and z, and accumulate those of D and the bias."""
    slope, delta, u, y = rows, rows + ROWS, rows + 3 * ROWS, rows + 4 * ROWS
    grad_y, to_z, to_u, to_delta = rows + 5 * ROWS, rows + 6 * ROWS, rows + 7 * ROWS, rows + 8 * ROWS
    skip_vector, sum_skip, sum_bias = load(skip, 0), load(grad_skip, 0), load(grad_bias, 0)
    ln_2 = splat(LN_2)
    u_at, u_dtype, u_index, u_stride = open_target(p, GRAD_U, batch, first_row, channel, lanes, to_u)
    d_at, d_dtype, d_index, d_stride = open_target(p, GRAD_DELTA, batch, first_row, channel, lanes, to_delta)
    for t in range(steps):
        x, dy, into_u = load(u, t * LANES), load(grad_y, t * LANES), load(to_u, t * LANES)
        grad_delta = fma(x, into_u, ln_2 * load(to_delta, t * LANES)) * load(slope, t * LANES)
        sum_bias = sum_bias + grad_delta
        sum_skip = fma(dy, x, sum_skip)
        write_row(d_at, d_dtype, d_index + t * d_stride, grad_delta)
        write_row(u_at, u_dtype, u_index + t * u_stride, fma(load(delta, t * LANES), into_u, dy * skip_vector))
    store(grad_skip, 0, sum_skip)
    store(grad_bias, 0, sum_bias)
    close_target(p, GRAD_U, batch, first_row, steps, channel, lanes, to_u, slope)
    close_target(p, GRAD_DELTA, batch, first_row, steps, channel, lanes, to_delta, slope)
    if load_int(p, Z) != 0:
        z_at, z_dtype, z_index, z_stride = open_target(p, GRAD_Z, batch, first_row, channel, lanes, to_z)
        for t in range(steps):
            write_row(z_at, z_dtype, z_index + t * z_stride, load(to_z, t * LANES) * load(y, t * LANES))
        close_target(p, GRAD_Z, batch, first_row, steps, channel, lanes, to_z, slope)


@njit(**OPTIONS)
def _backward_vector(p, batch, block, first_row, steps, v, lanes, width, b, c, rows, decay, grad_state, grad_a, sums):
    """One vector of channels back over one block.

    `sums`: bias, D, fastest decay, the gradients of bias and D, then scratch and grad B, grad C.
    """
    channel = v * LANES
    bias, skip, fastest, grad_bias, grad_skip, decays = sums
    states = decays + BLOCK * UNROLL * VECTOR_BYTES
    grad_b = states + (BLOCK + 1) * UNROLL * VECTOR_BYTES
    grad_c = grad_b + BLOCK * width * VECTOR_BYTES
    slope, delta, delta_u, u, y = rows, rows + ROWS, rows + 2 * ROWS, rows + 3 * ROWS, rows + 4 * ROWS
    grad_y, to_z, to_u, to_delta = rows + 5 * ROWS, rows + 6 * ROWS, rows + 7 * ROWS, rows + 8 * ROWS
    longest = prepare_steps(p, batch, first_row, steps, channel, lanes, bias, skip, slope, slope, delta, delta_u, u, y)
    _gate_gradient(p, batch, first_row, steps, channel, lanes, grad_y, to_z)
    clear(to_u, 2 * BLOCK)
    num_blocks = (load_int(p, LENGTH) + BLOCK - 1) // BLOCK
    num_vectors = (load_int(p, INNER) + LANES - 1) // LANES
    checkpoint = load_int(p, CHECKPOINTS) + ((batch * num_blocks + block) * num_vectors + v) * width * VECTOR_BYTES
    bounded = is_bounded(longest, fastest)
    for n in range(0, width, UNROLL):
        vectors_n, rows_n = n * VECTOR_BYTES, n * BLOCK * VECTOR_BYTES
        b_n, c_n, decay_n = b + n * FLOAT_BYTES, c + n * FLOAT_BYTES, decay + vectors_n
        for i in range(UNROLL):
            store(states, i * LANES, load(checkpoint, (n + i) * LANES))
        if bounded:
            _advance_keeping(bounded_power, steps, delta, delta_u, y, b_n, c_n, width, decay_n, decays, states)
        else:
            _advance_keeping(power, steps, delta, delta_u, y, b_n, c_n, width, decay_n, decays, states)
        _retreat(
            steps, delta, delta_u, grad_y, b_n, c_n, width, decay_n, decays, states,
            grad_state + vectors_n, grad_a + vectors_n, grad_b + rows_n, grad_c + rows_n, to_u, to_delta,
        )  # fmt: skip
    _finish_steps(p, batch, first_row, steps, channel, lanes, bias, skip, rows, grad_skip, grad_bias)


@njit(**OPTIONS)
def _reduce_selection(target, source, task, length, states, first_row, steps):
    """Sum the per-lane gradients of B or C over lanes, into this task's own `[length, states]`."""
    base = task * length + first_row
    for n in range(states):
        group = (n // UNROLL * BLOCK * UNROLL + n % UNROLL) * LANES
        for t in range(steps):
            value = sum_lanes(load(source, group + t * UNROLL * LANES))
            store_scalar(target, (base + t) * states + n, value)


@njit(**OPTIONS)
def _backward_task(p, task, scratch):
    groups, per_group = load_int(p, GROUPS), load_int(p, VECTORS_PER_GROUP)
    length, inner, states = load_int(p, LENGTH), load_int(p, INNER), load_int(p, STATES)
    batch, first_vector = task // groups, (task % groups) * per_group
    last_vector = min((inner + LANES - 1) // LANES, first_vector + per_group)
    width = (states + UNROLL - 1) // UNROLL * UNROLL
    tile = width * VECTOR_BYTES
    decay, grad_state, grad_a = scratch, scratch + per_group * tile, scratch + 2 * per_group * tile
    bias = grad_a + per_group * tile
    skip, grad_bias = bias + per_group * VECTOR_BYTES, bias + 2 * per_group * VECTOR_BYTES
    grad_skip, fastest = bias + 3 * per_group * VECTOR_BYTES, bias + 4 * per_group * VECTOR_BYTES
    b = fastest + per_group * VECTOR_BYTES
    c = b + BLOCK * width * FLOAT_BYTES
    rows = c + BLOCK * width * FLOAT_BYTES
    decays = rows + 9 * ROWS
    grad_b = decays + (2 * BLOCK + 1) * UNROLL * VECTOR_BYTES
    grad_c = grad_b + BLOCK * width * VECTOR_BYTES

    clear(grad_a, per_group * width)
    clear(grad_bias, 2 * per_group)
    for v in range(first_vector, last_vector):
        i, channel = v - first_vector, v * LANES
        lanes = min(LANES, inner - channel)
        load_tile(decay + i * tile, load_int(p, A), channel, lanes, states, width, np.float32(LOG2_E))
        store_fastest(fastest + i * VECTOR_BYTES, decay + i * tile, width)
        first = batch * inner + channel
        load_tile(grad_state + i * tile, load_int(p, GRAD_LAST), first, lanes, states, width, np.float32(1.0))
        load_lanes(bias + i * VECTOR_BYTES, load_int(p, BIAS), channel, lanes)
        load_lanes(skip + i * VECTOR_BYTES, load_int(p, D), channel, lanes)
    for block in range((length + BLOCK - 1) // BLOCK - 1, -1, -1):
        first_row = block * BLOCK
        steps = min(BLOCK, length - first_row)
        load_wide_rows(b, width, p, B, batch, first_row, steps, states)
        load_wide_rows(c, width, p, C, batch, first_row, steps, states)
        clear(grad_b, 2 * BLOCK * width)
        for v in range(first_vector, last_vector):
            i = v - first_vector
            at = i * VECTOR_BYTES
            _backward_vector(
                p, batch, block, first_row, steps, v, min(LANES, inner - v * LANES), width, b, c, rows,
                decay + i * tile, grad_state + i * tile, grad_a + i * tile,
                (bias + at, skip + at, fastest + at, grad_bias + at, grad_skip + at, decays),
            )  # fmt: skip
        _reduce_selection(load_int(p, GRAD_B), grad_b, task, length, states, first_row, steps)
        _reduce_selection(load_int(p, GRAD_C), grad_c, task, length, states, first_row, steps)
    _store_parameter_gradients(p, batch, first_vector, last_vector, grad_a, grad_state, grad_bias, grad_skip, tile)


@njit(**OPTIONS)
def _store_parameter_gradients(p, batch, first_vector, last_vector, grad_a, grad_state, grad_bias, grad_skip, tile):
    """This sequence's share of the gradients of A, D, bias, and the gradient of its initial state."""
    inner, states = load_int(p, INNER), load_int(p, STATES)
    for v in range(first_vector, last_vector):
        i, channel = v - first_vector, v * LANES
        lanes = min(LANES, inner - channel)
        first = batch * inner + channel
        store_tile(load_int(p, GRAD_A), first, lanes, states, grad_a + i * tile)
        store_tile(load_int(p, GRAD_BIAS), first, lanes, 1, grad_bias + i * VECTOR_BYTES)
        store_tile(load_int(p, GRAD_D), first, lanes, 1, grad_skip + i * VECTOR_BYTES)
        if load_int(p, GRAD_INITIAL) != 0:
            store_tile(load_int(p, GRAD_INITIAL), first, lanes, states, grad_state + i * tile)


@cfunc(types.void(types.voidptr), cache=CACHE)
def scan_backward(parameters):
    """Draw and run backward tasks until none is left."""
    p = as_address(parameters)
    scratch, task = claim_scratch(p), claim_task(p)
    while task >= 0:
        _backward_task(p, task, scratch)
        task = claim_task(p)
