"""What the two scan kernels share: their parameter block, their scratch, and how a block of steps begins."""

# mypy: ignore-errors
# (numba's decorators change the signatures: an intrinsic is defined with one more argument than it is called with.)

from __future__ import annotations

import numpy as np
from numba import njit

from statevla.model.kernels.exponential import (
    EXP2_LIMIT,
    HAS_TABLE,
    exp2,
    exp2_of_product,
    exp_of_minus_magnitude,
    softplus,
    softplus_slope,
)
from statevla.model.kernels.memory import load, load_int, store
from statevla.model.kernels.simd import LANES, largest, largest_lane, splat, zero
from statevla.model.kernels.staging import (
    FLOAT_BYTES,
    HEADER,
    OPTIONS,
    TENSOR,
    VECTOR_BYTES,
    open_rows,
    read_row,
)

BLOCK = 32
UNROLL = 4

# Parameter slots after the header: numbers, contiguous float32 arrays by address, strided tensors.
LENGTH, INNER, STATES, GROUPS, VECTORS_PER_GROUP, SOFTPLUS = range(HEADER, HEADER + 6)
A, D, BIAS, INITIAL, LAST, CHECKPOINTS = range(HEADER + 6, HEADER + 12)
GRAD_LAST, GRAD_A, GRAD_B, GRAD_C, GRAD_D, GRAD_BIAS, GRAD_INITIAL = range(HEADER + 12, HEADER + 19)
U, DELTA, Z, B, C, OUT, GRAD_U, GRAD_DELTA, GRAD_Z = range(HEADER + 19, HEADER + 19 + 9 * TENSOR, TENSOR)
# In backward, OUT is the gradient of the output.

ROWS = BLOCK * VECTOR_BYTES  # one staged tensor: a block of rows, one vector wide
LN_2 = np.float32(0.6931471805599453)


def padded_states(states: int) -> int:
    """States rounded up to the unrolling; the surplus has B = C = 0 and stays 0."""
    return -(-states // UNROLL) * UNROLL


def scratch_bytes(states: int, vectors_per_group: int, backward: bool) -> int:
    """Scratch that one thread needs; the layouts are in the two `_…_task` functions."""
    width = padded_states(states)
    per_group = vectors_per_group * (width * (3 if backward else 2) + (5 if backward else 3)) * VECTOR_BYTES
    rows = 2 * BLOCK * width * FLOAT_BYTES + VECTOR_BYTES
    if not backward:
        return per_group + rows + 4 * ROWS
    return per_group + rows + 9 * ROWS + (2 * BLOCK + 1) * UNROLL * VECTOR_BYTES + 2 * BLOCK * width * VECTOR_BYTES


@njit(**OPTIONS)
def prepare_steps(p, batch, first_row, steps, channel, lanes, bias, skip, staged, slope, delta, delta_u, u, y):
    """Read u and delta of a block: `delta` after bias and softplus, `u`, `delta_u`, and `y` = D u.

    `slope` (0: not wanted, else it may be `staged`) gets the derivative of `delta` by what was read. Returns each
    lane's largest `delta`, for `is_bounded`.
    """
    u_at, u_dtype, u_index, u_stride = open_rows(p, U, batch, first_row, steps, channel, lanes, u)
    d_at, d_dtype, d_index, d_stride = open_rows(p, DELTA, batch, first_row, steps, channel, lanes, staged)
    bias_vector, skip_vector, one, longest = load(bias, 0), load(skip, 0), splat(np.float32(1.0)), zero()
    uses_softplus = load_int(p, SOFTPLUS)
    for t in range(steps):
        d = read_row(d_at, d_dtype, d_index + t * d_stride) + bias_vector
        x = read_row(u_at, u_dtype, u_index + t * u_stride)
        store(y, t * LANES, skip_vector * x)
        store(u, t * LANES, x)
        if uses_softplus != 0:
            e = exp_of_minus_magnitude(d)
            if slope != 0:
                store(slope, t * LANES, softplus_slope(d, e))
            d = softplus(d, e)
        elif slope != 0:
            store(slope, t * LANES, one)
        store(delta, t * LANES, d)
        store(delta_u, t * LANES, d * x)
        if HAS_TABLE:
            longest = largest(longest, d)
    return longest


@njit(**OPTIONS)
def power(delta, decay):
    """`2^(delta decay)` of one vector, of any size."""
    return exp2(delta * decay)


@njit(**OPTIONS)
def bounded_power(delta, decay):
    """The same where `is_bounded` says so."""
    return exp2_of_product(delta, decay)


@njit(**OPTIONS)
def store_fastest(target, decay, width):
    """The largest of `width` vectors of decays, for `is_bounded`."""
    fastest = zero()
    for n in range(width):
        fastest = largest(fastest, load(decay, n * LANES))
    store(target, 0, fastest)


@njit(**OPTIONS)
def is_bounded(longest, fastest):
    """Whether no exponent of a block comes near the range of float32: then `bounded_power` may be used.

    (Without a table there is nothing to gain from the question.)
    """
    return HAS_TABLE and largest_lane(longest * load(fastest, 0)) < np.float32(EXP2_LIMIT)
