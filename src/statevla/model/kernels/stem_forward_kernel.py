"""A stage of the convolutional stem, forward: a task is one picture, which stays in the cache from end to end."""

# mypy: ignore-errors
# (numba's decorators change the signatures: an intrinsic is defined with one more argument than it is called with.)

from __future__ import annotations

import numpy as np
from numba import cfunc, njit, types

from statevla.model.kernels.exponential import sigmoid
from statevla.model.kernels.matmul_kernel import MAX_ROWS, TILE_BYTES, VECTORS, WIDTH, multiply_bf16
from statevla.model.kernels.memory import (
    as_address,
    load,
    load_float_bits,
    load_int,
    load_scalar,
    store,
    store_bf16,
    store_pixels_bf16,
    store_scalar,
)
from statevla.model.kernels.picture_kernels import average_groups
from statevla.model.kernels.simd import LANES, fma, reciprocal_sqrt, splat, zero
from statevla.model.kernels.staging import CACHE, FLOAT_BYTES, OPTIONS, VECTOR_BYTES, claim_scratch, claim_task
from statevla.model.kernels.stem_layout import (
    BIAS,
    CHANNELS,
    CONVOLVED,
    EPS,
    FILM,
    GROUPS,
    IN,
    IN_CHANNELS,
    IN_SIDE,
    INNER,
    MEANS,
    NORM_BIAS,
    NORM_WEIGHT,
    OUT,
    OUT_HALO,
    PIXELS,
    PIXELS_HALO,
    PIXELS_OUT,
    PIXELS_SIDE,
    PIXELS_STRIDE,
    SCALES,
    SIDE,
    STEP,
    WEIGHT,
    WINDOW,
)


