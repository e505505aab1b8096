"""Matrix products with packed weights: a tile of rows times a panel of columns, its sums held in registers.

The weights lie as panels of `WIDTH` columns, all of a panel's rows one after the other (`packing.py`), so that a panel
is read as one stream; rows of the left matrix are read where they are, one number (or pair of bfloat16) at a time in
all lanes. At most `MAX_ROWS` rows go through a panel together: their sums, the panel's vectors and one broadcast just
fill the registers.
"""

# mypy: ignore-errors
# (numba's decorators change the signatures: an intrinsic is defined with one more argument than it is called with.)

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from statevla.model.kernels.exponential import gelu, sigmoid
from statevla.model.kernels.memory import BFloat, load, load_int, store, store_bf16
from statevla.model.kernels.simd import HAS_BF16, INT32, LANES, VECTOR, call_llvm, constant, int_constant, zero
from statevla.model.kernels.staging import FLOAT32, HEADER, OPTIONS, VECTOR_BYTES

VECTORS = 2
WIDTH = VECTORS * LANES
MAX_ROWS = 12 if LANES == 16 else 6
TILE_BYTES = MAX_ROWS * VECTORS * VECTOR_BYTES
NO_ACTIVATION, SILU, GELU = 0, 1, 2

# Parameter slots: A's rows (bytes apart), steps along the inner dimension (pairs in bfloat16), packed weights, ...
A, A_STRIDE, STEPS, PACKED, BIAS, ROWS, PANELS, IS_BF16 = range(HEADER, HEADER + 8)
OUT, OUT_DTYPE, OUT_STRIDE, ADDS, ACTIVATION, ROWS_PER_TASK, PANELS_PER_TASK = range(HEADER + 8, HEADER + 15)
NUM_SLOTS = HEADER + 15

_INT64 = ir.IntType(64)


_PAIRS = ir.VectorType(BFloat(), 2 * LANES)


def _vector_at(builder: Any, address: Any, offset: int = 0) -> Any:
    return builder.inttoptr(builder.add(address, ir.Constant(_INT64, offset)), VECTOR.as_pointer())


def _multiply_add(builder: Any, a: Any, b: Any, total: Any, is_bf16: bool) -> Any:
    if not is_bf16:
        return call_llvm(builder, "fma", a, b, total)
    function_type = ir.FunctionType(VECTOR, [VECTOR, _PAIRS, _PAIRS])
    function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.avx512bf16.dpbf16ps.512")
    return builder.call(function, [total, builder.bitcast(a, _PAIRS), builder.bitcast(b, _PAIRS)])


def _broadcast_at(builder: Any, address: Any) -> Any:
    number = builder.load(builder.inttoptr(address, ir.FloatType().as_pointer()))
    number.align = 4
    undefined = ir.Constant(VECTOR, ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(undefined, number, ir.Constant(INT32, 0)), undefined, int_constant(0)
    )


class _Edge(NamedTuple):
    """A value that changes from step to step: in the loop, before it, and after a step."""

    phi: Any
    first: Any
    again: Any


def _generate_tile(builder: Any, args: Any, num_rows: int, is_bf16: bool) -> None:
    """The loops over runs and steps for a tile of `num_rows`, then the sums' way to `target`."""
    a, row_stride, step, run_stride, runs, steps, b, target = args
    # Three rows share a pointer (and its stride, once and twice): more pointers than registers would be spilled.
    groups = [(first, min(3, num_rows - first)) for first in range(0, num_rows, 3)]
    twice = builder.shl(row_stride, ir.Constant(_INT64, 1))
    starts = [builder.add(a, builder.mul(row_stride, ir.Constant(_INT64, first))) for first, _ in groups]
    before = builder.block
    outer, inner = builder.append_basic_block("run"), builder.append_basic_block("step")
    latch, after = builder.append_basic_block("next_run"), builder.append_basic_block("after")
    builder.branch(outer)

    builder.position_at_end(outer)
    run_starts = [builder.phi(_INT64) for _ in groups]
    run_panel, runs_left = builder.phi(_INT64), builder.phi(_INT64)
    run_sums = [[builder.phi(VECTOR) for _ in range(VECTORS)] for _ in range(num_rows)]
    builder.branch(inner)

    builder.position_at_end(inner)
    pointers = [builder.phi(_INT64) for _ in groups]
    panel, left = builder.phi(_INT64), builder.phi(_INT64)
    sums = [[builder.phi(VECTOR) for _ in range(VECTORS)] for _ in range(num_rows)]
    weights = []
    for i in range(VECTORS):
        weights.append(builder.load(_vector_at(builder, panel, i * VECTOR_BYTES)))
        weights[-1].align = VECTOR_BYTES
    following: list[list[Any]] = []
    for pointer, (_, size) in zip(pointers, groups):
        for row in range(size):
            address = pointer if row == 0 else builder.add(pointer, row_stride if row == 1 else twice)
            number = _broadcast_at(builder, address)
            row_sums = sums[len(following)]
            following.append([_multiply_add(builder, number, w, s, is_bf16) for w, s in zip(weights, row_sums)])
    next_panel = builder.add(panel, ir.Constant(_INT64, VECTORS * VECTOR_BYTES))
    steps_left = builder.sub(left, ir.Constant(_INT64, 1))
    within = [
        *[_Edge(p, start, builder.add(p, step)) for p, start in zip(pointers, run_starts)],
        _Edge(panel, run_panel, next_panel),
        _Edge(left, steps, steps_left),
        *[_Edge(*edge) for rows in zip(sums, run_sums, following) for edge in zip(*rows)],
    ]
    for edge in within:
        edge.phi.add_incoming(edge.first, outer)
        edge.phi.add_incoming(edge.again, inner)
    builder.cbranch(builder.icmp_signed("!=", steps_left, ir.Constant(_INT64, 0)), inner, latch)

    builder.position_at_end(latch)
    following_runs_left = builder.sub(runs_left, ir.Constant(_INT64, 1))
    between = [
        *[_Edge(p, start, builder.add(p, run_stride)) for p, start in zip(run_starts, starts)],
        _Edge(run_panel, b, next_panel),
        _Edge(runs_left, runs, following_runs_left),
        *[_Edge(s, constant(0.0), f) for row, new in zip(run_sums, following) for s, f in zip(row, new)],
    ]
    for edge in between:
        edge.phi.add_incoming(edge.first, before)
        edge.phi.add_incoming(edge.again, latch)
    builder.cbranch(builder.icmp_signed("!=", following_runs_left, ir.Constant(_INT64, 0)), outer, after)

    builder.position_at_end(after)
    for i, value in enumerate(value for row in following for value in row):
        builder.store(value, _vector_at(builder, target, i * VECTOR_BYTES)).align = VECTOR_BYTES


