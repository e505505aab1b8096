"""A SIMD vector of float32 for numba: `LANES` wide, loads and stores at raw addresses, exponential, softplus, sigmoid.

numba has no vector type and, without Intel's SVML, no vectorised exponential (0.5 G/s per core against 16 G/s here).
Vectors are LLVM's own, so LLVM maps them to AVX-512, pairs of smaller registers, or NEON. Operators `+ - *` carry
LLVM's `contract` flag: a product and a sum may fuse. Addresses are integers; indices count elements.
"""

# mypy: ignore-errors
# (numba's decorators change the signatures: an intrinsic is defined with one more argument than it is called with.)

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.imputils import lower_builtin
from numba.core.typing import signature
from numba.core.typing.templates import ConcreteTemplate, infer_global
from numba.extending import intrinsic, models, register_model


def _cpu_features() -> frozenset[str]:
    """What code is compiled for, as `+avx2`: numba's settings, which may name another CPU than this one."""
    features = config.CPU_FEATURES
    if features is None:
        features = llvmlite.binding.get_host_cpu_features().flatten()
    return frozenset(features.split(","))


LANES = 16 if "+avx512f" in _cpu_features() else 8  # floats in a register of AVX-512, else of AVX2 (two of NEON)
_HAS_TABLE = LANES == 8 and "+avx2" in _cpu_features()  # `_exp2_of_product` can look its powers up

_FLOAT, _INT16, _INT32, _INT64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INT_VECTOR = ir.VectorType(_INT32, LANES)
_HALF_VECTOR = ir.VectorType(_INT16, LANES)
_FUSE = ("contract",)

LOG2_E = 1.4426950408889634
# 2^f = 1 + f q(f) on [-1/2, 1/2]; minimax, relative error 9.1e-8. Exactly 1 at f = 0, or slow modes would drift.
_EXP2 = (0.001326472731307149, 0.009671512991189957, 0.05550733581185341, 0.24022242426872253, 0.6931470036506653, 1.0)
# log(1 + t) = t (1 + t q(t)) on [0, 1]; minimax, relative error 3.3e-8.
_LOG1P = (
    0.005364818498492241,
    -0.03006576932966709,
    0.0792044997215271,
    -0.13753798604011536,
    0.1915365308523178,
    -0.24857163429260254,
    0.3332132399082184,
    -0.49999648332595825,
    1.0,
)
_ROUND_MAGIC = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits
# 2^f = 1 + f q(f) on [-1/16, 1/16]; minimax, relative error 2.7e-8.
_EXP2_EIGHTH = (0.0554962232708931, 0.2402576357126236, 0.6931472420692444)
EXP2_LIMIT = 126.0  # |x| below which `exp2_of_product` is right
_EXP_LIMIT = 87.33  # times log2(e): 125.99


class Float32Vector(types.Type):
    """numba's type of one vector."""

    def __init__(self) -> None:
        super().__init__(name=f"Float32x{LANES}")


vector = Float32Vector()


@register_model(Float32Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [value] * LANES)


def _int_constant(value: int) -> ir.Constant:
    return ir.Constant(_INT_VECTOR, [value] * LANES)


def _call(builder: Any, name: str, *args: Any) -> Any:
    """LLVM's vector intrinsic `name`, such as fma."""
    function_type = ir.FunctionType(_VECTOR, [_VECTOR] * len(args))
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.{name}.v{LANES}f32")
    return builder.call(function, args)


def _register_operator(function: Callable[..., Any], instruction: str) -> None:
    @infer_global(function)
    class _Template(ConcreteTemplate):
        cases = [signature(vector, vector, vector)]  # noqa: RUF012 (numba's interface)

    @lower_builtin(function, vector, vector)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(args[0], args[1], flags=_FUSE)


for _function, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _register_operator(_function, _instruction)


# ---- memory -----------------------------------------------------------------------------------------------------


