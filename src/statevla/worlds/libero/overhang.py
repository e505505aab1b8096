"""What is over an object or its place, such as an open drawer, and the way past it."""

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
    outline = _from_above(points)
    above = _from_above(obstacles[obstacles[:, 2] > points[:, 2].max()])
    above = above[np.linalg.norm(above - outline.mean(0), axis=1) < 0.4]

    def distance(shift: np.ndarray) -> float:
        return _gap(outline + shift, above)

    if not len(above) or distance(np.zeros(2)) > _OVERHANG_M:
        return np.zeros(2)
    for length in np.arange(0.01, 0.16, 0.01):
        ways = [length * np.array([np.cos(angle), np.sin(angle)]) for angle in np.deg2rad(np.arange(0, 360, 30))]
        best = max(ways, key=distance)
        if distance(best) > gap:
            return best
    return np.zeros(2)


def way_in(points: np.ndarray, walls: np.ndarray, above: np.ndarray, gap: float = 0.02) -> np.ndarray:
    """The way sideways `[2]` (m) from the middle of a compartment to where an object comes down past what overhangs it.

    Args:
        points: `[P, 3]`, of the object in the middle of the compartment.
        walls: `[W, 3]`, points of the compartment's walls, that the object stays between.
        above: `[A, 3]`, points of what is over the compartment.
        gap: free space wanted beside the object (m); less where there is no more, and none is no reason to move.
    """
    outline, around, over = _from_above(points), _from_above(walls), _from_above(above)
    if not len(over) or _gap(outline, over) > gap:
        return np.zeros(2)
    steps = np.arange(-0.05, 0.051, 0.01)
    ways = [np.array([x, y]) for x in steps for y in steps]
    free = [way for way in ways if not len(around) or _gap(outline + way, around) > _OVERHANG_M]

    def covered(way: np.ndarray) -> float:
        distances = np.sqrt(((outline[:, None] + way - over[None]) ** 2).sum(-1)).min(1)
        return float((distances < gap).sum()) + 10.0 * float(np.linalg.norm(way))

    return min(free, key=covered, default=np.zeros(2))


def _from_above(points: np.ndarray) -> np.ndarray:
    """Points seen from above on a grid of 1 cm, without duplicates: `[P, 2]`."""
    return np.unique(np.round(points[:, :2], 2), axis=0)


def _gap(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt(((first[:, None] - second[None]) ** 2).sum(-1)).min())
