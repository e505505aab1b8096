"""What is over an object, such as an open drawer, and the way out from under it."""

from __future__ import annotations

import numpy as np

_OVERHANG_M = 0.008
"""What is higher than an object and this near to it, seen from above, is over it; outlines are rounded to 1 cm."""


def way_out(points: np.ndarray, obstacles: np.ndarray, gap: float = 0.02) -> np.ndarray:
    """The shortest way sideways `[2]` (m) to where an object can be lifted past what overhangs it; zero if free.

    Args:
        points: `[P, 3]`, of the object.
        obstacles: `[O, 3]`, points of everything else.
        gap: free space beside the object while it is lifted (m).
    """
    above = obstacles[obstacles[:, 2] > points[:, 2].max()]
    outline = np.unique(np.round(points[:, :2], 2), axis=0)
    above = np.unique(np.round(above[:, :2], 2), axis=0)
    above = above[np.linalg.norm(above - outline.mean(0), axis=1) < 0.4]

    def distance(shift: np.ndarray) -> float:
        return float(np.sqrt(((outline[:, None] + shift - above[None]) ** 2).sum(-1)).min())

    if not len(above) or distance(np.zeros(2)) > _OVERHANG_M:
        return np.zeros(2)
    for length in np.arange(0.01, 0.16, 0.01):
        ways = [length * np.array([np.cos(angle), np.sin(angle)]) for angle in np.deg2rad(np.arange(0, 360, 30))]
        best = max(ways, key=distance)
        if distance(best) > gap:
            return best
    return np.zeros(2)
