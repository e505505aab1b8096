"""Camera frames of the current state, on demand.

`exact` draws the package's meshes (322,000 faces, 0.11 s a frame on a CPU) with 8 samples a pixel; `fast` is 14 times
as fast, its meshes simplified to half a pixel at arm's length.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from statevla.types import Rendering
from statevla.worlds.fast_drawing import model_to_draw, upright_frame
from statevla.worlds.so101.scene import BACKEND, mujoco

_CELL_TIMES_SIZE = 0.5  # m: meshes for a frame of 128 pixels are simplified to cells of 4 mm


class Drawing:
    """Draws one model's data off screen; the OpenGL context is made at the first frame.

    Args:
        model: what is drawn.
        data: its state; positions are brought up to date before a frame is drawn.
        rendering: how frames are drawn.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, rendering: Rendering) -> None:
        self._model = model
        self._data = data
        self._rendering = rendering
        self._scene = mujoco.MjvScene(model, maxgeom=200)
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._contexts: dict[int, tuple[Any, mujoco.MjrContext]] = {}  # by the side of the frame

    def frame(self, camera: str, size: int) -> np.ndarray:
        """An upright RGB frame, uint8 `[size, size, 3]`, of the current state."""
        self._camera.fixedcamid = self._model.camera(camera).id
        mujoco.mj_kinematics(self._model, self._data)  # after a step, positions are one substep old
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        mujoco.mjv_updateScene(
            self._model, self._data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        window, context = self._context(size)
        window.make_current()
        side = context.offWidth
        drawn = np.empty((side, side, 3), np.uint8)
        view = mujoco.MjrRect(0, 0, side, side)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        mujoco.mjr_render(view, self._scene, context)
        mujoco.mjr_readPixels(drawn, None, view, context)
        return upright_frame(drawn, self._rendering)

    def close(self) -> None:
        """Free the OpenGL contexts."""
        for window, context in self._contexts.values():
            window.make_current()
            context.free()
            window.free()
        self._contexts.clear()

    def _context(self, size: int) -> tuple[Any, mujoco.MjrContext]:
        if size not in self._contexts:
            model = model_to_draw(self._model, size, self._rendering, _CELL_TIMES_SIZE / size)
            window = _new_window(model.vis.global_.offwidth)
            window.make_current()
            self._contexts[size] = (window, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100))
        return self._contexts[size]


def _new_window(side: int) -> Any:
    """An off-screen OpenGL context. By the backend's own module: `mujoco.GLContext` is fixed when MuJoCo is imported,
    which another world may have done before a backend was chosen."""
    if BACKEND in ("egl", "osmesa"):
        return importlib.import_module(f"mujoco.{BACKEND}").GLContext(side, side)
    return mujoco.GLContext(side, side)