def _tile_function(is_bf16: bool) -> Any:
    @intrinsic
    def multiply(typing_context, num_rows, a, row_stride, step, run_stride, runs, steps, panel, target):
        """`num_rows` rows at `a` times a panel of `runs` times `steps` rows; the sums go to `target`, `[rows, WIDTH]`.

        All in bytes: a row begins `row_stride` after the one before; its numbers (or pairs) are `step` apart, `steps`
        of them in a run, and runs begin `run_stride` apart.
        """

        def generate(context, builder, sig, args):
            done = builder.append_basic_block("done")
            switch = builder.switch(args[0], done)
            for count in range(1, MAX_ROWS + 1):
                block = builder.append_basic_block(f"rows{count}")
                switch.add_case(ir.Constant(_INT64, count), block)
                builder.position_at_end(block)
                _generate_tile(builder, args[1:], count, is_bf16)
                builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), generate

    return multiply


multiply_float32 = _tile_function(False)
# Where the processor has no such instruction nobody asks for it, and compiling it would fail.
multiply_bf16 = _tile_function(HAS_BF16)


@njit(**OPTIONS)
def _finish(p, tile, first_row, num_rows, column):
    """Bias, activation and sum with what is there already; from the tile to the output."""
    bias, out, stride = load_int(p, BIAS), load_int(p, OUT), load_int(p, OUT_STRIDE)
    dtype, adds, activation = load_int(p, OUT_DTYPE), load_int(p, ADDS), load_int(p, ACTIVATION)
    for part in range(VECTORS):
        at = column + part * LANES
        offset = load(bias, at) if bias != 0 else zero()
        for row in range(num_rows):
            value = load(tile, (row * VECTORS + part) * LANES) + offset
            if activation == SILU:
                value = value * sigmoid(value)
            elif activation == GELU:
                value = gelu(value)
            index = (first_row + row) * stride + at
            if dtype == FLOAT32:
                if adds != 0:
                    value = value + load(out, index)
                store(out, index, value)
            else:
                store_bf16(out, index, value)


@njit(**OPTIONS)
def matmul_task(p, task, scratch):
    """One block of rows times some panels."""
    a, a_stride, steps, packed = load_int(p, A), load_int(p, A_STRIDE), load_int(p, STEPS), load_int(p, PACKED)
    rows_per_task, panels_per_task = load_int(p, ROWS_PER_TASK), load_int(p, PANELS_PER_TASK)
    panels, is_bf16 = load_int(p, PANELS), load_int(p, IS_BF16)
    groups = (panels + panels_per_task - 1) // panels_per_task
    first_row, first_panel = task // groups * rows_per_task, task % groups * panels_per_task
    last_row = min(load_int(p, ROWS), first_row + rows_per_task)
    count = last_row - first_row
    height = (count + (count + MAX_ROWS - 1) // MAX_ROWS - 1) // ((count + MAX_ROWS - 1) // MAX_ROWS)
    for panel in range(first_panel, min(panels, first_panel + panels_per_task)):
        b = packed + panel * steps * VECTORS * VECTOR_BYTES
        for row in range(first_row, last_row, height):
            num_rows = min(height, last_row - row)
            if is_bf16 != 0:
                multiply_bf16(num_rows, a + row * a_stride, a_stride, 4, 0, 1, steps, b, scratch)
            else:
                multiply_float32(num_rows, a + row * a_stride, a_stride, 4, 0, 1, steps, b, scratch)
            _finish(p, scratch, row, num_rows, panel * WIDTH)
