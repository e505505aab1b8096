"""A stage of the convolutional stem, backward. A task is a chunk of pictures, whose weights' gradients it sums.

The chunks do not depend on the number of threads, so that neither do the sums.
"""

# mypy: ignore-errors
# (numba's decorators change the signatures: an intrinsic is defined with one more argument than it is called with.)

from __future__ import annotations

import numpy as np
from numba import cfunc, njit, types

from statevla.model.kernels.exponential import sigmoid
from statevla.model.kernels.matmul_kernel import MAX_ROWS, TILE_BYTES, VECTORS, WIDTH, multiply_bf16
from statevla.model.kernels.memory import (
    as_address,
    interleave_bf16,
    load,
    load_bf16,
    load_int,
    load_scalar,
    store,
    store_bf16,
    store_interleaved_bf16,
    store_scalar,
)
from statevla.model.kernels.simd import LANES, fma, splat, zero
from statevla.model.kernels.staging import CACHE, FLOAT_BYTES, OPTIONS, VECTOR_BYTES, claim_scratch, claim_task
from statevla.model.kernels.stem_layout import (
    CHANNELS,
    CONVOLVED,
    FILM,
    GRAD_BIAS,
    GRAD_CHANNELS,
    GRAD_IN,
    GRAD_INNER,
    GRAD_OUT,
    GRAD_WEIGHT,
    GROUPS,
    IN,
    IN_CHANNELS,
    IN_SIDE,
    MEANS,
    NORM_BIAS,
    NORM_WEIGHT,
    OUT_HALO,
    PICTURES,
    PICTURES_PER_GROUP,
    PICTURES_PER_TASK,
    SCALES,
    SIDE,
    STEP,
    SUMS,
    TURNED_WEIGHT,
    WINDOW,
)


@njit(**OPTIONS)
def _behind_silu(p, picture, at, gradient):
    """One vector of channels: the gradient behind the SiLU, float32, and its two sums over the picture."""
    side, channels, halo = load_int(p, SIDE), load_int(p, CHANNELS), load_int(p, OUT_HALO)
    film, out_side = load_int(p, FILM), side + 2 * halo
    one = splat(np.float32(1.0))
    rstd, mean = load(load_int(p, SCALES), picture * channels + at), load(load_int(p, MEANS), picture * channels + at)
    slope, offset = load(load_int(p, NORM_WEIGHT), at), load(load_int(p, NORM_BIAS), at)
    if film != 0:
        stretch = one + load(film, picture * 2 * channels + at)
        slope, offset = slope * stretch, fma(offset, stretch, load(film, (picture * 2 + 1) * channels + at))
    convolved = load_int(p, CONVOLVED) + picture * side * side * channels * 2
    grad_out, inner = load_int(p, GRAD_OUT), load_int(p, GRAD_INNER)
    first_out, first_inner = picture * out_side * out_side * channels, picture * side * side * channels
    alone, times = zero(), zero()
    for line in range(side):
        source = first_out + ((line + halo) * out_side + halo) * channels + at
        for place in range(side):
            index = (line * side + place) * channels + at
            g = zero()
            if grad_out != 0:
                g = load_bf16(grad_out, source + place * channels)
            if inner != 0:
                g = g + load_bf16(inner, first_inner + index)
            normalised = (load_bf16(convolved, index) - mean) * rstd
            x = fma(normalised, slope, offset)
            s = sigmoid(x)
            g = g * (s * fma(x, one - s, one))
            store(gradient, index, g)
            alone, times = alone + g, fma(g, normalised, times)
    sums = load_int(p, GRAD_CHANNELS) + picture * 2 * channels * FLOAT_BYTES
    store(sums, at, alone)
    store(sums, channels + at, times)


@njit(**OPTIONS)
def _slopes(p, picture, slopes):
    """What a normalised value is multiplied by on its way to the SiLU."""
    channels, film, one = load_int(p, CHANNELS), load_int(p, FILM), splat(np.float32(1.0))
    for at in range(0, channels, LANES):
        slope = load(load_int(p, NORM_WEIGHT), at)
        if film != 0:
            slope = slope * (one + load(film, picture * 2 * channels + at))
        store(slopes, at, slope)


@njit(**OPTIONS)
def _group_means(sums, slopes, target, channels, per_group, count):
    """Per channel the mean over its group of slopes times sums."""
    for first in range(0, channels, per_group):
        total = np.float32(0.0)
        for channel in range(first, first + per_group):
            total += load_scalar(slopes, channel) * load_scalar(sums, channel)
        for channel in range(first, first + per_group):
            store_scalar(target, channel, total / count)


