"""Camera frames of the current state, on demand.

`exact` draws the package's meshes (322,000 faces, 0.11 s a frame on a CPU) with 8 samples a pixel; `fast` is 14 times
as fast, its meshes simplified to half a pixel at arm's length.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from statevla.types import Rendering
from statevla.worlds.so101.scene import BACKEND, mujoco

from statevla.worlds.drawing.canvas import Canvas  # isort: skip  (after MuJoCo, whose backend has to be chosen first)

_CELL_TIMES_SIZE = 0.5  # m: meshes for a frame of 128 pixels are simplified to cells of 4 mm


class Drawing:
    """Draws one model's data off screen; the OpenGL context is made at the first frame.

    Args:
        model: what is drawn.
        data: its state; positions are brought up to date before a frame is drawn.
        rendering: how frames are drawn.
        is_thrifty: see `canvas`.
    """

    def __init__(
        self, model: mujoco.MjModel, data: mujoco.MjData, rendering: Rendering, is_thrifty: bool | None = None
    ) -> None:
        self._model = model
        self._data = data
        self._rendering = rendering
        self._is_thrifty = is_thrifty
        self._option = mujoco.MjvOption()
        self._canvases: dict[int, tuple[Any, Canvas]] = {}  # by the side of the frame, with their OpenGL contexts

    def frame(self, camera: str, size: int) -> np.ndarray:
        """An upright RGB frame, uint8 `[size, size, 3]`, of the current state."""
        mujoco.mj_kinematics(self._model, self._data)  # after a step, positions are one substep old
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        return self._canvas(size).draw(self._model.camera(camera).id)

    def close(self) -> None:
        """Free the OpenGL contexts."""
        for window, canvas in self._canvases.values():
            window.make_current()
            canvas.free()
            window.free()
        self._canvases.clear()

    def _canvas(self, size: int) -> Canvas:
        """What draws frames of this size; its OpenGL context is current."""
        if size not in self._canvases:
            window = _new_window(2 * size)
            window.make_current()
            cell = _CELL_TIMES_SIZE / size
            canvas = Canvas(self._model, self._data, self._option, size, self._rendering, cell, self._is_thrifty)
            self._canvases[size] = window, canvas
        window, canvas = self._canvases[size]
        window.make_current()
        return canvas


def _new_window(side: int) -> Any:
    """An off-screen OpenGL context. By the backend's own module: `mujoco.GLContext` is fixed when MuJoCo is imported,
    which another world may have done before a backend was chosen."""
    if BACKEND in ("egl", "osmesa"):
        return importlib.import_module(f"mujoco.{BACKEND}").GLContext(side, side)
    return mujoco.GLContext(side, side)
