"""The selective scan as a SIMD kernel, forward.

Channels lie in the lanes of a vector, so no sum crosses lanes; time runs sequentially; states are handled four at a
time, held in registers over a block of `BLOCK` steps. For backward the state before every block is stored. One task is
one sequence and one group of channel vectors.
"""

# mypy: ignore-errors
# (numba's decorators change the signatures: an intrinsic is defined with one more argument than it is called with.)

from __future__ import annotations

import numpy as np
from numba import njit

from statevla.model.kernels.exponential import LOG2_E, sigmoid
from statevla.model.kernels.memory import broadcast, load, load_int, store
from statevla.model.kernels.scan_layout import (
    BIAS,
    BLOCK,
    CHECKPOINTS,
    GROUPS,
    INITIAL,
    INNER,
    LAST,
    LENGTH,
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
from statevla.model.kernels.simd import LANES, fma
from statevla.model.kernels.staging import (
    FLOAT_BYTES,
    OPTIONS,
    VECTOR_BYTES,
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
def _advance(power_of, steps, delta, delta_u, y, b, c, width, decay, state):
    """Four states over a block: `h = 2^(delta decay) h + delta_u B`, `y += C h`; `b`, `c` point at these states."""
    a0, a1, a2, a3 = load(decay, 0), load(decay, LANES), load(decay, 2 * LANES), load(decay, 3 * LANES)
    h0, h1, h2, h3 = load(state, 0), load(state, LANES), load(state, 2 * LANES), load(state, 3 * LANES)
    for t in range(steps):
        d, x, row = load(delta, t * LANES), load(delta_u, t * LANES), t * width
        h0 = fma(power_of(d, a0), h0, x * broadcast(b, row))
        h1 = fma(power_of(d, a1), h1, x * broadcast(b, row + 1))
        h2 = fma(power_of(d, a2), h2, x * broadcast(b, row + 2))
        h3 = fma(power_of(d, a3), h3, x * broadcast(b, row + 3))
        even = fma(h0, broadcast(c, row), fma(h2, broadcast(c, row + 2), load(y, t * LANES)))
        store(y, t * LANES, fma(h1, broadcast(c, row + 1), fma(h3, broadcast(c, row + 3), even)))
    store(state, 0, h0)
    store(state, LANES, h1)
    store(state, 2 * LANES, h2)
    store(state, 3 * LANES, h3)


@njit(**OPTIONS)
def _gate(p, batch, first_row, steps, channel, lanes, y, staged, spare):
    """Multiply `y` by silu(z), if there is a gate, and write the output."""
    out, dtype, index, stride = open_target(p, OUT, batch, first_row, channel, lanes, y)
    if load_int(p, Z) != 0:
        z_at, z_dtype, z_index, z_stride = open_rows(p, Z, batch, first_row, steps, channel, lanes, staged)
        for t in range(steps):
            z = read_row(z_at, z_dtype, z_index + t * z_stride)
            write_row(out, dtype, index + t * stride, load(y, t * LANES) * (z * sigmoid(z)))
    else:
        for t in range(steps):
            write_row(out, dtype, index + t * stride, load(y, t * LANES))
    close_target(p, OUT, batch, first_row, steps, channel, lanes, y, spare)


@njit(**OPTIONS)
def _forward_vector(p, batch, block, first_row, steps, channel, lanes, width, b, c, rows, decay, state, lane_values):
    """One vector of channels over one block. `lane_values`: bias, D, fastest decay."""
    bias, skip, fastest = lane_values
    staged, delta, delta_u, y = rows, rows + ROWS, rows + 2 * ROWS, rows + 3 * ROWS
    longest = prepare_steps(
        p, batch, first_row, steps, channel, lanes, bias, skip, staged, 0, delta, delta_u, delta_u, y
    )
    checkpoints = load_int(p, CHECKPOINTS)
    if checkpoints != 0:
        num_blocks = (load_int(p, LENGTH) + BLOCK - 1) // BLOCK
        num_vectors = (load_int(p, INNER) + LANES - 1) // LANES
        here = ((batch * num_blocks + block) * num_vectors + channel // LANES) * width * LANES
        for n in range(width):
            store(checkpoints, here + n * LANES, load(state, n * LANES))
    bounded = is_bounded(longest, fastest)
    for n in range(0, width, UNROLL):
        b_n, c_n = b + n * FLOAT_BYTES, c + n * FLOAT_BYTES
        decay_n, state_n = decay + n * VECTOR_BYTES, state + n * VECTOR_BYTES
        if bounded:
            _advance(bounded_power, steps, delta, delta_u, y, b_n, c_n, width, decay_n, state_n)
        else:
            _advance(power, steps, delta, delta_u, y, b_n, c_n, width, decay_n, state_n)
    _gate(p, batch, first_row, steps, channel, lanes, y, staged, delta)


@njit(**OPTIONS)
def scan_task(p, task, scratch):
    """One sequence and one group of channel vectors."""
    groups, per_group = load_int(p, GROUPS), load_int(p, VECTORS_PER_GROUP)
    length, inner, states = load_int(p, LENGTH), load_int(p, INNER), load_int(p, STATES)
    batch, first_vector = task // groups, (task % groups) * per_group
    last_vector = min((inner + LANES - 1) // LANES, first_vector + per_group)
    width = (states + UNROLL - 1) // UNROLL * UNROLL
    tile = width * VECTOR_BYTES
    decays, state = scratch, scratch + per_group * tile
    biases = state + per_group * tile
    skips = biases + per_group * VECTOR_BYTES
    fastest = skips + per_group * VECTOR_BYTES
    b = fastest + per_group * VECTOR_BYTES
    c = b + BLOCK * width * FLOAT_BYTES
    rows = c + BLOCK * width * FLOAT_BYTES

    for v in range(first_vector, last_vector):
        i, channel = v - first_vector, v * LANES
        lanes = min(LANES, inner - channel)
        load_tile(decays + i * tile, load_int(p, A), channel, lanes, states, width, np.float32(LOG2_E))
        store_fastest(fastest + i * VECTOR_BYTES, decays + i * tile, width)
        first = batch * inner + channel
        load_tile(state + i * tile, load_int(p, INITIAL), first, lanes, states, width, np.float32(1.0))
        load_lanes(biases + i * VECTOR_BYTES, load_int(p, BIAS), channel, lanes)
        load_lanes(skips + i * VECTOR_BYTES, load_int(p, D), channel, lanes)
    for block in range((length + BLOCK - 1) // BLOCK):
        first_row = block * BLOCK
        steps = min(BLOCK, length - first_row)
        load_wide_rows(b, width, p, B, batch, first_row, steps, states)
        load_wide_rows(c, width, p, C, batch, first_row, steps, states)
        for v in range(first_vector, last_vector):
            i, channel = v - first_vector, v * LANES
            lanes = min(LANES, inner - channel)
            at = i * VECTOR_BYTES
            _forward_vector(
                p, batch, block, first_row, steps, channel, lanes, width, b, c, rows, decays + i * tile,
                state + i * tile, (biases + at, skips + at, fastest + at),
            )  # fmt: skip
    if load_int(p, LAST) != 0:
        for v in range(first_vector, last_vector):
            lanes = min(LANES, inner - v * LANES)
            source = state + (v - first_vector) * tile
            store_tile(load_int(p, LAST), batch * inner + v * LANES, lanes, states, source)