@njit(**OPTIONS)
def _behind_norm(p, picture, gradient, channel_scratch):
    """The gradient of the convolution's output, in place of the one behind the SiLU (Wu & He 2018, by hand)."""
    side, channels = load_int(p, SIDE), load_int(p, CHANNELS)
    places, per_group = side * side, channels // load_int(p, GROUPS)
    for at in range(0, channels, LANES):
        _behind_silu(p, picture, at, gradient)
    slopes, alone = channel_scratch, channel_scratch + channels * FLOAT_BYTES
    times = alone + channels * FLOAT_BYTES
    sums, count = load_int(p, GRAD_CHANNELS) + picture * 2 * channels * FLOAT_BYTES, np.float32(places * per_group)
    _slopes(p, picture, slopes)
    _group_means(sums, slopes, alone, channels, per_group, count)
    _group_means(sums + channels * FLOAT_BYTES, slopes, times, channels, per_group, count)
    convolved = load_int(p, CONVOLVED) + picture * places * channels * 2
    for at in range(0, channels, LANES):
        rstd = load(load_int(p, SCALES), picture * channels + at)
        mean = load(load_int(p, MEANS), picture * channels + at)
        slope, m_alone, m_times = load(slopes, at), load(alone, at), load(times, at)
        for place in range(places):
            index = place * channels + at
            normalised = (load_bf16(convolved, index) - mean) * rstd
            g = load(gradient, index) * slope - m_alone - normalised * m_times
            store(gradient, index, g * rstd)


@njit(**OPTIONS)
def _pack_gradient(p, gradient, rows, pairs, bias_sums):
    """The gradient in bfloat16: rows `[places, channels]`, pairs of places `[.., channels, 2]`; sums for the bias."""
    side, channels = load_int(p, SIDE), load_int(p, CHANNELS)
    places = side * side
    for at in range(0, channels, LANES):
        total = load(bias_sums, at)
        for place in range(places):
            g = load(gradient, place * channels + at)
            store_bf16(rows, place * channels + at, g)
            total = total + g
        store(bias_sums, at, total)
        for place in range(0, places, 2):
            second = load(gradient, (place + 1) * channels + at) if place + 1 < places else zero()
            store_interleaved_bf16(pairs, place * channels + 2 * at, load(gradient, place * channels + at), second)


