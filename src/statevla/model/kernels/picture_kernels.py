"""The stem between its products: patches, group norms, keypoints. Activations lie as `[place, channel]`, float32."""

# mypy: ignore-errors
# (numba's decorators change the signatures: an intrinsic is defined with one more argument than it is called with.)

from __future__ import annotations

import numpy as np
from numba import njit

from statevla.model.kernels.exponential import LOG2_E, exp2, sigmoid
from statevla.model.kernels.memory import load, load_float_bits, load_int, load_scalar, store, store_scalar
from statevla.model.kernels.simd import LANES, fma, larger, quotient, reciprocal_sqrt, splat, zero
from statevla.model.kernels.staging import HEADER, OPTIONS, VECTOR_BYTES

# Slots of the patches: a picture `[C, S, S]` or `[S, S, C]` by its strides, windows, and the rows they become.
SOURCE, CHANNEL_STRIDE, ROW_STRIDE, COLUMN_STRIDE, CHANNELS, SIZE, WINDOW, STEP, PADDING = range(HEADER, HEADER + 9)
SIDE, OUT, OUT_STRIDE, LINES_PER_TASK = range(HEADER + 9, HEADER + 13)
# Slots of the group norm.
NORM_IN, NORM_STRIDE, NORM_PLACES, NORM_CHANNELS, NORM_GROUPS, NORM_EPS = range(HEADER, HEADER + 6)
NORM_WEIGHT, NORM_BIAS, NORM_FILM = range(HEADER + 6, HEADER + 9)
# Slots of the keypoints: maps `[S, S, K]` from fine to coarse (0: no coarse one).
FINE, FINE_STRIDE, FINE_SIDE, COARSE, COARSE_STRIDE, COARSE_SIDE, NUM_MAPS, PLACES = range(HEADER, HEADER + 8)
NUM_SLOTS = HEADER + 13


@njit(**OPTIONS)
def patches_task(p, task, scratch):
    """Windows of a picture as rows `(row, column, channel)`, zeros outside; a task is some lines of windows."""
    source, channel_stride = load_int(p, SOURCE), load_int(p, CHANNEL_STRIDE)
    row_stride, column_stride = load_int(p, ROW_STRIDE), load_int(p, COLUMN_STRIDE)
    channels, size, window = load_int(p, CHANNELS), load_int(p, SIZE), load_int(p, WINDOW)
    step, padding, side = load_int(p, STEP), load_int(p, PADDING), load_int(p, SIDE)
    out, out_stride, lines = load_int(p, OUT), load_int(p, OUT_STRIDE), load_int(p, LINES_PER_TASK)
    whole = channels // LANES * LANES if channel_stride == 1 else 0
    for line in range(task * lines, min(side, (task + 1) * lines)):
        for place in range(side):
            target = (line * side + place) * out_stride
            for i in range(window):
                y = line * step + i - padding
                for j in range(window):
                    x = place * step + j - padding
                    if 0 <= y < size and 0 <= x < size:
                        start = y * row_stride + x * column_stride
                        for channel in range(0, whole, LANES):
                            store(out, target + channel, load(source, start + channel))
                        for channel in range(whole, channels):
                            value = load_scalar(source, start + channel * channel_stride)
                            store_scalar(out, target + channel, value)
                    else:
                        for channel in range(channels):
                            store_scalar(out, target + channel, np.float32(0.0))
                    target += channels


@njit(**OPTIONS)
def average_groups(sums, channels, per_group, count):
    """Each channel's number replaced by its group's sum divided by `count`."""
    for first in range(0, channels, per_group):
        total = np.float32(0.0)
        for channel in range(first, first + per_group):
            total += load_scalar(sums, channel)
        for channel in range(first, first + per_group):
            store_scalar(sums, channel, total / count)


