"""Loads and stores at raw addresses: vectors and single numbers, float32, bfloat16 and integers; counters of threads.

Addresses are integers; indices count elements.
"""

# mypy: ignore-errors
# (numba's decorators change the signatures: an intrinsic is defined with one more argument than it is called with.)

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from statevla.model.kernels.simd import (
    FLOAT,
    HAS_BF16,
    INT32,
    INT_VECTOR,
    IS_X86,
    LANES,
    VECTOR,
    int_constant,
    splatted,
    vector,
)

_INT16, _INT64 = ir.IntType(16), ir.IntType(64)
_HALF_VECTOR = ir.VectorType(_INT16, LANES)
_PAIRS_OF_HALVES, _PAIR_ORDER = ir.VectorType(_INT16, 2 * LANES), ir.VectorType(INT32, 2 * LANES)


class BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


def _pointer(builder: Any, address: Any, index: Any, element: Any, as_vector: Any = None) -> Any:
    pointer = builder.gep(builder.inttoptr(address, element.as_pointer()), [index])
    return pointer if as_vector is None else builder.bitcast(pointer, as_vector.as_pointer())


@intrinsic
def load(typing_context, address, index):
    """`LANES` float32 from `address[index:]`."""

    def generate(context, builder, sig, args):
        value = builder.load(_pointer(builder, *args, FLOAT, VECTOR))
        value.align = 4
        return value

    return vector(types.intp, types.intp), generate


@intrinsic
def store(typing_context, address, index, value):
    """Write `LANES` float32."""

    def generate(context, builder, sig, args):
        builder.store(args[2], _pointer(builder, args[0], args[1], FLOAT, VECTOR)).align = 4
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, vector), generate


@intrinsic
def load_bf16(typing_context, address, index):
    """`LANES` bfloat16, widened."""

    def generate(context, builder, sig, args):
        bits = builder.load(_pointer(builder, *args, _INT16, _HALF_VECTOR))
        bits.align = 2
        return builder.bitcast(builder.shl(builder.zext(bits, INT_VECTOR), int_constant(16)), VECTOR)

    return vector(types.intp, types.intp), generate


def _rounded_to_bf16(builder: Any, value: Any) -> Any:
    """Bits of bfloat16, rounded to nearest even; NaN stays NaN."""
    if HAS_BF16:  # one instruction; numbers below 2^-126 become 0
        function_type = ir.FunctionType(ir.VectorType(BFloat(), LANES), [VECTOR])
        name = "llvm.x86.avx512bf16.cvtneps2bf16.512"
        halves = builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), [value])
        return builder.bitcast(halves, _HALF_VECTOR)
    bits = builder.bitcast(value, INT_VECTOR)
    odd = builder.and_(builder.lshr(bits, int_constant(16)), int_constant(1))
    rounded = builder.lshr(builder.add(builder.add(bits, odd), int_constant(0x7FFF)), int_constant(16))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, int_constant(0x7FC0), rounded), _HALF_VECTOR)


@intrinsic
def store_bf16(typing_context, address, index, value):
    """Write `LANES` bfloat16, rounded to nearest even; NaN stays NaN."""

    def generate(context, builder, sig, args):
        halves = _rounded_to_bf16(builder, args[2])
        builder.store(halves, _pointer(builder, args[0], args[1], _INT16, _HALF_VECTOR)).align = 2
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, vector), generate