def _pointer(builder: Any, address: Any, index: Any, element: Any, as_vector: Any = None) -> Any:
    pointer = builder.gep(builder.inttoptr(address, element.as_pointer()), [index])
    return pointer if as_vector is None else builder.bitcast(pointer, as_vector.as_pointer())


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    lane0 = builder.insert_element(undefined, value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(lane0, undefined, _int_constant(0))


@intrinsic
def load(typing_context, address, index):
    """`LANES` float32 from `address[index:]`."""

    def generate(context, builder, sig, args):
        value = builder.load(_pointer(builder, *args, _FLOAT, _VECTOR))
        value.align = 4
        return value

    return vector(types.intp, types.intp), generate


@intrinsic
def store(typing_context, address, index, value):
    """Write `LANES` float32."""

    def generate(context, builder, sig, args):
        builder.store(args[2], _pointer(builder, args[0], args[1], _FLOAT, _VECTOR)).align = 4
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, vector), generate


@intrinsic
def load_bf16(typing_context, address, index):
    """`LANES` bfloat16, widened."""

    def generate(context, builder, sig, args):
        bits = builder.load(_pointer(builder, *args, _INT16, _HALF_VECTOR))
        bits.align = 2
        return builder.bitcast(builder.shl(builder.zext(bits, _INT_VECTOR), _int_constant(16)), _VECTOR)

    return vector(types.intp, types.intp), generate


@intrinsic
def store_bf16(typing_context, address, index, value):
    """Write `LANES` bfloat16, rounded to nearest even; NaN stays NaN."""

    def generate(context, builder, sig, args):
        bits = builder.bitcast(args[2], _INT_VECTOR)
        odd = builder.and_(builder.lshr(bits, _int_constant(16)), _int_constant(1))
        rounded = builder.lshr(builder.add(builder.add(bits, odd), _int_constant(0x7FFF)), _int_constant(16))
        is_nan = builder.fcmp_unordered("uno", args[2], args[2])
        rounded = builder.select(is_nan, _int_constant(0x7FC0), rounded)
        halves = builder.trunc(rounded, _HALF_VECTOR)
        builder.store(halves, _pointer(builder, args[0], args[1], _INT16, _HALF_VECTOR)).align = 2
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, vector), generate


@intrinsic
def broadcast(typing_context, address, index):
    """One float32 in all lanes."""

    def generate(context, builder, sig, args):
        return _splat(builder, builder.load(_pointer(builder, *args, _FLOAT)))

    return vector(types.intp, types.intp), generate


@intrinsic
def load_scalar(typing_context, address, index):
    """One float32."""

    def generate(context, builder, sig, args):
        return builder.load(_pointer(builder, *args, _FLOAT))

    return types.float32(types.intp, types.intp), generate


@intrinsic
def load_scalar_bf16(typing_context, address, index):
    """One bfloat16, widened."""

    def generate(context, builder, sig, args):
        bits = builder.zext(builder.load(_pointer(builder, *args, _INT16)), _INT32)
        return builder.bitcast(builder.shl(bits, ir.Constant(_INT32, 16)), _FLOAT)

    return types.float32(types.intp, types.intp), generate


@intrinsic
def store_scalar(typing_context, address, index, value):
    """Write one float32."""

    def generate(context, builder, sig, args):
        builder.store(args[2], _pointer(builder, args[0], args[1], _FLOAT))
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
        function_type = ir.FunctionType(ir.VoidType(), [pointer_type, _INT32, _INT32, _INT32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0i8")
        reading, keep, data = (ir.Constant(_INT32, number) for number in (0, 3, 1))
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
def as_address(typing_context, pointer):
    """A `void *` as an integer."""

    def generate(context, builder, sig, args):
        return builder.ptrtoint(args[0], _INT64)

    return types.intp(types.voidptr), generate


# ---- arithmetic -------------------------------------------------------------------------------------------------


@intrinsic
def splat(typing_context, value):
    """A float32 in all lanes."""

    def generate(context, builder, sig, args):
        return _splat(builder, args[0])

    return vector(types.float32), generate


@intrinsic
def zero(typing_context):
    """All lanes 0."""
    return vector(), lambda context, builder, sig, args: _constant(0.0)


@intrinsic
def fma(typing_context, a, b, c):
    """`a * b + c`, rounded once."""
    return vector(vector, vector, vector), lambda context, builder, sig, args: _call(builder, "fma", *args)


@intrinsic
def sum_lanes(typing_context, value):
    """Sum over lanes (pairwise)."""

    def generate(context, builder, sig, args):
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR]), name)
        return builder.call(function, [ir.Constant(_FLOAT, 0.0), args[0]], fastmath=("reassoc",))

    return types.float32(vector), generate


