"""What stands still before a camera that stands still: drawn once, and later only what moves on top of it."""

from __future__ import annotations

import numpy as np

from statevla.machine.kernel_cache import choose_kernel_cache

choose_kernel_cache()

from numba import njit  # noqa: E402  (it reads where its cache is when it is imported)

_LONG_STILL = 8
"""Frames after which what has come to rest joins a backdrop that is there already."""
_LEAST_SHARE = 0.1
"""Of a scene's faces, for which a backdrop is worth being drawn."""


class Backdrop:
    """Which parts of a scene one camera has seen standing still, and the picture of these alone.

    Attributes:
        is_fixed: bool `[N]`, the parts that the backdrop shows; None where there is none.
        picture: uint8 `[H, W, 3]`, as OpenGL has drawn it; None as long as it has not been drawn.
        depth: float32 `[H, W]`, of a depth buffer in which the nearest has the greatest value.
    """

    def __init__(self) -> None:
        self.is_fixed: np.ndarray | None = None
        self.picture: np.ndarray | None = None
        self.depth: np.ndarray | None = None
        self._surroundings: object = None
        self._poses = np.zeros((0, 0))
        self._age = np.zeros(0, np.int64)

    def look(self, poses: np.ndarray, surroundings: object, num_faces: np.ndarray) -> None:
        """Take in a frame that is to be drawn, before it is.

        Args:
            poses: float32 `[N, 12]` of the scene's parts, as they are drawn.
            surroundings: whatever else the parts' looks depend on, camera and lights above all; equal where it is the
                same.
            num_faces: `[N]`, what it costs to draw each part.
        """
        if surroundings != self._surroundings or poses.shape != self._poses.shape:
            self.is_fixed, self._age = None, np.zeros(len(poses), np.int64)
        else:
            self._age = np.where((poses == self._poses).all(axis=1), self._age + 1, 0)
        self._poses, self._surroundings = poses, surroundings
        if self.is_fixed is not None and not self._age[self.is_fixed].all():
            self.is_fixed = None
        still = self._age > (0 if self.is_fixed is None else _LONG_STILL)
        known = np.zeros(len(poses), bool) if self.is_fixed is None else self.is_fixed
        if num_faces[still & ~known].sum() > _LEAST_SHARE * num_faces.sum():
            self.is_fixed, self.picture = known | still, None


@njit(cache=True)
def drawn_before(picture, depth, moving, moving_depth):
    """Put a backdrop behind what moves, sample by sample as a depth test would.

    Args:
        picture, depth: of the backdrop.
        moving, moving_depth: of what moves alone, where it does not the depth is 0; the picture becomes the frame.

    Returns:
        Whether it could be told everywhere which of the two is nearer: not where both are equally near, as there it
        counts which of them is drawn later.
    """
    for row in range(len(depth)):
        for column in range(depth.shape[1]):
            if moving_depth[row, column] <= depth[row, column]:
                if moving_depth[row, column] == depth[row, column] and depth[row, column] > 0:
                    return False
                for channel in range(3):
                    moving[row, column, channel] = picture[row, column, channel]
    return True