@intrinsic
def store_interleaved_bf16(typing_context, address, index, first, second):
    """Write `2 LANES` bfloat16: of every lane that of `first`, then that of `second`."""

    def generate(context, builder, sig, args):
        halves = [_rounded_to_bf16(builder, value) for value in args[2:]]
        order = ir.Constant(_PAIR_ORDER, [LANES * (i % 2) + i // 2 for i in range(2 * LANES)])
        pairs = builder.shuffle_vector(*halves, order)
        builder.store(pairs, _pointer(builder, args[0], args[1], _INT16, _PAIRS_OF_HALVES)).align = 2
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, vector, vector), generate


@intrinsic
def interleave_bf16(typing_context, target, first, second):
    """`2 LANES` bfloat16 at each of two addresses to `target`, every number of `first` before that of `second`."""

    def generate(context, builder, sig, args):
        target, *sources = args
        zero_index = ir.Constant(_INT64, 0)
        rows = []
        for source in sources:
            rows.append(builder.load(_pointer(builder, source, zero_index, _INT16, _PAIRS_OF_HALVES)))
            rows[-1].align = 2
        for half in range(2):
            order = ir.Constant(_PAIR_ORDER, [2 * LANES * (i % 2) + i // 2 + half * LANES for i in range(2 * LANES)])
            place = builder.add(target, ir.Constant(_INT64, half * 4 * LANES))
            pairs = builder.shuffle_vector(*rows, order)
            builder.store(pairs, _pointer(builder, place, zero_index, _INT16, _PAIRS_OF_HALVES)).align = 2
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@intrinsic
def store_pixels_bf16(typing_context, address, index, red, green, blue):
    """Write `LANES` pixels of four bfloat16 each: the three colours and a zero."""

    def generate(context, builder, sig, args):
        wide = ir.VectorType(_INT64, LANES)
        pixels = None
        for place, value in enumerate(args[2:]):
            bits = builder.zext(_rounded_to_bf16(builder, value), wide)
            bits = builder.shl(bits, ir.Constant(wide, [16 * place] * LANES))
            pixels = bits if pixels is None else builder.or_(pixels, bits)
        builder.store(pixels, _pointer(builder, args[0], args[1], _INT16, wide)).align = 2
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, vector, vector, vector), generate


@intrinsic
def broadcast(typing_context, address, index):
    """One float32 in all lanes."""

    def generate(context, builder, sig, args):
        return splatted(builder, builder.load(_pointer(builder, *args, FLOAT)))

    return vector(types.intp, types.intp), generate


@intrinsic
def load_scalar(typing_context, address, index):
    """One float32."""

    def generate(context, builder, sig, args):
        return builder.load(_pointer(builder, *args, FLOAT))

    return types.float32(types.intp, types.intp), generate


@intrinsic
def load_scalar_bf16(typing_context, address, index):
    """One bfloat16, widened."""

    def generate(context, builder, sig, args):
        bits = builder.zext(builder.load(_pointer(builder, *args, _INT16)), INT32)
        return builder.bitcast(builder.shl(bits, ir.Constant(INT32, 16)), FLOAT)

    return types.float32(types.intp, types.intp), generate


@intrinsic
def store_scalar(typing_context, address, index, value):
    """Write one float32."""

    def generate(context, builder, sig, args):
        builder.store(args[2], _pointer(builder, args[0], args[1], FLOAT))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32), generate


@intrinsic
def copy_bits16(typing_context, target, target_index, source, source_index):
    """Copy one 16-bit value."""

    def generate(context, builder, sig, args):
        value = builder.load(_pointer(builder, args[2], args[3], _INT16))
        builder.store(value, _pointer(builder, args[0], args[1], _INT16))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), generate


@intrinsic
def prefetch(typing_context, address):
    """Ask for the cache line at a byte address; harmless where there is none."""

    def generate(context, builder, sig, args):
        pointer_type = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [pointer_type, INT32, INT32, INT32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0i8")
        reading, keep, data = (ir.Constant(INT32, number) for number in (0, 3, 1))
        builder.call(function, [builder.inttoptr(args[0], pointer_type), reading, keep, data])
        return context.get_dummy_value()

    return types.void(types.intp), generate


@intrinsic
def load_int(typing_context, address, index):
    """One int64."""

    def generate(context, builder, sig, args):
        return builder.load(_pointer(builder, *args, _INT64))

    return types.intp(types.intp, types.intp), generate


@intrinsic
def fetch_and_increment(typing_context, address, index):
    """Atomic `value = address[index]; address[index] += 1`: how threads draw tasks."""

    def generate(context, builder, sig, args):
        return builder.atomic_rmw("add", _pointer(builder, *args, _INT64), ir.Constant(_INT64, 1), "monotonic")

    return types.intp(types.intp, types.intp), generate


@intrinsic
def add_and_publish(typing_context, address, index):
    """Atomic `address[index] += 1`, after which other threads that see it see all that was written before."""

    def generate(context, builder, sig, args):
        builder.atomic_rmw("add", _pointer(builder, *args, _INT64), ir.Constant(_INT64, 1), "acq_rel")
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic
def load_published(typing_context, address, index):
    """One int64, and with it all that its writer had written before."""

    def generate(context, builder, sig, args):
        return builder.load_atomic(_pointer(builder, *args, _INT64), "acquire", 8)

    return types.intp(types.intp, types.intp), generate


@intrinsic
def pause(typing_context):
    """Tell the processor that this thread only waits."""

    def generate(context, builder, sig, args):
        if IS_X86:
            function_type = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def as_address(typing_context, pointer):
    """A `void *` as an integer."""

    def generate(context, builder, sig, args):
        return builder.ptrtoint(args[0], _INT64)

    return types.intp(types.voidptr), generate


@intrinsic
def load_float_bits(typing_context, address, index):
    """A float32 whose bits are the low half of an int64."""

    def generate(context, builder, sig, args):
        bits = builder.trunc(builder.load(_pointer(builder, *args, _INT64)), INT32)
        return builder.bitcast(bits, FLOAT)

    return types.float32(types.intp, types.intp), generate
