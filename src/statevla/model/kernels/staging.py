"""Moving blocks of strided float32 or bfloat16 tensors into contiguous float32 scratch, and back.

Everything that depends on dtype, strides and incomplete vectors happens here; the kernels' inner loops see only rows
of `LANES` float32 in scratch, which stays in the first-level cache.
"""

# mypy: ignore-errors
# (numba's decorators change the signatures: an intrinsic is defined with one more argument than it is called with.)

from __future__ import annotations

import numpy as np
from numba import config, njit

from statevla.model.kernels.memory import (
    copy_bits16,
    fetch_and_increment,
    load,
    load_bf16,
    load_int,
    load_scalar,
    load_scalar_bf16,
    prefetch,
    store,
    store_bf16,
    store_scalar,
)
from statevla.model.kernels.simd import LANES, zero

# Slots of a kernel's parameter block (int64). First the header, which `threads.run_kernel` fills.
NEXT_TASK, NUM_TASKS, NEXT_WORKER, SCRATCH, SCRATCH_BYTES, HEADER = 0, 1, 2, 3, 4, 5
# A three-dimensional tensor takes five slots: address (0: absent), dtype, strides of batch, row and column.
ADDRESS, DTYPE, BATCH_STRIDE, ROW_STRIDE, COLUMN_STRIDE, TENSOR = 0, 1, 2, 3, 4, 5
FLOAT32, BFLOAT16 = 0, 1
FLOAT_BYTES = 4
VECTOR_BYTES = LANES * FLOAT_BYTES

# Compiled code is kept only where `load_kernels` found a place for it.
CACHE = bool(config.CACHE_DIR)
OPTIONS = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


@njit(**OPTIONS)
def claim_scratch(p):
    """Address of a thread's own scratch memory; call once per thread."""
    return load_int(p, SCRATCH) + fetch_and_increment(p, NEXT_WORKER) * load_int(p, SCRATCH_BYTES)


@njit(**OPTIONS)
def claim_task(p):
    """Number of the next task, or -1 when none is left."""
    task = fetch_and_increment(p, NEXT_TASK)
    return task if task < load_int(p, NUM_TASKS) else -1


@njit(**OPTIONS)
def read_scalar(address, dtype, index):
    """One element as float32."""
    if dtype == FLOAT32:
        return load_scalar(address, index)
    return load_scalar_bf16(address, index)


@njit(**OPTIONS)
def load_rows(target, p, tensor, batch, first_row, num_rows, first_column, lanes):
    """Rows of `LANES` columns to `target`; columns beyond `lanes` and rows before row 0 become 0."""
    address = load_int(p, tensor + ADDRESS)
    dtype = load_int(p, tensor + DTYPE)
    row_stride = load_int(p, tensor + ROW_STRIDE)
    column_stride = load_int(p, tensor + COLUMN_STRIDE)
    start = batch * load_int(p, tensor + BATCH_STRIDE) + first_row * row_stride + first_column * column_stride
    skip = min(num_rows, max(0, -first_row))
    for row in range(skip):
        store(target, row * LANES, zero())
    if lanes == LANES and column_stride == 1:
        if dtype == FLOAT32:
            for row in range(skip, num_rows):
                store(target, row * LANES, load(address, start + row * row_stride))
        else:
            for row in range(skip, num_rows):
                store(target, row * LANES, load_bf16(address, start + row * row_stride))
    else:
        for row in range(skip, num_rows):
            store(target, row * LANES, zero())
            for lane in range(lanes):
                value = read_scalar(address, dtype, start + row * row_stride + lane * column_stride)
                store_scalar(target, row * LANES + lane, value)


@njit(**OPTIONS)
def open_rows(p, tensor, batch, first_row, num_rows, first_column, lanes, staging):
    """Where rows can be read as whole vectors: in the tensor itself, or else in a copy in `staging`.

    Returns address, dtype, index of the first row and row stride, for `read_row`.
    """
    column_stride = load_int(p, tensor + COLUMN_STRIDE)
    if lanes == LANES and column_stride == 1:
        row_stride = load_int(p, tensor + ROW_STRIDE)
        start = batch * load_int(p, tensor + BATCH_STRIDE) + first_row * row_stride + first_column
        return load_int(p, tensor + ADDRESS), load_int(p, tensor + DTYPE), start, row_stride
    load_rows(staging, p, tensor, batch, first_row, num_rows, first_column, lanes)
    return staging, FLOAT32, 0, LANES


@njit(**OPTIONS)
def read_row(address, dtype, index):
    """A vector as float32; the one to its right, which comes next, is asked for."""
    if dtype == FLOAT32:
        prefetch(address + (index + LANES) * 4)
        return load(address, index)
    prefetch(address + (index + LANES) * 2)
    return load_bf16(address, index)


