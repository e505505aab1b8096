"""Whole batches of frames to floats, with augmentation, in one compiled pass.

A batch of 512 px·windows is memory traffic and little else, so shift, brightness, contrast, the float conversion and
the move of the channels are fused. The kernel runs on the calling thread and releases the interpreter's lock: loader
threads do not take cores from the trainer's own pool.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from statevla.config import AugmentationConfig
from statevla.machine.kernel_cache import choose_kernel_cache
from statevla.transforms import pixel_table

choose_kernel_cache()

import numba  # noqa: E402  (it reads where its cache is when it is imported)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def num_draws(num_cameras: int) -> int:
    """Uniform numbers that one window takes: a shift down and right per camera, brightness, contrast."""
    return 2 * num_cameras + 2


def item_draws(seed: int, epoch: int, indices: torch.Tensor, count: int) -> torch.Tensor:
    """Uniform numbers in [0, 1), float64 `[len(indices), count]`, a pure function of seed, epoch and item.

    So a window is augmented alike whatever the batch size, the number of processes, or where training was resumed.
    SplitMix64 (Steele, Lea, Flood 2014) as a counter-based generator.
    """
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.uint64(seed & 0xFFFFFFFFFFFFFFFF) + _GOLDEN) + np.uint64(epoch))
        item = _mix(key + _GOLDEN * (indices.numpy().astype(np.uint64) + np.uint64(1)))
        bits = _mix(item[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(value: Any) -> Any:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def frames_to_float(
    frames: torch.Tensor,
    augmentation: AugmentationConfig | None = None,
    draws: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Frames of windows as the model takes them.

    Args:
        frames: uint8 `[B, T, V, P, P, 3]`, upright.
        augmentation: its ranges; the same draw holds for all `T` frames of a window, shifts differ per camera.
        draws: uniform `[B, num_draws(V)]`; None converts without augmentation.
        out: where to write the result; made if None.

    Returns:
        float32 `[B, T, V, 3, P, P]`, in [-1, 1].
    """
    batch, _, cameras = frames.shape[:3]
    tables = pixel_table().expand(batch, 256)
    shifts = np.zeros((batch, cameras, 2), np.int64)
    if augmentation is not None and draws is not None:
        reach = augmentation.random_shift_px
        shifts = ((draws[:, : 2 * cameras] * (2 * reach + 1)).floor().long() - reach).view(batch, cameras, 2).numpy()
        signed = (2 * draws[:, 2 * cameras :] - 1).float()
        offset, gain = signed[:, :1] * augmentation.brightness, 1 + signed[:, 1:] * augmentation.contrast
        # Both are functions of the byte alone, so one table of 256 values per window holds them.
        tables = (tables * gain + offset).clamp_(-1, 1)
    if out is None:
        out = torch.empty((*frames.shape[:3], 3, *frames.shape[3:5]), dtype=torch.float32)
    _convert(frames.numpy(), np.ascontiguousarray(tables.numpy()), shifts, out.numpy())
    return out


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _convert(frames: np.ndarray, tables: np.ndarray, shifts: np.ndarray, out: np.ndarray) -> None:
    batch, time, cameras, height, width, _ = frames.shape
    for b in range(batch):
        table = tables[b]
        for t in range(time):
            for v in range(cameras):
                down, right = shifts[b, v, 0], shifts[b, v, 1]
                for y in range(height):
                    row = frames[b, t, v, min(max(y - down, 0), height - 1)]
                    for c in range(3):
                        target = out[b, t, v, c, y]
                        for x in range(width):
                            target[x] = table[row[min(max(x - right, 0), width - 1), c]]