def _at_least(builder: Any, x: Any, low: float) -> Any:
    """Compare and select, in the order that lets NaN through (LLVM's maxnum would swallow it)."""
    return builder.select(builder.fcmp_ordered("<", x, _constant(low)), _constant(low), x)


def _at_most(builder: Any, x: Any, high: float) -> Any:
    return builder.select(builder.fcmp_ordered(">", x, _constant(high)), _constant(high), x)


def _polynomial(builder: Any, coefficients: tuple[float, ...], x: Any) -> Any:
    result = _constant(coefficients[0])
    for coefficient in coefficients[1:]:
        result = _call(builder, "fma", result, x, _constant(coefficient))
    return result


def _exp2(builder: Any, x: Any) -> Any:
    """2^x, relative error below 2e-7."""
    return _exp2_scaled(builder, x) if LANES == 16 else _exp2_portable(builder, x)


def _exp2_scaled(builder: Any, x: Any) -> Any:
    """With AVX-512's scaling by a power of two: exact limits 0 and infinity, NaN stays NaN, and 5 operations fewer."""
    whole = _call(builder, "rint", x)
    mantissa = _polynomial(builder, _EXP2, builder.fsub(x, whole))
    mask_type, all_lanes, current_rounding = ir.IntType(16), -1, 4
    function_type = ir.FunctionType(_VECTOR, [_VECTOR, _VECTOR, _VECTOR, mask_type, _INT32])
    scale = cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.avx512.mask.scalef.ps.512")
    mask, rounding = ir.Constant(mask_type, all_lanes), ir.Constant(_INT32, current_rounding)
    return builder.call(scale, [mantissa, whole, mantissa, mask, rounding])


def _exp2_portable(builder: Any, x: Any) -> Any:
    """With integer addition to the exponent; saturates at about 2^-126 and 2^128 instead of 0 and infinity."""
    x = _at_most(builder, _at_least(builder, x, -126.0), 127.99)
    shifted = builder.fadd(x, _constant(_ROUND_MAGIC))
    fraction = builder.fsub(x, builder.fsub(shifted, _constant(_ROUND_MAGIC)))
    exponent = builder.shl(builder.bitcast(shifted, _INT_VECTOR), _int_constant(23))
    mantissa = builder.bitcast(_polynomial(builder, _EXP2, fraction), _INT_VECTOR)
    return builder.bitcast(builder.add(mantissa, exponent), _VECTOR)


def _exp2_of_product(builder: Any, d: Any, a: Any) -> Any:
    """With a table of eight powers of two: 8 operations on the multipliers' ports, where `_exp2_portable` takes 13.

    `d a` is rounded to eighths by adding a large number; the low three bits of the sum choose the table's entry, the
    next ones are added to its exponent (the table has what they bring along subtracted).
    """
    magic = _constant(_ROUND_MAGIC / 8)
    shifted = _call(builder, "fma", d, a, magic)
    fraction = _call(builder, "fma", d, a, builder.fsub(magic, shifted))
    bits = builder.bitcast(shifted, _INT_VECTOR)
    function_type = ir.FunctionType(_VECTOR, [_VECTOR, _INT_VECTOR])
    permute = cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.avx2.permps")
    entry = builder.bitcast(builder.call(permute, [builder.bitcast(_exp2_table(), _VECTOR), bits]), _INT_VECTOR)
    power = builder.bitcast(builder.add(entry, builder.shl(bits, _int_constant(20))), _VECTOR)
    return _call(builder, "fma", builder.fmul(power, fraction), _polynomial(builder, _EXP2_EIGHTH, fraction), power)