@njit(**OPTIONS)
def write_row(address, dtype, index, value):
    """The way back of `read_row`."""
    if dtype == FLOAT32:
        store(address, index, value)
    else:
        store_bf16(address, index, value)


@njit(**OPTIONS)
def open_target(p, tensor, batch, first_row, first_column, lanes, staging):
    """Where rows can be written as whole vectors; `close_target` then moves them if that was `staging`."""
    if lanes == LANES and load_int(p, tensor + COLUMN_STRIDE) == 1:
        row_stride = load_int(p, tensor + ROW_STRIDE)
        start = batch * load_int(p, tensor + BATCH_STRIDE) + first_row * row_stride + first_column
        return load_int(p, tensor + ADDRESS), load_int(p, tensor + DTYPE), start, row_stride
    return staging, FLOAT32, 0, LANES


@njit(**OPTIONS)
def close_target(p, tensor, batch, first_row, num_rows, first_column, lanes, staging, spare):
    """Move rows from `staging` to the tensor, unless they were written there at once."""
    if lanes != LANES or load_int(p, tensor + COLUMN_STRIDE) != 1:
        store_rows(p, tensor, batch, first_row, num_rows, first_column, lanes, staging, spare)


@njit(**OPTIONS)
def store_rows(p, tensor, batch, first_row, num_rows, first_column, lanes, source, spare):
    """The way back of `load_rows`; `spare` is scratch for one vector."""
    address = load_int(p, tensor + ADDRESS)
    dtype = load_int(p, tensor + DTYPE)
    row_stride = load_int(p, tensor + ROW_STRIDE)
    column_stride = load_int(p, tensor + COLUMN_STRIDE)
    start = batch * load_int(p, tensor + BATCH_STRIDE) + first_row * row_stride + first_column * column_stride
    if lanes == LANES and column_stride == 1:
        if dtype == FLOAT32:
            for row in range(num_rows):
                store(address, start + row * row_stride, load(source, row * LANES))
        else:
            for row in range(num_rows):
                store_bf16(address, start + row * row_stride, load(source, row * LANES))
    else:
        for row in range(num_rows):
            if dtype != FLOAT32:
                store_bf16(spare, 0, load(source, row * LANES))
            for lane in range(lanes):
                index = start + row * row_stride + lane * column_stride
                if dtype == FLOAT32:
                    store_scalar(address, index, load_scalar(source, row * LANES + lane))
                else:
                    copy_bits16(address, index, spare, lane)


@njit(**OPTIONS)
def load_wide_rows(target, width, p, tensor, batch, first_row, num_rows, columns):
    """Rows of `columns` elements to rows of `width` >= `columns` float32; `width` need not be a multiple of `LANES`."""
    address = load_int(p, tensor + ADDRESS)
    dtype = load_int(p, tensor + DTYPE)
    row_stride = load_int(p, tensor + ROW_STRIDE)
    column_stride = load_int(p, tensor + COLUMN_STRIDE)
    start = batch * load_int(p, tensor + BATCH_STRIDE) + first_row * row_stride
    vectorised = columns // LANES * LANES if column_stride == 1 else 0
    for row in range(num_rows):
        source = start + row * row_stride
        for column in range(0, vectorised, LANES):
            if dtype == FLOAT32:
                store(target, row * width + column, load(address, source + column))
            else:
                store(target, row * width + column, load_bf16(address, source + column))
        for column in range(vectorised, columns):
            value = read_scalar(address, dtype, source + column * column_stride)
            store_scalar(target, row * width + column, value)
        for column in range(columns, width):
            store_scalar(target, row * width + column, np.float32(0.0))


@njit(**OPTIONS)
def load_lanes(target, address, first, lanes):
    """A vector of per-channel float32 parameters; zeros where the parameter is absent or the channel beyond the end."""
    store(target, 0, zero())
    if address != 0:
        for lane in range(lanes):
            store_scalar(target, lane, load_scalar(address, first + lane))


@njit(**OPTIONS)
def load_tile(target, address, first, lanes, columns, width, scale):
    """`scale *` a contiguous float32 `[channels, columns]`, transposed to `width` vectors of channels (0 outside)."""
    for column in range(width):
        store(target, column * LANES, zero())
    if address != 0:
        for lane in range(lanes):
            for column in range(columns):
                value = scale * load_scalar(address, (first + lane) * columns + column)
                store_scalar(target, column * LANES + lane, value)


@njit(**OPTIONS)
def store_tile(address, first, lanes, columns, source):
    """The way back of `load_tile`, unscaled."""
    for lane in range(lanes):
        for column in range(columns):
            value = load_scalar(source, column * LANES + lane)
            store_scalar(address, (first + lane) * columns + column, value)


@njit(**OPTIONS)
def clear(target, vectors):
    """Zero `vectors` vectors."""
    for index in range(vectors):
        store(target, index * LANES, zero())
