"""MuJoCo draws a plane as a grid of up to 200 x 200 squares, most of them out of view: those need not be drawn.

The squares that are left are MuJoCo's own (`makePlane` in its render_context.c), in its order, so that no pixel
changes.
"""

from __future__ import annotations

import numpy as np

from statevla.worlds.drawing.visible_faces import View

_MOST_LINES = 200
_BEYOND_PX = 1.0


class PlaneGrid:
    """The squares of one plane of limited size, and an OpenGL display list of those in view.

    Args:
        size: `[3]`, half the sides and the least distance of lines, as of a geom (m).
    """

    def __init__(self, size: np.ndarray) -> None:
        x, y = (_lines(float(side), float(size[2])) for side in size[:2])
        lower, upper = np.meshgrid(x[:-1], y[:-1], indexing="ij"), np.meshgrid(x[1:], y[1:], indexing="ij")
        corners = [(lower, lower), (upper, lower), (upper, upper), (lower, upper)]
        self._corners = np.stack([np.stack([a[0].ravel(), b[1].ravel()], -1) for a, b in corners], axis=1)
        self._coordinates = (self._corners + size[:2]) / (2.0 * size[:2])
        self._coordinates[..., 1] = 1.0 - self._coordinates[..., 1]
        self._list = 0
        self._seen_from: bytes = b""

    def __len__(self) -> int:
        return len(self._corners)

    def display_list(self, view: View, position: np.ndarray, rotation: np.ndarray) -> int:
        """The name of a display list of what is in view; the OpenGL context has to be current.

        Args:
            view: who looks.
            position: `[3]` of the plane (m).
            rotation: `[3, 3]` of the plane.
        """
        from OpenGL import GL

        turned, moved = view.axes.T @ rotation, (position - view.position) @ view.axes
        seen_from = turned.tobytes() + moved.tobytes() + np.array([view.focal_px, view.side]).tobytes()
        if seen_from != self._seen_from:
            self._seen_from = seen_from
            rows = self._in_view(view, turned, moved)
            self._list = self._list or GL.glGenLists(1)
            GL.glNewList(self._list, GL.GL_COMPILE)
            GL.glBegin(GL.GL_QUADS)
            GL.glNormal3d(0.0, 0.0, 1.0)
            for corner, coordinate in zip(self._corners[rows].reshape(-1, 2), self._coordinates[rows].reshape(-1, 2)):
                GL.glTexCoord2d(*coordinate)
                GL.glVertex3d(*corner, 0.0)
            GL.glEnd()
            GL.glEndList()
        return self._list

    def _in_view(self, view: View, turned: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Numbers of the squares that are not wholly beyond one side of the frame, or behind the camera."""
        x, y, z = np.moveaxis(self._corners @ turned[:, :2].T + moved, -1, 0)
        reach = -z * (0.5 * view.side + _BEYOND_PX) / view.focal_px
        beyond = (x > reach, x < -reach, y > reach, y < -reach, z > 0.0)
        return np.flatnonzero(~np.any([side.all(axis=1) for side in beyond], axis=0))


def _lines(side: float, least: float) -> np.ndarray:
    """Where lines cross one direction of a plane, float64; its first and its last squares take what is left over."""
    distance = max(least, side / (_MOST_LINES - 2))
    count = int(side / max(1e-15, distance)) // 2 * 2
    rest = side - count * distance
    inner = [-side + rest + number * distance * 2 for number in range(count + 1)]
    return np.array([-side, *inner, inner[-1] + rest])