@njit(**OPTIONS)
def _input_gradient(p, picture, rows, tile, wide):
    """The input's gradient: every place's, times the turned weights, added where its window lies."""
    in_side, in_channels, window = load_int(p, IN_SIDE), load_int(p, IN_CHANNELS), load_int(p, WINDOW)
    step, side, channels = load_int(p, STEP), load_int(p, SIDE), load_int(p, CHANNELS)
    run, next_window = window * in_channels, step * in_channels
    panels = (run + WIDTH - 1) // WIDTH
    size = in_side * in_side * in_channels
    for i in range(0, size, LANES):
        store(wide, i, zero())
    tiles = (side + MAX_ROWS - 1) // MAX_ROWS
    height = (side + tiles - 1) // tiles
    for window_row in range(window):
        for panel in range(panels):
            weights = load_int(p, TURNED_WEIGHT)
            weights += (window_row * panels + panel) * (channels // 2) * VECTORS * VECTOR_BYTES
            vectors = min(VECTORS, (run - panel * WIDTH + LANES - 1) // LANES)
            for line in range(side):
                for place in range(0, side, height):
                    count = min(height, side - place)
                    a = rows + (line * side + place) * channels * 2
                    multiply_bf16(count, a, channels * 2, 4, 0, 1, channels // 2, weights, tile)
                    corner = ((line * step + window_row) * in_side + place * step) * in_channels + panel * WIDTH
                    for row in range(count):
                        for v in range(vectors):
                            at = corner + row * next_window + v * LANES
                            store(wide, at, load(wide, at) + load(tile, (row * VECTORS + v) * LANES))
    target = load_int(p, GRAD_IN)
    for i in range(0, size, LANES):
        store_bf16(target, picture * size + i, load(wide, i))


@njit(**OPTIONS)
def _interleave_windows(p, picture, window_row, offset, target):
    """One panel's numbers of all windows of a picture, `[pairs, WIDTH, 2]`, a pair being two places in a row."""
    in_side, in_channels, side = load_int(p, IN_SIDE), load_int(p, IN_CHANNELS), load_int(p, SIDE)
    next_window = load_int(p, STEP) * in_channels * 2
    next_line = load_int(p, STEP) * in_side * in_channels * 2
    start = load_int(p, IN) + (picture * in_side + window_row) * in_side * in_channels * 2 + offset
    place, column, last = start, 0, side * side - 1
    for i in range(0, side * side, 2):
        first = place
        column += 1
        place += next_window
        if column == side:
            column = 0
            start += next_line
            place = start
        # Without a partner any finite numbers do: they meet a gradient of zero.
        second = place if i < last else first
        column += 1
        place += next_window
        if column == side:
            column = 0
            start += next_line
            place = start
        interleave_bf16(target, first, second)
        target += VECTORS * VECTOR_BYTES


@njit(**OPTIONS)
def _weight_gradient(p, first_picture, num_pictures, is_first, pairs, tile, panel_rows, target):
    """A group's weight gradient, float32 `[channels, window, padded run]`, added to what the ones before it gave."""
    window, channels, side = load_int(p, WINDOW), load_int(p, CHANNELS), load_int(p, SIDE)
    panels = (window * load_int(p, IN_CHANNELS) + WIDTH - 1) // WIDTH
    of_picture = (side * side + 1) // 2
    num_pairs = num_pictures * of_picture
    for window_row in range(window):
        for panel in range(panels):
            for i in range(num_pictures):
                there = panel_rows + i * of_picture * VECTORS * VECTOR_BYTES
                _interleave_windows(p, first_picture + i, window_row, panel * WIDTH * 2, there)
            for channel in range(0, channels, MAX_ROWS):
                count = min(MAX_ROWS, channels - channel)
                multiply_bf16(count, pairs + channel * 4, 4, channels * 4, 0, 1, num_pairs, panel_rows, tile)
                for row in range(count):
                    first = (((channel + row) * window + window_row) * panels + panel) * WIDTH
                    for v in range(VECTORS):
                        at = first + v * LANES
                        value = load(tile, (row * VECTORS + v) * LANES)
                        store(target, at, value if is_first else value + load(target, at))


@njit(**OPTIONS)
def _backward_task(p, task, scratch):
    """Scratch: a tile, a picture's gradient in float32 and bfloat16, channels' sums, the group's pairs, a panel, and
    the input's gradient in float32."""
    side, channels, per_group = load_int(p, SIDE), load_int(p, CHANNELS), load_int(p, PICTURES_PER_GROUP)
    window, places = load_int(p, WINDOW), side * side
    panels = (window * load_int(p, IN_CHANNELS) + WIDTH - 1) // WIDTH
    first = task * load_int(p, PICTURES_PER_TASK)
    last = min(load_int(p, PICTURES), first + load_int(p, PICTURES_PER_TASK))
    of_picture = (places + 1) // 2
    tile, gradient = scratch, scratch + TILE_BYTES
    sums = gradient + places * channels * FLOAT_BYTES
    panel_rows = sums + SUMS * channels * FLOAT_BYTES
    rows = panel_rows + per_group * of_picture * VECTORS * VECTOR_BYTES
    pairs = rows + places * channels * 2
    wide = pairs + per_group * of_picture * channels * 4
    grad_weight = load_int(p, GRAD_WEIGHT) + task * channels * window * panels * WIDTH * FLOAT_BYTES
    grad_bias = load_int(p, GRAD_BIAS) + task * channels * FLOAT_BYTES
    for group in range(first, last, per_group):
        in_group = min(per_group, last - group)
        for picture in range(group, group + in_group):
            if load_int(p, GROUPS) != 0:
                _behind_norm(p, picture, gradient, sums)
            else:
                source = load_int(p, GRAD_OUT)
                for i in range(0, places * channels, LANES):
                    store(gradient, i, load_bf16(source, picture * places * channels + i))
            of_this = pairs + (picture - group) * of_picture * channels * 4
            _pack_gradient(p, gradient, rows, of_this, grad_bias)
            if load_int(p, GRAD_IN) != 0:
                _input_gradient(p, picture, rows, tile, wide)
        _weight_gradient(p, group, in_group, group == first, pairs, tile, panel_rows, grad_weight)


@cfunc(types.void(types.voidptr), cache=CACHE)
def stem_backward(parameters):
    """Draw and run chunks until none is left."""
    p = as_address(parameters)
    scratch, task = claim_scratch(p), claim_task(p)
    while task >= 0:
        _backward_task(p, task, scratch)
        task = claim_task(p)
