"""Exponentials of SIMD vectors: powers of two, softplus with its slope, sigmoid.

Three ways to a power of two: AVX-512 scales by one in a single instruction; AVX2 has a table of eight, where the
exponent is bounded; elsewhere integers are added to the exponent's bits.
"""

# mypy: ignore-errors
# (numba's decorators change the signatures: an intrinsic is defined with one more argument than it is called with.)

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from statevla.model.kernels.simd import (
    FUSE,
    INT32,
    INT_VECTOR,
    LANES,
    VECTOR,
    call_llvm,
    constant,
    cpu_features,
    int_constant,
    vector,
)

HAS_TABLE = LANES == 8 and "+avx2" in cpu_features()
"""`exp2_of_product` looks its powers up, and is cheaper than `exp2`."""
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
# erf(z) = 1 - (t q(t)) e^(-z²), t = 1 / (1 + p z), z >= 0; absolute error 1.5e-7 (Abramowitz & Stegun 7.1.26).
_ERF_SLOPE = 0.3275911
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_ROUND_MAGIC = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits
# 2^f = 1 + f q(f) on [-1/16, 1/16]; minimax, relative error 2.7e-8.
_EXP2_EIGHTH = (0.0554962232708931, 0.2402576357126236, 0.6931472420692444)
EXP2_LIMIT = 126.0  # |x| below which `exp2_of_product` is right
_EXP_LIMIT = 87.33  # times log2(e): 125.99


def _at_least(builder: Any, x: Any, low: float) -> Any:
    """Compare and select, in the order that lets NaN through (LLVM's maxnum would swallow it)."""
    return builder.select(builder.fcmp_ordered("<", x, constant(low)), constant(low), x)


def _at_most(builder: Any, x: Any, high: float) -> Any:
    return builder.select(builder.fcmp_ordered(">", x, constant(high)), constant(high), x)


def _polynomial(builder: Any, coefficients: tuple[float, ...], x: Any) -> Any:
    result = constant(coefficients[0])
    for coefficient in coefficients[1:]:
        result = call_llvm(builder, "fma", result, x, constant(coefficient))
    return result


def _exp2(builder: Any, x: Any) -> Any:
    """2^x, relative error below 2e-7."""
    return _exp2_scaled(builder, x) if LANES == 16 else _exp2_portable(builder, x)


def _exp2_scaled(builder: Any, x: Any) -> Any:
    """With AVX-512's scaling by a power of two: exact limits 0 and infinity, NaN stays NaN, and 5 operations fewer."""
    whole = call_llvm(builder, "rint", x)
    mantissa = _polynomial(builder, _EXP2, builder.fsub(x, whole))
    mask_type, all_lanes, current_rounding = ir.IntType(16), -1, 4
    function_type = ir.FunctionType(VECTOR, [VECTOR, VECTOR, VECTOR, mask_type, INT32])
    scale = cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.avx512.mask.scalef.ps.512")
    mask, rounding = ir.Constant(mask_type, all_lanes), ir.Constant(INT32, current_rounding)
    return builder.call(scale, [mantissa, whole, mantissa, mask, rounding])


def _exp2_portable(builder: Any, x: Any) -> Any:
    """With integer addition to the exponent; saturates at about 2^-126 and 2^128 instead of 0 and infinity."""
    x = _at_most(builder, _at_least(builder, x, -126.0), 127.99)
    shifted = builder.fadd(x, constant(_ROUND_MAGIC))
    fraction = builder.fsub(x, builder.fsub(shifted, constant(_ROUND_MAGIC)))
    exponent = builder.shl(builder.bitcast(shifted, INT_VECTOR), int_constant(23))
    mantissa = builder.bitcast(_polynomial(builder, _EXP2, fraction), INT_VECTOR)
    return builder.bitcast(builder.add(mantissa, exponent), VECTOR)


