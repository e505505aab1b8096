"""Camera frames of the current state, on demand; meshes out of a camera's view are skipped without changing a pixel."""

from __future__ import annotations

import atexit
import weakref
from typing import Any

import mujoco
import numpy as np

from statevla.errors import UserError

CAMERAS = {"agentview": "agentview", "eye_in_hand": "robot0_eye_in_hand"}
"""This package's camera names → the simulator's."""
_VISUAL_GROUP = 1
_HIDDEN_GROUP = 5  # geom group that MuJoCo's default options do not draw
_CORNERS = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])


class Renderer:
    """Draws one simulation off screen; the OpenGL context is made at the first frame.

    Args:
        sim: robosuite's `MjSim`.
        cull: skip the meshes whose bounding boxes lie outside the view pyramid. Pixels are identical; the wrist
            camera, which sees a few objects only, becomes about twice as fast on a CPU.
    """

    def __init__(self, sim: Any, cull: bool = True) -> None:
        self._sim = sim
        self._model = sim.model._model
        self._data = sim.data._data
        self.cull = cull
        self._ready = False
        model = self._model
        self._meshes = np.flatnonzero(
            (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH) & (model.geom_group == _VISUAL_GROUP)
        )
        centres, half = model.geom_aabb[self._meshes, :3], model.geom_aabb[self._meshes, 3:]
        self._corners = centres[:, None] + half[:, None] * _CORNERS

    def render(self, camera: str, size: int) -> np.ndarray:
        """An upright RGB frame, uint8 `[size, size, 3]`, of the current state.

        Raises:
            UserError: there is no such camera.
        """
        name = CAMERAS.get(camera)
        if name is None:
            raise UserError(f"camera '{camera}': the simulator has {', '.join(CAMERAS)}; choose one of them")
        self._open()
        mujoco.mj_kinematics(self._model, self._data)  # positions may be one substep behind the state
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        hidden = self._outside_view(self._model.camera(name).id) if self.cull else self._meshes[:0]
        self._model.geom_group[hidden] = _HIDDEN_GROUP
        try:
            frame = self._sim.render(camera_name=name, width=size, height=size)
        finally:
            self._model.geom_group[hidden] = _VISUAL_GROUP
        return np.ascontiguousarray(frame[::-1])  # OpenGL's first row is the bottom one

    def _open(self) -> None:
        if self._ready:
            return
        from robosuite.utils.binding_utils import MjRenderContextOffscreen

        if self._sim._render_context_offscreen is None:
            MjRenderContextOffscreen(self._sim, device_id=-1)
            # Registered after EGL's own clean-up, so that it runs before: contexts outliving the display complain.
            atexit.register(_release, weakref.ref(self._sim))
        groups = self._sim._render_context_offscreen.vopt.geomgroup
        groups[0], groups[_VISUAL_GROUP] = 0, 1  # collision shapes hidden, visual ones drawn
        self._ready = True

    def _outside_view(self, camera: int) -> np.ndarray:
        """Visual meshes all of whose bounding-box corners lie beyond one side of the camera's view pyramid."""
        model, data = self._model, self._data
        rotations = data.geom_xmat[self._meshes].reshape(-1, 3, 3)
        corners = np.einsum("gij,gkj->gki", rotations, self._corners) + data.geom_xpos[self._meshes][:, None]
        x, y, z = np.moveaxis((corners - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3), -1, 0)
        reach = -z * np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)  # half the width of the view at that depth
        near = -model.vis.map.znear * model.stat.extent
        sides = (x > reach, x < -reach, y > reach, y < -reach, z > near)
        return self._meshes[np.any([side.all(1) for side in sides], axis=0)]


def _release(sim: weakref.ref[Any]) -> None:
    """Drop a simulation's rendering context."""
    alive = sim()
    if alive is not None:
        alive._render_context_offscreen = None
