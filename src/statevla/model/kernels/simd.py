"""A SIMD vector of float32 for numba, `LANES` wide: its type, sums and products, and what reduces one.

numba has no vector type and, without Intel's SVML, no vectorised exponential (0.5 G/s per core against 16 G/s here).
Vectors are LLVM's own, so LLVM maps them to AVX-512, pairs of smaller registers, or NEON. Operators `+ - *` carry
LLVM's `contract` flag: a product and a sum may fuse. `memory.py` reads and writes them.
"""

# mypy: ignore-errors
# (numba's decorators change the signatures: an intrinsic is defined with one more argument than it is called with.)

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.imputils import lower_builtin
from numba.core.typing import signature
from numba.core.typing.templates import ConcreteTemplate, infer_global
from numba.extending import intrinsic, models, register_model


def cpu_features() -> frozenset[str]:
    """What code is compiled for, as `+avx2`: numba's settings, which may name another CPU than this one."""
    features = config.CPU_FEATURES
    if features is None:
        features = llvmlite.binding.get_host_cpu_features().flatten()
    return frozenset(features.split(","))


LANES = 16 if "+avx512f" in cpu_features() else 8  # floats in a register of AVX-512, else of AVX2 (two of NEON)

IS_X86 = "+sse2" in cpu_features()
HAS_BF16 = LANES == 16 and "+avx512bf16" in cpu_features()
"""The processor multiplies pairs of bfloat16 into float32."""


FLOAT, INT32 = ir.FloatType(), ir.IntType(32)
VECTOR = ir.VectorType(FLOAT, LANES)
INT_VECTOR = ir.VectorType(INT32, LANES)
FUSE = ("contract",)


class Float32Vector(types.Type):
    """numba's type of one vector."""

    def __init__(self) -> None:
        super().__init__(name=f"Float32x{LANES}")


vector = Float32Vector()


@register_model(Float32Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, VECTOR)


def constant(value: float) -> ir.Constant:
    """A vector of one number, for code that builds LLVM's."""
    return ir.Constant(VECTOR, [value] * LANES)


def int_constant(value: int) -> ir.Constant:
    """The same of int32."""
    return ir.Constant(INT_VECTOR, [value] * LANES)


def call_llvm(builder: Any, name: str, *args: Any) -> Any:
    """LLVM's vector intrinsic `name`, such as fma."""
    function_type = ir.FunctionType(VECTOR, [VECTOR] * len(args))
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.{name}.v{LANES}f32")
    return builder.call(function, args)


def _register_operator(function: Callable[..., Any], instruction: str) -> None:
    @infer_global(function)
    class _Template(ConcreteTemplate):
        cases = [signature(vector, vector, vector)]  # noqa: RUF012 (numba's interface)

    @lower_builtin(function, vector, vector)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(args[0], args[1], flags=FUSE)


for _function, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _register_operator(_function, _instruction)


def splatted(builder: Any, value: Any) -> Any:
    """A float32 in all lanes, for code that builds LLVM's."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    lane0 = builder.insert_element(undefined, value, ir.Constant(INT32, 0))
    return builder.shuffle_vector(lane0, undefined, int_constant(0))


@intrinsic
def splat(typing_context, value):
    """A float32 in all lanes."""

    def generate(context, builder, sig, args):
        return splatted(builder, args[0])

    return vector(types.float32), generate


@intrinsic
def zero(typing_context):
    """All lanes 0."""
    return vector(), lambda context, builder, sig, args: constant(0.0)


@intrinsic
def fma(typing_context, a, b, c):
    """`a * b + c`, rounded once."""
    return vector(vector, vector, vector), lambda context, builder, sig, args: call_llvm(builder, "fma", *args)


@intrinsic
def sum_lanes(typing_context, value):
    """Sum over lanes (pairwise)."""

    def generate(context, builder, sig, args):
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOAT, [FLOAT, VECTOR]), name)
        return builder.call(function, [ir.Constant(FLOAT, 0.0), args[0]], fastmath=("reassoc",))

    return types.float32(vector), generate


@intrinsic
def largest(typing_context, so_far, x):
    """The larger of `so_far` and |x| in each lane; a NaN in `x` is passed over."""

    def generate(context, builder, sig, args):
        magnitude = call_llvm(builder, "fabs", args[1])
        return builder.select(builder.fcmp_ordered("<", args[0], magnitude), magnitude, args[0])

    return vector(vector, vector), generate


@intrinsic
def largest_lane(typing_context, value):
    """The largest lane."""

    def generate(context, builder, sig, args):
        name = f"llvm.vector.reduce.fmax.v{LANES}f32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOAT, [VECTOR]), name)
        return builder.call(function, args)

    return types.float32(vector), generate


@intrinsic
def reciprocal_sqrt(typing_context, x):
    """1 / sqrt(x) of a float32 scalar, correctly rounded twice."""

    def generate(context, builder, sig, args):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOAT, [FLOAT]), "llvm.sqrt.f32")
        return builder.fdiv(ir.Constant(FLOAT, 1.0), builder.call(function, args))

    return types.float32(types.float32), generate


@intrinsic
def larger(typing_context, a, b):
    """The larger of two in each lane; `b` where one is NaN."""

    def generate(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[0], args[1])

    return vector(vector, vector), generate


@intrinsic
def quotient(typing_context, a, b):
    """`a / b`."""
    return vector(vector, vector), lambda context, builder, sig, args: builder.fdiv(*args)
