"""What forward and backward of a stem's stage share: parameter slots, and how pictures lie.

A stage is a strided convolution, and where it is not the last a group norm, FiLM and SiLU. Pictures are bfloat16
`[S + 2 halo, S + 2 halo, C]` with a border of zeros, as wide as the next convolution reaches out: then a row of its
window is one run of `window * C` numbers, and neighbouring windows begin `step * C` apart, without any copies.
"""

from __future__ import annotations

from statevla.model.kernels.matmul_kernel import TILE_BYTES, VECTORS, WIDTH
from statevla.model.kernels.staging import FLOAT_BYTES, HEADER, VECTOR_BYTES

# The convolution: input pictures, packed weights, and its output `[places, channels]`, bfloat16.
PICTURES, IN, IN_SIDE, IN_CHANNELS, WINDOW, STEP, SIDE, CHANNELS = range(HEADER, HEADER + 8)
WEIGHT, BIAS, CONVOLVED = range(HEADER + 8, HEADER + 11)
# Group norm (0 groups: none), FiLM (scale and shift of every picture; 0: none), means and reciprocal deviations.
GROUPS, EPS, NORM_WEIGHT, NORM_BIAS, FILM, MEANS, SCALES = range(HEADER + 11, HEADER + 18)
# The activation with its halo, and without one, for who reads it next to the following stage (0: nobody).
OUT, OUT_HALO, INNER = range(HEADER + 18, HEADER + 21)
# Backward: gradients of both (0: none; without norm that of the convolution's output), of the input (0: not wanted),
# by chunk of pictures of weight and bias, and by picture of norm and FiLM.
GRAD_OUT, GRAD_INNER, GRAD_IN, GRAD_WEIGHT, GRAD_BIAS, GRAD_CHANNELS = range(HEADER + 21, HEADER + 27)
# Weights with inputs as columns, for the input's gradient; pictures of a task, and those that share a product.
TURNED_WEIGHT, PICTURES_PER_TASK, PICTURES_PER_GROUP = range(HEADER + 27, HEADER + 30)
# The pictures that `stem_pixels` packs.
PIXELS, PIXELS_STRIDE, PIXELS_SIDE, PIXELS_OUT, PIXELS_HALO = range(HEADER, HEADER + 5)

SUMS = 4
"""Rows of channels in backward's scratch; whole vectors, so that what follows stays aligned."""


def forward_scratch_bytes(side: int, channels: int) -> int:
    """A tile, the convolved picture in float32, and two rows of channels."""
    return TILE_BYTES + (side * side + 2) * channels * FLOAT_BYTES


def backward_scratch_bytes(side: int, channels: int, in_side: int, in_channels: int, window: int, group: int) -> int:
    """See `_backward_task`."""
    places, pairs = side * side, group * ((side * side + 1) // 2)
    of_output = (places + SUMS) * channels * FLOAT_BYTES + places * channels * 2 + pairs * channels * 4
    of_input = (in_side * in_side * in_channels + (window + 1) * in_channels + 2 * WIDTH) * FLOAT_BYTES
    return TILE_BYTES + of_output + pairs * VECTORS * VECTOR_BYTES + of_input
