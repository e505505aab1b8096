"""Camera frames of the current state, on demand; meshes out of a camera's view are skipped without changing a pixel.

Two ways to draw (`statevla.worlds.fast_drawing`). `exact` is what robosuite draws: full meshes, four multisamples.
`fast`, more than three times as fast on a CPU, simplifies meshes to half a pixel at arm's length. For a policy trained
on published frames take `exact`.
"""

from __future__ import annotations

import atexit
import weakref
from typing import Any

import mujoco
import numpy as np

from statevla.errors import UserError
from statevla.types import Rendering
from statevla.worlds.fast_drawing import model_to_draw, upright_frame

CAMERAS = {"agentview": "agentview", "eye_in_hand": "robot0_eye_in_hand"}
"""This package's camera names → the simulator's."""
_CELL_TIMES_SIZE = 0.384  # m: meshes for a frame of 128 pixels are simplified to cells of 3 mm
_VISUAL_GROUP = 1
_HIDDEN_GROUP = 5  # geom group that MuJoCo's default options do not draw
_CORNERS = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])


class Renderer:
    """Draws one simulation off screen; the OpenGL context is made at the first frame.

    Args:
        sim: robosuite's `MjSim`.
        rendering: how frames are drawn.
        cull: skip the meshes whose bounding boxes lie outside the view pyramid. Pixels are identical; the wrist
            camera, which sees a few objects only, becomes about twice as fast on a CPU.
    """

    def __init__(self, sim: Any, rendering: Rendering = "fast", cull: bool = True) -> None:
        self.rendering = rendering
        self._sim = sim
        self._model = sim.model._model
        self._data = sim.data._data
        self.cull = cull
        self._context: Any = None  # robosuite's, with the OpenGL context
        self._buffers: dict[int, Any] = {}  # side of the frame → what draws it
        model = self._model
        self._meshes = np.flatnonzero(
            (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH) & (model.geom_group == _VISUAL_GROUP)
        )
        centres, half = model.geom_aabb[self._meshes, :3], model.geom_aabb[self._meshes, 3:]
        self._corners = centres[:, None] + half[:, None] * _CORNERS

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
        self._open()
        buffer = self._buffer(size)
        hidden = self.outside_view(camera) if self.cull else self._meshes[:0]
        self._model.geom_group[hidden] = _HIDDEN_GROUP
        try:
            return upright_frame(self._draw(buffer, camera), self.rendering)
        finally:
            self._model.geom_group[hidden] = _VISUAL_GROUP

    def outside_view(self, camera: str) -> np.ndarray:
        """Numbers of the visual meshes that the simulator's camera of that name does not see.

        All corners of their bounding boxes lie beyond one side of its view pyramid.
        """
        model, data, number = self._model, self._data, self._model.camera(camera).id
        rotations = data.geom_xmat[self._meshes].reshape(-1, 3, 3)
        corners = np.einsum("gij,gkj->gki", rotations, self._corners) + data.geom_xpos[self._meshes][:, None]
        x, y, z = np.moveaxis((corners - data.cam_xpos[number]) @ data.cam_xmat[number].reshape(3, 3), -1, 0)
        reach = -z * np.tan(np.deg2rad(model.cam_fovy[number]) / 2)  # half the width of the view at that depth
        near = -model.vis.map.znear * model.stat.extent
        sides = (x > reach, x < -reach, y > reach, y < -reach, z > near)
        return self._meshes[np.any([side.all(1) for side in sides], axis=0)]

    def _draw(self, buffer: Any, camera: str) -> np.ndarray:
        """The buffer's frame, bottom row first."""
        context = self._context
        context.gl_ctx.make_current()
        context.cam.type, context.cam.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self._model.camera(camera).id
        mujoco.mjv_updateScene(
            self._model, self._data, context.vopt, context.pert, context.cam, mujoco.mjtCatBit.mjCAT_ALL, context.scn
        )
        # A buffer no larger than the frame: clearing and resolving robosuite's 640 x 480 takes longer than drawing.
        frame = np.empty((buffer.offHeight, buffer.offWidth, 3), np.uint8)
        view = mujoco.MjrRect(0, 0, buffer.offWidth, buffer.offHeight)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, buffer)
        mujoco.mjr_render(view, context.scn, buffer)
        mujoco.mjr_readPixels(frame, None, view, buffer)
        return frame

    def _buffer(self, size: int) -> Any:
        """The rendering context for frames of this size."""
        if size not in self._buffers:
            model = model_to_draw(self._model, size, self.rendering, _CELL_TIMES_SIZE / size)
            self._context.gl_ctx.make_current()
            self._buffers[size] = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        return self._buffers[size]

    def release(self) -> None:
        """Free the OpenGL context and what is in it."""
        if self._context is not None:
            self._context.gl_ctx.make_current()
            for buffer in self._buffers.values():
                buffer.free()
            self._buffers.clear()
            self._context = self._sim._render_context_offscreen = None

    def _open(self) -> None:
        if self._context is not None:
            return
        from robosuite.utils.binding_utils import MjRenderContextOffscreen

        self._context = MjRenderContextOffscreen(self._sim, device_id=-1)
        # Registered after EGL's own clean-up, so that it runs before: contexts outliving the display complain.
        atexit.register(_release, weakref.ref(self))
        self._context.con.free()  # its textures would be held twice
        groups = self._context.vopt.geomgroup
        groups[0], groups[_VISUAL_GROUP] = 0, 1  # collision shapes hidden, visual ones drawn


def _release(renderer: weakref.ref[Renderer]) -> None:
    alive = renderer()
    if alive is not None:
        alive.release()