@njit(**OPTIONS)
def group_norm_task(p, task, scratch):
    """Group norm (Wu & He 2018) in place, then FiLM `x (1 + scale) + shift` where there is one, then SiLU."""
    x, stride = load_int(p, NORM_IN), load_int(p, NORM_STRIDE)
    places, channels = load_int(p, NORM_PLACES), load_int(p, NORM_CHANNELS)
    per_group, eps = channels // load_int(p, NORM_GROUPS), load_float_bits(p, NORM_EPS)
    weight, bias, film = load_int(p, NORM_WEIGHT), load_int(p, NORM_BIAS), load_int(p, NORM_FILM)
    vectors = (channels + LANES - 1) // LANES
    means, scales = scratch, scratch + vectors * VECTOR_BYTES
    count = np.float32(places * per_group)
    for v in range(vectors):
        total = zero()
        for place in range(places):
            total = total + load(x, place * stride + v * LANES)
        store(means, v * LANES, total)
    average_groups(means, channels, per_group, count)
    for v in range(vectors):
        middle, total = load(means, v * LANES), zero()
        for place in range(places):
            difference = load(x, place * stride + v * LANES) - middle
            total = fma(difference, difference, total)
        store(scales, v * LANES, total)
    average_groups(scales, channels, per_group, count)
    for channel in range(channels):
        store_scalar(scales, channel, reciprocal_sqrt(load_scalar(scales, channel) + eps))
    one = splat(np.float32(1.0))
    for v in range(vectors):
        at = v * LANES
        scale = load(scales, at) * load(weight, at)
        shift = load(bias, at) - load(means, at) * scale
        if film != 0:
            stretch = one + load(film, at)
            scale, shift = scale * stretch, fma(shift, stretch, load(film, channels + at))
        for place in range(places):
            y = fma(load(x, place * stride + at), scale, shift)
            store(x, place * stride + at, y * sigmoid(y))


@njit(**OPTIONS)
def _add_enlarged(p, first):
    """Bilinear enlargement of the coarse maps onto the fine ones (corners not aligned), one vector of maps."""
    fine, stride, side = load_int(p, FINE), load_int(p, FINE_STRIDE), load_int(p, FINE_SIDE)
    coarse, coarse_stride, coarse_side = load_int(p, COARSE), load_int(p, COARSE_STRIDE), load_int(p, COARSE_SIDE)
    ratio = np.float32(coarse_side) / np.float32(side)
    half, zero_scalar, one = np.float32(0.5), np.float32(0.0), np.float32(1.0)
    for i in range(side):
        y = max(zero_scalar, (np.float32(i) + half) * ratio - half)
        above = int(y)
        below, share_y = min(coarse_side - 1, above + 1), y - np.float32(above)
        for j in range(side):
            x = max(zero_scalar, (np.float32(j) + half) * ratio - half)
            left = int(x)
            right, share_x = min(coarse_side - 1, left + 1), x - np.float32(left)
            corner = first + above * coarse_side * coarse_stride
            top = fma(
                splat(share_x),
                load(coarse, corner + right * coarse_stride),
                splat(one - share_x) * load(coarse, corner + left * coarse_stride),
            )
            corner = first + below * coarse_side * coarse_stride
            bottom = fma(
                splat(share_x),
                load(coarse, corner + right * coarse_stride),
                splat(one - share_x) * load(coarse, corner + left * coarse_stride),
            )
            index = (i * side + j) * stride + first
            sum_ = fma(splat(share_y), bottom, fma(splat(one - share_y), top, load(fine, index)))
            store(fine, index, sum_)


@njit(**OPTIONS)
def keypoints_task(p, task, scratch):
    """Expected row and column, from -1 to 1, under the softmax of one vector of maps; rows first, then columns."""
    first = task * LANES
    fine, stride, side = load_int(p, FINE), load_int(p, FINE_STRIDE), load_int(p, FINE_SIDE)
    places, count = load_int(p, PLACES), load_int(p, NUM_MAPS)
    if load_int(p, COARSE) != 0:
        _add_enlarged(p, first)
    peak = load(fine, first)
    for place in range(1, side * side):
        peak = larger(peak, load(fine, place * stride + first))
    weight, rows, columns = zero(), zero(), zero()
    step = np.float32(2.0) / np.float32(max(1, side - 1))
    log2_e = splat(np.float32(LOG2_E))
    for i in range(side):
        in_row, along = zero(), zero()
        for j in range(side):
            share = exp2((load(fine, (i * side + j) * stride + first) - peak) * log2_e)
            in_row = in_row + share
            along = fma(share, splat(np.float32(j) * step - np.float32(1.0)), along)
        weight = weight + in_row
        columns = columns + along
        rows = fma(in_row, splat(np.float32(i) * step - np.float32(1.0)), rows)
    rows, columns = quotient(rows, weight), quotient(columns, weight)
    store(scratch, 0, rows)
    store(scratch, LANES, columns)
    for lane in range(min(LANES, count - first)):
        store_scalar(places, first + lane, load_scalar(scratch, lane))
        store_scalar(places, count + first + lane, load_scalar(scratch, LANES + lane))
