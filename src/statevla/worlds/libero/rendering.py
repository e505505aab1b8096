"""Camera frames of the current state, on demand.

Two ways to draw (`statevla.worlds.drawing`). `exact` is what robosuite draws: full meshes, four multisamples. `fast`,
several times as fast on a CPU, simplifies meshes to half a pixel at arm's length. For a policy trained on published
frames take `exact`.
"""

from __future__ import annotations

import atexit
import weakref
from typing import Any

import mujoco
import numpy as np

from statevla.errors import UserError
from statevla.types import Rendering
from statevla.worlds.drawing.canvas import Canvas

CAMERAS = {"agentview": "agentview", "eye_in_hand": "robot0_eye_in_hand"}
"""This package's camera names → the simulator's."""
_CELL_TIMES_SIZE = 0.384  # m: meshes for a frame of 128 pixels are simplified to cells of 3 mm
_VISUAL_GROUP = 1


class Renderer:
    """Draws one simulation off screen; the OpenGL context is made at the first frame.

    Args:
        sim: robosuite's `MjSim`.
        rendering: how frames are drawn.
        is_thrifty: see `statevla.worlds.drawing.canvas`.
    """

    def __init__(self, sim: Any, rendering: Rendering = "fast", is_thrifty: bool | None = None) -> None:
        self.rendering = rendering
        self._sim = sim
        self._model = sim.model._model
        self._data = sim.data._data
        self._is_thrifty = is_thrifty
        self._context: Any = None  # robosuite's, with the OpenGL context
        self._canvases: dict[int, Canvas] = {}  # by the side of the frame

    def render(self, camera: str, size: int) -> np.ndarray:
        """An upright RGB frame, uint8 `[size, size, 3]`, of the current state.

        Args:
            camera: by this package's name.
            size: side of the frame (pixels).

        Raises:
            UserError: there is no such camera.
        """
        name = CAMERAS.get(camera)
        if name is None:
            raise UserError(f"camera '{camera}': the simulator has {', '.join(CAMERAS)}; choose one of them")
        mujoco.mj_kinematics(self._model, self._data)  # positions may be one substep behind the state
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        return self.draw(name, size)

    def draw(self, camera: str, size: int) -> np.ndarray:
        """As `render`, but of the simulator's own camera of that name, with positions as they are."""
        return self._canvas(size).draw(self._model.camera(camera).id)

    def _canvas(self, size: int) -> Canvas:
        """What draws frames of this size; its OpenGL context is current."""
        self._open()
        self._context.gl_ctx.make_current()
        if size not in self._canvases:
            cell, option = _CELL_TIMES_SIZE / size, self._context.vopt
            self._canvases[size] = Canvas(self._model, self._data, option, size, self.rendering, cell, self._is_thrifty)
        return self._canvases[size]

    def release(self) -> None:
        """Free the OpenGL context and what is in it."""
        if self._context is not None:
            self._context.gl_ctx.make_current()
            for canvas in self._canvases.values():
                canvas.free()
            self._canvases.clear()
            self._context = self._sim._render_context_offscreen = None

    def _open(self) -> None:
        if self._context is not None:
            return
        from robosuite.utils.binding_utils import MjRenderContextOffscreen

        # robosuite evaluates the dynamics here, and the solver's next step would start from that: a first look would
        # change what happens, in the last bits at first.
        everything = mujoco.mjtState.mjSTATE_INTEGRATION
        before = np.zeros(mujoco.mj_stateSize(self._model, everything))
        mujoco.mj_getState(self._model, self._data, before, everything)
        self._context = MjRenderContextOffscreen(self._sim, device_id=-1)
        mujoco.mj_setState(self._model, self._data, before, everything)
        # Registered after EGL's own clean-up, so that it runs before: contexts outliving the display complain.
        atexit.register(_release, weakref.ref(self))
        self._context.con.free()  # its textures would be held twice
        groups = self._context.vopt.geomgroup
        groups[0], groups[_VISUAL_GROUP] = 0, 1  # collision shapes hidden, visual ones drawn


def _release(renderer: weakref.ref[Renderer]) -> None:
    alive = renderer()
    if alive is not None:
        alive.release()
