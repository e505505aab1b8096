"""What stands between products, a task being some rows: norms, gates, sums of rows."""

# mypy: ignore-errors
# (numba's decorators change the signatures: an intrinsic is defined with one more argument than it is called with.)

from __future__ import annotations

import numpy as np
from numba import njit

from statevla.model.kernels.exponential import sigmoid
from statevla.model.kernels.memory import load, load_float_bits, load_int, store
from statevla.model.kernels.simd import LANES, fma, reciprocal_sqrt, splat, sum_lanes, zero
from statevla.model.kernels.staging import HEADER, OPTIONS, read_row, write_row

# Slots that all of these begin with. Strides count elements; columns are padded to whole vectors, with zeros.
ROWS, COLUMNS, ROWS_PER_TASK = range(HEADER, HEADER + 3)
IN, IN_DTYPE, IN_STRIDE, OUT, OUT_DTYPE, OUT_STRIDE = range(HEADER + 3, HEADER + 9)
WEIGHT, BIAS, EPS, CENTRES = range(HEADER + 9, HEADER + 13)  # of a norm
GATE, GATE_DTYPE, GATE_STRIDE = range(HEADER + 9, HEADER + 12)  # of a gate
ADDS = HEADER + 9  # of a copy
NUM_SLOTS = HEADER + 13


@njit(**OPTIONS)
def _rows_of_task(p, task):
    first = task * load_int(p, ROWS_PER_TASK)
    return first, min(load_int(p, ROWS), first + load_int(p, ROWS_PER_TASK))


@njit(**OPTIONS)
def norm_task(p, task, scratch):
    """RMSNorm, or with `CENTRES` LayerNorm, of float32 rows, with weight and bias (0: none)."""
    columns, eps = load_int(p, COLUMNS), load_float_bits(p, EPS)
    source, stride = load_int(p, IN), load_int(p, IN_STRIDE)
    out, dtype, out_stride = load_int(p, OUT), load_int(p, OUT_DTYPE), load_int(p, OUT_STRIDE)
    weight, bias, centres = load_int(p, WEIGHT), load_int(p, BIAS), load_int(p, CENTRES)
    vectors = (columns + LANES - 1) // LANES
    padding = np.float32(vectors * LANES - columns)
    size = np.float32(columns)
    first, last = _rows_of_task(p, task)
    for row in range(first, last):
        at = row * stride
        mean = np.float32(0.0)
        if centres != 0:
            total = zero()
            for v in range(vectors):
                total = total + load(source, at + v * LANES)
            mean = sum_lanes(total) / size
        middle, squares = splat(mean), zero()
        for v in range(vectors):
            x = load(source, at + v * LANES) - middle
            squares = fma(x, x, squares)
        variance = (sum_lanes(squares) - padding * mean * mean) / size
        scale = splat(reciprocal_sqrt(variance + eps))
        for v in range(vectors):
            y = (load(source, at + v * LANES) - middle) * scale * load(weight, v * LANES)
            if bias != 0:
                y = y + load(bias, v * LANES)
            write_row(out, dtype, row * out_stride + v * LANES, y)


@njit(**OPTIONS)
def gate_task(p, task, scratch):
    """`value * silu(gate)`."""
    source, dtype, stride = load_int(p, IN), load_int(p, IN_DTYPE), load_int(p, IN_STRIDE)
    gate, gate_dtype, gate_stride = load_int(p, GATE), load_int(p, GATE_DTYPE), load_int(p, GATE_STRIDE)
    out, out_dtype, out_stride = load_int(p, OUT), load_int(p, OUT_DTYPE), load_int(p, OUT_STRIDE)
    first, last = _rows_of_task(p, task)
    for row in range(first, last):
        for column in range(0, load_int(p, COLUMNS), LANES):
            g = read_row(gate, gate_dtype, row * gate_stride + column)
            value = read_row(source, dtype, row * stride + column) * (g * sigmoid(g))
            write_row(out, out_dtype, row * out_stride + column, value)


@njit(**OPTIONS)
def copy_task(p, task, scratch):
    """Rows to other rows, or with `ADDS` onto them; a stride of 0 repeats one row. All in float32."""
    source, stride = load_int(p, IN), load_int(p, IN_STRIDE)
    out, out_stride, adds = load_int(p, OUT), load_int(p, OUT_STRIDE), load_int(p, ADDS)
    first, last = _rows_of_task(p, task)
    for row in range(first, last):
        for column in range(0, load_int(p, COLUMNS), LANES):
            value = load(source, row * stride + column)
            if adds != 0:
                value = value + load(out, row * out_stride + column)
            store(out, row * out_stride + column, value)