def _exp_of_minus(builder: Any, x: Any, magnitude: bool = False) -> Any:
    """e^-x, or e^-|x|; beyond `_EXP_LIMIT` it may stay what it is there."""
    if magnitude:
        x = _call(builder, "fabs", x)
    if not _HAS_TABLE:
        return _exp2(builder, builder.fmul(x, _constant(-LOG2_E)))
    x = _at_most(builder, x if magnitude else _at_least(builder, x, -_EXP_LIMIT), _EXP_LIMIT)
    return _exp2_of_product(builder, x, _constant(-LOG2_E))


def _exp2_table() -> Any:
    """Bits of 2^(i / 8) minus i * 2^20."""
    numbers = [np.float32(2.0 ** (i / 8)).view(np.int32) - (i << 20) for i in range(8)]
    return ir.Constant(_INT_VECTOR, [int(number) for number in numbers])


@intrinsic
def exp2_of_product(typing_context, d, a):
    """2^(d a), for |d a| < `EXP2_LIMIT` only (NaN stays NaN): cheaper than `exp2` where there is no AVX-512."""

    def generate(context, builder, sig, args):
        if _HAS_TABLE:
            return _exp2_of_product(builder, *args)
        return _exp2(builder, builder.fmul(*args, flags=_FUSE))

    return vector(vector, vector), generate


@intrinsic
def largest(typing_context, so_far, x):
    """The larger of `so_far` and |x| in each lane; a NaN in `x` is passed over."""

    def generate(context, builder, sig, args):
        magnitude = _call(builder, "fabs", args[1])
        return builder.select(builder.fcmp_ordered("<", args[0], magnitude), magnitude, args[0])

    return vector(vector, vector), generate


@intrinsic
def largest_lane(typing_context, value):
    """The largest lane."""

    def generate(context, builder, sig, args):
        name = f"llvm.vector.reduce.fmax.v{LANES}f32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_FLOAT, [_VECTOR]), name)
        return builder.call(function, args)

    return types.float32(vector), generate


@intrinsic
def exp2(typing_context, x):
    """2^x."""
    return vector(vector), lambda context, builder, sig, args: _exp2(builder, args[0])


@intrinsic
def exp_of_minus_magnitude(typing_context, x):
    """e^-|x|, the second argument of `softplus` and `softplus_slope`."""

    def generate(context, builder, sig, args):
        return _exp_of_minus(builder, args[0], magnitude=True)

    return vector(vector), generate


@intrinsic
def softplus(typing_context, x, t):
    """log(1 + e^x) as max(x, 0) + log1p(t), t = e^-|x|."""

    def generate(context, builder, sig, args):
        x, t = args
        tail = builder.fmul(t, _polynomial(builder, _LOG1P, t))
        return builder.fadd(_at_least(builder, x, 0.0), tail)

    return vector(vector, vector), generate


@intrinsic
def softplus_slope(typing_context, x, t):
    """The derivative of `softplus`, 1 / (1 + e^-x), from t = e^-|x|."""

    def generate(context, builder, sig, args):
        x, t = args
        above = builder.select(builder.fcmp_ordered("<", x, _constant(0.0)), t, _constant(1.0))
        return builder.fdiv(above, builder.fadd(_constant(1.0), t))

    return vector(vector, vector), generate


@intrinsic
def sigmoid(typing_context, x):
    """1 / (1 + e^-x)."""

    def generate(context, builder, sig, args):
        t = _exp_of_minus(builder, args[0])
        return builder.fdiv(_constant(1.0), builder.fadd(_constant(1.0), t))

    return vector(vector), generate


@intrinsic
def reciprocal_sqrt(typing_context, x):
    """1 / sqrt(x) of a float32 scalar, correctly rounded twice."""

    def generate(context, builder, sig, args):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_FLOAT, [_FLOAT]), "llvm.sqrt.f32")
        return builder.fdiv(ir.Constant(_FLOAT, 1.0), builder.call(function, args))

    return types.float32(types.float32), generate
