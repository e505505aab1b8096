"""What `Rendering` means in worlds that MuJoCo draws.

`exact` draws full meshes, with the multisamples that the model asks for. `fast`, several times as fast on a CPU, draws
simplified meshes (128 pixels cannot show 300,000 triangles, but a CPU must transform them all), and smooths edges by
averaging 2 x 2 samples of a frame of twice the size; `canvas` says what it forgoes beside that.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from statevla.machine.kernel_cache import choose_kernel_cache
from statevla.types import Rendering

choose_kernel_cache()

from numba import njit  # noqa: E402  (it reads where its cache is when it is imported)

_SMALL_MESH = 1000  # faces; below, nothing is to be gained


def model_to_draw(model: Any, size: int, rendering: Rendering, cell: float) -> Any:
    """A copy of a MuJoCo model for the rendering context of frames of `size` pixels.

    Args:
        model: `mujoco.MjModel`.
        size: side of the frames (pixels).
        rendering: how they are drawn.
        cell: side of the cells (m) to which `fast` simplifies meshes.
    """
    fast = rendering == "fast"
    drawn = coarse_copy(model, cell) if fast else copy.copy(model)
    drawn.vis.global_.offwidth = drawn.vis.global_.offheight = 2 * size if fast else size
    if fast:
        drawn.vis.quality.offsamples = 0
    return drawn


def upright_frame(drawn: np.ndarray, rendering: Rendering) -> np.ndarray:
    """What OpenGL has drawn by `model_to_draw`, its bottom row first → the frame, uint8 `[size, size, 3]`."""
    if rendering != "fast":
        return np.ascontiguousarray(drawn[::-1])
    height, width, channels = drawn.shape
    frame = np.empty((height // 2, width // 2, channels), np.uint8)
    _halve(drawn, frame)
    return frame


def coarse_copy(model: Any, cell: float) -> Any:
    """A copy of a MuJoCo model, for a rendering context alone, whose large meshes are simplified.

    Vertices that share a cell of a cubic grid become the one nearest to their mean; faces that collapse or coincide
    are dropped (vertex clustering, Rossignac & Borrel 1993). Faces keep their corners' normals and texture
    coordinates. The physics' model is not touched.

    Args:
        model: `mujoco.MjModel`.
        cell: side of a cell (m).
    """
    coarse = copy.copy(model)
    for mesh in range(model.nmesh):
        first, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
        if count < _SMALL_MESH:
            continue
        vertices = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
        old = slice(first, first + count)
        faces = _representatives(vertices, cell)[model.mesh_face[old]]
        kept = _distinct(faces)
        new = slice(first, first + len(kept))
        coarse.mesh_face[new] = faces[kept]
        coarse.mesh_facenormal[new] = model.mesh_facenormal[old][kept]
        coarse.mesh_facetexcoord[new] = model.mesh_facetexcoord[old][kept]
        coarse.mesh_facenum[mesh] = len(kept)
    return coarse


def _representatives(vertices: np.ndarray, cell: float) -> np.ndarray:
    """For each of `[V, 3]` vertices the index of the one that stands for its cell, `[V]`."""
    x, y, z = np.floor((vertices - vertices.min(0)) / cell).astype(np.int64).T
    _, group = np.unique((x << 42) | (y << 21) | z, return_inverse=True)
    group = group.reshape(-1)
    size = np.bincount(group)
    mean = np.stack([np.bincount(group, axis) for axis in vertices.T], axis=1) / size[:, None]
    by_distance = np.lexsort((((vertices - mean[group]) ** 2).sum(1), group))
    nearest: np.ndarray = by_distance[np.cumsum(size) - size]
    return nearest[group]


def _distinct(faces: np.ndarray) -> np.ndarray:
    """Indices, ascending, of the faces `[F, 3]` that have three corners and are not another's repetition."""
    corners = np.sort(faces, axis=1)
    whole = np.flatnonzero((corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2]))
    a, b, c = corners[whole].astype(np.int64).T
    _, first = np.unique((a << 42) | (b << 21) | c, return_index=True)
    return whole[np.sort(first)]


@njit(cache=True)
def _halve(drawn, frame):
    """The means, rounded, of 2 x 2 samples: uint8 `[2H, 2W, C]`, its bottom row first → uint8 `[H, W, C]`, upright."""
    height, width, channels = frame.shape
    for row in range(height):
        upper, lower = drawn[2 * (height - 1 - row) + 1], drawn[2 * (height - 1 - row)]
        for column in range(width):
            for channel in range(channels):
                total = np.uint32(upper[2 * column, channel]) + np.uint32(upper[2 * column + 1, channel])
                total += np.uint32(lower[2 * column, channel]) + np.uint32(lower[2 * column + 1, channel])
                frame[row, column, channel] = (total + np.uint32(2)) >> np.uint32(2)
