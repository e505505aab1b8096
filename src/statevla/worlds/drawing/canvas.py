"""Frames of one size of what a simulation shows, drawn by MuJoCo; on a CPU with as few triangles as will do.

Whichever way a frame comes about, its pixels are those of `mjr_render` of the whole scene:

- faces of meshes that leave no trace are left out (`visible_faces`);
- what stands still before a camera that stands still is drawn once (`backdrop`), unless something can be seen through;
- what is fully transparent is not drawn.

But for two things that cost a CPU as much as the frame and show little, if it is drawn `fast`. What all but cannot be
seen is not. And what reflects shows to a still camera what stands still itself, to one that moves nothing.

Scenes with shadows, and whatever else `cast` does not know of, are drawn whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mujoco  # its backend has been chosen by whoever opened an OpenGL context
import numpy as np

from statevla.types import Rendering
from statevla.worlds.backend import draws_on_cpu
from statevla.worlds.drawing.backdrop import Backdrop, drawn_before
from statevla.worlds.drawing.cast import Cast, take_stock
from statevla.worlds.drawing.drawn_model import model_to_draw, upright_frame
from statevla.worlds.drawing.plane_grid import PlaneGrid
from statevla.worlds.drawing.visible_faces import MeshFaces, View

_SKYBOX, _REFLECTION = int(mujoco.mjtRndFlag.mjRND_SKYBOX), int(mujoco.mjtRndFlag.mjRND_REFLECTION)
_BOX, _PLANE, _MESH = (int(getattr(mujoco.mjtGeom, f"mjGEOM_{kind}")) for kind in ("BOX", "PLANE", "MESH"))
_GEOM = int(mujoco.mjtObj.mjOBJ_GEOM)
_LARGE_GRID = 5000  # faces; a plane with fewer is drawn as it is
_LARGE_SCENE = 30_000  # faces; with fewer, it takes longer to find those that are needed than to draw all
_FAINTEST = 0.15  # of LIBERO's wine rack, a board of 0.1
_LOOKS = (
    *("geom_rgba", "geom_group", "geom_matid", "site_rgba", "site_group", "site_matid"),
    *("mat_rgba", "mat_reflectance", "light_active", "light_castshadow"),
)
"""What of a model a simulation may change between two frames."""


class Canvas:
    """Draws one simulation; its OpenGL context has to be current.

    Args:
        model, data: the simulation's `mujoco.MjModel` and `MjData`.
        option: `mujoco.MjvOption`, which says what is drawn.
        size: side of the frames (pixels).
        rendering: how they are drawn, see `drawn_model`.
        cell: side of the cells (m) to which `fast` simplifies meshes.
        is_thrifty: draw no triangle in vain; by default where a CPU draws them.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        option: Any,
        size: int,
        rendering: Rendering,
        cell: float,
        is_thrifty: bool | None = None,
    ) -> None:
        self._model, self._data, self._option, self._rendering = model, data, option, rendering
        self._drawn = model_to_draw(model, size, rendering, cell)
        self._drawn.mesh_graphadr[:] = -1  # convex hulls are never shown
        self._faces = MeshFaces(self._drawn) if (draws_on_cpu() if is_thrifty is None else is_thrifty) else None
        self._context = mujoco.MjrContext(self._drawn, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._other_lists = 0 if self._faces is None else self._new_lists()
        self._side = self._context.offWidth
        self._depth = np.empty((self._side, self._side), np.float32)
        self._is_multisampled = self._drawn.vis.quality.offsamples > 0
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._cast: Cast | None = None
        self._faintest = _FAINTEST if rendering == "fast" else 0.0
        self._looks = b""
        self._backdrops: dict[int, Backdrop] = {}
        self._grids: dict[tuple[int, int], PlaneGrid] = {}  # by plane and camera

    def draw(self, camera: int) -> np.ndarray:
        """An upright RGB frame, uint8 `[size, size, 3]`, of what camera number `camera` sees; positions as they are."""
        self._camera.fixedcamid = camera
        frame = None if self._faces is None else self._thrifty(camera, self._faces)
        if frame is None:
            cast = self._present_cast()
            with cast.only(self._model, np.ones(len(cast), bool)):
                self._update()
            self._scene.flags[_REFLECTION] = not (self._rendering == "fast" and self._moves(camera))
            frame = self._render()
        return upright_frame(frame, self._rendering)

    def free(self) -> None:
        """Free what lies in the OpenGL context."""
        self._context.free()

    def _new_lists(self) -> int:
        """Display lists beside MuJoCo's for each mesh; how far from MuJoCo's they are in OpenGL's numbering."""
        from OpenGL import GL

        first: int = GL.glGenLists(2 * self._model.nmesh)
        return first - self._context.baseMesh

    def _thrifty(self, camera: int, faces: MeshFaces) -> np.ndarray | None:
        """The frame as OpenGL draws it, its bottom row first; None where the scene has to be drawn whole."""
        cast, model, data = self._present_cast(), self._model, self._data
        if cast.is_odd or model.cam_orthographic[camera] or model.cam_sensorsize[camera].any():
            return None
        backdrop = self._backdrops.setdefault(camera, Backdrop())
        eye = (data.cam_xpos[camera], data.cam_xmat[camera], model.cam_fovy[camera], data.light_xpos, data.light_xdir)
        surroundings = (self._looks, *(values.tobytes() for values in eye))
        backdrop.look(cast.poses(data), surroundings, cast.costs(faces.num_faces))
        plain = replace(cast, mirrors=())
        if self._rendering == "fast" and self._moves(camera):
            cast = plain
        is_divisible = not (self._is_multisampled or cast.has_glass or self._behind_plane(camera, cast))
        if is_divisible and backdrop.is_fixed is not None and self._may_stay(cast, backdrop.is_fixed):
            if backdrop.picture is None:
                backdrop.depth = np.empty((self._side, self._side), np.float32)
                backdrop.picture = self._part(camera, cast, faces, backdrop.is_fixed, backdrop.depth)
            moving = self._part(camera, plain, faces, ~backdrop.is_fixed, self._depth, has_sky=False)
            if drawn_before(backdrop.picture, backdrop.depth, moving, self._depth):
                return moving
        return self._part(camera, cast, faces, np.ones(len(cast), bool))

    def _moves(self, camera: int) -> bool:
        """Whether a camera is attached to what moves."""
        return bool(self._model.body_weldid[self._model.cam_bodyid[camera]] != 0)

    def _may_stay(self, cast: Cast, is_fixed: np.ndarray) -> bool:
        """Whether what reflects, if anything does, may be drawn with what is fixed alone."""
        reflects = np.isin(cast.geoms, cast.mirrors)
        return not cast.mirrors or (self._rendering == "fast" and bool(is_fixed[: len(reflects)][reflects].all()))

    def _part(
        self,
        camera: int,
        cast: Cast,
        faces: MeshFaces,
        is_shown: np.ndarray,
        depth: np.ndarray | None = None,
        has_sky: bool = True,
    ) -> np.ndarray:
        """Some parts alone, bool `[N]`, as OpenGL draws them; `depth` is filled with what its buffer holds."""
        view, divided = self._view(camera), np.zeros(0, np.int64)
        if not cast.mirrors:
            is_shown = is_shown & self._are_in_view(view, cast, faces)
        if not self._is_multisampled and cast.num_faces(faces.num_faces) > _LARGE_SCENE:
            has_faces, divided = self._upload_needed(view, cast, faces, is_shown)
            is_shown = is_shown & has_faces
        with cast.only(self._model, is_shown):
            self._update()
        self._put_in_place(camera, cast, view, set(divided.tolist()))
        self._scene.flags[_SKYBOX] = has_sky
        self._scene.flags[_REFLECTION] = bool(cast.mirrors)
        return self._render(depth)

    def _are_in_view(self, view: View, cast: Cast, faces: MeshFaces) -> np.ndarray:
        """Which parts are not wholly out of view, bool `[N]`."""
        rows = np.flatnonzero(cast.meshes >= 0)
        geoms, meshes = cast.geoms[rows], cast.meshes[rows]
        rotations = self._data.geom_xmat[geoms].reshape(-1, 3, 3)
        are_in_view = np.ones(len(cast), bool)
        are_in_view[rows] = ~faces.are_out_of_view(view, meshes, self._data.geom_xpos[geoms], rotations)
        return are_in_view

    def _upload_needed(
        self, view: View, cast: Cast, faces: MeshFaces, is_shown: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Give OpenGL the needed faces alone of the meshes that are shown.

        Returns:
            Which parts, bool `[N]`, have any; and the geoms of which no more than these are to be drawn.
        """
        rows = np.flatnonzero(is_shown & (cast.meshes >= 0))
        geoms, meshes, hides = cast.geoms[rows], cast.meshes[rows], cast.hides[rows]
        different = np.unique(meshes)
        faces.clear(different)
        positions, rotations = self._data.geom_xpos[geoms], self._data.geom_xmat[geoms].reshape(-1, 3, 3)
        found, slivers = faces.find(view, meshes, positions, rotations, hides)
        is_whole = slivers > 1
        for mirror in cast.mirrors:
            mirrored = self._mirrored(view, mirror)
            more, slivers = faces.find(mirrored, meshes, positions, rotations, np.zeros(len(rows), bool))
            found, is_whole = found + more, is_whole | (slivers > 0)  # what is behind the mirror is clipped
        divided = np.unique(meshes[(found > 0) & ~is_whole])
        faces.put_into(self._drawn, divided)
        self._context.baseMesh += self._other_lists
        for mesh in divided:
            mujoco.mjr_uploadMesh(self._drawn, self._context, mesh)
        self._context.baseMesh -= self._other_lists
        has_faces = np.ones(len(cast), bool)
        has_faces[rows[found == 0]] = False
        return has_faces, geoms[~is_whole]

    def _put_in_place(self, camera: int, cast: Cast, view: View, divided: set[int]) -> None:
        """Have the scene drawn with the display lists of needed faces: of these geoms, and of large planes."""
        large = [plane for plane in cast.planes if cast.cost_of_plane(plane) > _LARGE_GRID and not cast.mirrors]
        for number in range(self._scene.ngeom if divided or large else 0):
            part = self._scene.geoms[number]
            if part.type == _MESH and part.objid in divided and part.objtype == _GEOM:
                part.dataid += self._other_lists
            elif part.type == _PLANE and part.objid in large and (part.size[:2] > 0).all():
                if (part.objid, camera) not in self._grids:
                    self._grids[part.objid, camera] = PlaneGrid(self._model.geom_size[part.objid])
                rotation = self._data.geom_xmat[part.objid].reshape(3, 3)
                grid = self._grids[part.objid, camera]
                name = grid.display_list(view, self._data.geom_xpos[part.objid], rotation)
                part.dataid = name - self._context.basePlane - 1  # what MuJoCo adds

    def _present_cast(self) -> Cast:
        looks = b"".join(getattr(self._model, name).tobytes() for name in _LOOKS)
        if self._cast is None or looks != self._looks:
            self._update()
            self._cast, self._looks = take_stock(self._scene, self._model, self._faintest), looks
        return self._cast

    def _behind_plane(self, camera: int, cast: Cast) -> bool:
        """Whether the camera sees a plane from behind: MuJoCo then makes it transparent."""
        planes = list(cast.planes)
        way = self._data.cam_xpos[camera] - self._data.geom_xpos[planes]
        return bool(((way * self._data.geom_xmat[planes][:, 2::3]).sum(axis=1) < 1e-3).any())

    def _view(self, camera: int) -> View:
        model, data = self._model, self._data
        focal_px = 0.5 * self._side / np.tan(0.5 * np.deg2rad(model.cam_fovy[camera]))
        near = model.vis.map.znear * model.stat.extent
        return View(data.cam_xpos[camera], data.cam_xmat[camera].reshape(3, 3), focal_px, self._side, near)

    def _mirrored(self, view: View, mirror: int) -> View:
        """What is seen in a geom that reflects: in a plane, or in the upper side of a box."""
        normal = self._data.geom_xmat[mirror][2::3]
        point = self._data.geom_xpos[mirror].copy()
        if self._model.geom_type[mirror] == _BOX:
            point += self._model.geom_size[mirror, 2] * normal
        reflection = np.eye(3) - 2.0 * np.outer(normal, normal)
        position = point + reflection @ (view.position - point)
        return View(position, reflection @ view.axes, view.focal_px, view.side, view.near)

    def _update(self) -> None:
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, self._data, self._option, None, self._camera, everything, self._scene)
        self._scene.flags[_SKYBOX] = self._scene.flags[_REFLECTION] = 1

    def _render(self, depth: np.ndarray | None = None) -> np.ndarray:
        """The scene, its bottom row first; fills `depth`, float32 `[side, side]`, the nearest being the greatest."""
        # A buffer no larger than the frame: clearing and resolving a larger one takes longer than drawing.
        frame = np.empty((self._side, self._side, 3), np.uint8)
        view = mujoco.MjrRect(0, 0, self._side, self._side)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        mujoco.mjr_render(view, self._scene, self._context)
        mujoco.mjr_readPixels(frame, depth, view, self._context)
        return frame