@njit(**OPTIONS)
def _convolve(p, picture, tile, sums):
    """The convolution with its bias, float32 `[places, channels]`, to `sums`."""
    in_side, in_channels, window = load_int(p, IN_SIDE), load_int(p, IN_CHANNELS), load_int(p, WINDOW)
    step, side, channels, bias = load_int(p, STEP), load_int(p, SIDE), load_int(p, CHANNELS), load_int(p, BIAS)
    line_bytes, next_window = in_side * in_channels * 2, step * in_channels * 2
    source = load_int(p, IN) + picture * in_side * line_bytes
    pairs = window * in_channels // 2
    tiles = (side + MAX_ROWS - 1) // MAX_ROWS
    height = (side + tiles - 1) // tiles
    for column in range(0, channels, WIDTH):
        weights = load_int(p, WEIGHT) + column // WIDTH * window * pairs * VECTORS * VECTOR_BYTES
        vectors = min(VECTORS, (channels - column) // LANES)
        for line in range(side):
            for place in range(0, side, height):
                rows = min(height, side - place)
                a = source + line * step * line_bytes + place * next_window
                multiply_bf16(rows, a, next_window, 4, line_bytes, window, pairs, weights, tile)
                for v in range(vectors):
                    at = column + v * LANES
                    offset = load(bias, at)
                    for row in range(rows):
                        value = load(tile, (row * VECTORS + v) * LANES) + offset
                        store(sums, (line * side + place + row) * channels + at, value)


@njit(**OPTIONS)
def _normalise(p, picture, x, means, scales):
    """Mean and reciprocal deviation of every channel's group, of `x` and into the saved ones."""
    side, channels, groups = load_int(p, SIDE), load_int(p, CHANNELS), load_int(p, GROUPS)
    places, per_group, eps = side * side, channels // groups, load_float_bits(p, EPS)
    count = np.float32(places * per_group)
    for at in range(0, channels, LANES):
        total = zero()
        for place in range(places):
            total = total + load(x, place * channels + at)
        store(means, at, total)
    average_groups(means, channels, per_group, count)
    for at in range(0, channels, LANES):
        middle, total = load(means, at), zero()
        for place in range(places):
            difference = load(x, place * channels + at) - middle
            total = fma(difference, difference, total)
        store(scales, at, total)
    average_groups(scales, channels, per_group, count)
    saved_means, saved_scales = load_int(p, MEANS), load_int(p, SCALES)
    for channel in range(channels):
        scale = reciprocal_sqrt(load_scalar(scales, channel) + eps)
        store_scalar(scales, channel, scale)
        store_scalar(saved_means, picture * channels + channel, load_scalar(means, channel))
        store_scalar(saved_scales, picture * channels + channel, scale)


@njit(**OPTIONS)
def _clear(address, first, last):
    """Bfloat16 numbers `first` to `last`, whole vectors of them."""
    for i in range(first, last, LANES):
        store_bf16(address, i, zero())


@njit(**OPTIONS)
def _clear_halo(out, side, halo, channels):
    """Zeros around a picture of `side` places with its halo."""
    line = side * channels
    _clear(out, 0, halo * line)
    for i in range(halo, side - halo):
        _clear(out, i * line, i * line + halo * channels)
        _clear(out, (i + 1) * line - halo * channels, (i + 1) * line)
    _clear(out, (side - halo) * line, side * line)


@njit(**OPTIONS)
def _activate(p, picture, x, means, scales):
    """Group norm, FiLM and SiLU, into the activation inside its halo."""
    side, channels, halo = load_int(p, SIDE), load_int(p, CHANNELS), load_int(p, OUT_HALO)
    film, weight, bias = load_int(p, FILM), load_int(p, NORM_WEIGHT), load_int(p, NORM_BIAS)
    out_side = side + 2 * halo
    out = load_int(p, OUT) + picture * out_side * out_side * channels * 2
    inner = load_int(p, INNER)
    _clear_halo(out, out_side, halo, channels)
    one = splat(np.float32(1.0))
    for at in range(0, channels, LANES):
        scale = load(scales, at) * load(weight, at)
        shift = load(bias, at) - load(means, at) * scale
        if film != 0:
            stretch = one + load(film, picture * 2 * channels + at)
            scale = scale * stretch
            shift = fma(shift, stretch, load(film, (picture * 2 + 1) * channels + at))
        for line in range(side):
            target = ((line + halo) * out_side + halo) * channels + at
            for place in range(side):
                index = (line * side + place) * channels + at
                y = fma(load(x, index), scale, shift)
                y = y * sigmoid(y)
                store_bf16(out, target + place * channels, y)
                if inner != 0:
                    store_bf16(inner, picture * side * side * channels + index, y)


@njit(**OPTIONS)
def _forward_task(p, picture, scratch):
    side, channels = load_int(p, SIDE), load_int(p, CHANNELS)
    places = side * side
    tile, sums = scratch, scratch + TILE_BYTES
    means = sums + places * channels * FLOAT_BYTES
    scales = means + channels * FLOAT_BYTES
    _convolve(p, picture, tile, sums)
    convolved, first = load_int(p, CONVOLVED), picture * places * channels
    for i in range(0, places * channels, LANES):
        store_bf16(convolved, first + i, load(sums, i))
    if load_int(p, GROUPS) != 0:
        _normalise(p, picture, sums, means, scales)
        _activate(p, picture, sums, means, scales)


@cfunc(types.void(types.voidptr), cache=CACHE)
def stem_forward(parameters):
    """Draw and run pictures until none is left."""
    p = as_address(parameters)
    scratch, task = claim_scratch(p), claim_task(p)
    while task >= 0:
        _forward_task(p, task, scratch)
        task = claim_task(p)


@njit(**OPTIONS)
def _pixels_task(p, picture):
    """Float32 `[3, S, S]` to bfloat16 `[S + 2 halo, S + 2 halo, 4]`; S is a multiple of `LANES`."""
    side, halo = load_int(p, PIXELS_SIDE), load_int(p, PIXELS_HALO)
    size, wide = side * side, side + 2 * halo
    source, out = load_int(p, PIXELS), load_int(p, PIXELS_OUT) + picture * wide * wide * 8
    for i in range(0, wide * wide * 4 - LANES, LANES):
        store_bf16(out, i, zero())
    store_bf16(out, wide * wide * 4 - LANES, zero())
    for line in range(side):
        for place in range(0, side, LANES):
            at = picture * load_int(p, PIXELS_STRIDE) + line * side + place
            target = ((line + halo) * wide + halo + place) * 4
            store_pixels_bf16(out, target, load(source, at), load(source, at + size), load(source, at + 2 * size))


@cfunc(types.void(types.voidptr), cache=CACHE)
def stem_pixels(parameters):
    """Draw and pack pictures until none is left."""
    p = as_address(parameters)
    task = claim_task(p)
    while task >= 0:
        _pixels_task(p, task)
        task = claim_task(p)