def _exp2_of_product(builder: Any, d: Any, a: Any) -> Any:
    """With a table of eight powers of two: 8 operations on the multipliers' ports, where `_exp2_portable` takes 13.

    `d a` is rounded to eighths by adding a large number; the low three bits of the sum choose the table's entry, the
    next ones are added to its exponent (the table has what they bring along subtracted).
    """
    magic = constant(_ROUND_MAGIC / 8)
    shifted = call_llvm(builder, "fma", d, a, magic)
    fraction = call_llvm(builder, "fma", d, a, builder.fsub(magic, shifted))
    bits = builder.bitcast(shifted, INT_VECTOR)
    function_type = ir.FunctionType(VECTOR, [VECTOR, INT_VECTOR])
    permute = cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.avx2.permps")
    entry = builder.bitcast(builder.call(permute, [builder.bitcast(_exp2_table(), VECTOR), bits]), INT_VECTOR)
    power = builder.bitcast(builder.add(entry, builder.shl(bits, int_constant(20))), VECTOR)
    return call_llvm(builder, "fma", builder.fmul(power, fraction), _polynomial(builder, _EXP2_EIGHTH, fraction), power)


def _exp_of_minus(builder: Any, x: Any, magnitude: bool = False) -> Any:
    """e^-x, or e^-|x|; beyond `_EXP_LIMIT` it may stay what it is there."""
    if magnitude:
        x = call_llvm(builder, "fabs", x)
    if not HAS_TABLE:
        return _exp2(builder, builder.fmul(x, constant(-LOG2_E)))
    x = _at_most(builder, x if magnitude else _at_least(builder, x, -_EXP_LIMIT), _EXP_LIMIT)
    return _exp2_of_product(builder, x, constant(-LOG2_E))


def _exp2_table() -> Any:
    """Bits of 2^(i / 8) minus i * 2^20."""
    numbers = [np.float32(2.0 ** (i / 8)).view(np.int32) - (i << 20) for i in range(8)]
    return ir.Constant(INT_VECTOR, [int(number) for number in numbers])


@intrinsic
def exp2_of_product(typing_context, d, a):
    """2^(d a), for |d a| < `EXP2_LIMIT` only (NaN stays NaN): cheaper than `exp2` where there is no AVX-512."""

    def generate(context, builder, sig, args):
        if HAS_TABLE:
            return _exp2_of_product(builder, *args)
        return _exp2(builder, builder.fmul(*args, flags=FUSE))

    return vector(vector, vector), generate


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
        above = builder.select(builder.fcmp_ordered("<", x, constant(0.0)), t, constant(1.0))
        return builder.fdiv(above, builder.fadd(constant(1.0), t))

    return vector(vector, vector), generate


@intrinsic
def sigmoid(typing_context, x):
    """1 / (1 + e^-x)."""

    def generate(context, builder, sig, args):
        t = _exp_of_minus(builder, args[0])
        return builder.fdiv(constant(1.0), builder.fadd(constant(1.0), t))

    return vector(vector), generate


@intrinsic
def gelu(typing_context, x):
    """x Φ(x), with the error function (Hendrycks & Gimpel 2016), not its approximation by tanh."""

    def generate(context, builder, sig, args):
        (x,) = args
        z = call_llvm(builder, "fabs", builder.fmul(x, constant(0.5**0.5)))
        t = builder.fdiv(constant(1.0), call_llvm(builder, "fma", z, constant(_ERF_SLOPE), constant(1.0)))
        tail = builder.fmul(builder.fmul(t, _polynomial(builder, _ERF, t)), _exp_of_minus(builder, builder.fmul(z, z)))
        # Φ(|x|) = 1 - tail / 2, Φ(-|x|) = tail / 2
        half = builder.fmul(constant(0.5), tail)
        is_negative = builder.fcmp_ordered("<", x, constant(0.0))
        return builder.fmul(x, builder.select(is_negative, half, builder.fsub(constant(1.0), half)))

    return vector(vector), generate
