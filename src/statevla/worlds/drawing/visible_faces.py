"""Which faces of a scene's meshes can leave a trace in a frame: the others need not be drawn, and no pixel changes.

On a CPU a frame costs what its triangles cost, and at 128 pixels nine in ten leave nothing: they are turned away, lie
between the samples, or behind others. A face is left out only where that is certain, however a renderer rounds:

- it is turned away, or misses every sample, by more than `_SLACK_PX`, some four times the grid of 1/256 of a pixel to
  which OpenGL moves corners;
- or each sample that it might hit lies well inside a face that is nearer by more than depth buffers can confuse.

One thing does not depend on a face alone. Mesa draws what moving its corners to that grid turns to the front, but not
if it has to clip one of the some hundred faces that it takes at a time: then it looks at the corners as they were. So a
geom that is clipped, and shows such a sliver, has to be drawn whole, as Mesa then takes the same faces at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from statevla.machine.kernel_cache import choose_kernel_cache

choose_kernel_cache()

from numba import njit  # noqa: E402  (it reads where its cache is when it is imported)

_SLACK_PX = 1.0 / 64.0
_GRID_PX = 1.0 / 256.0
_ROUNDING_PX = 2e-4
"""What float32 may do to a corner."""
_DEPTH_SLACK = 1e-3
"""Of the distance."""
_DEPTH_STEP = 2.0**-22
"""Four times what a depth buffer of 24 bits resolves, where the nearest is at 1."""
_MAX_SAMPLES = 1024
"""A face over more samples is drawn without a look at what is before it, and hides nothing: all of it counts as being
as far as its farthest corner."""
_BLOCK = 256
"""Faces that are looked at together."""


@dataclass(frozen=True)
class View:
    """A pinhole camera before a square frame.

    Attributes:
        position: `[3]` (m).
        axes: `[3, 3]`, its directions right, up and back as columns; left-handed for what a mirror shows.
        focal_px: focal length in pixels.
        side: of the frame (pixels).
        near: distance of the near plane (m).
    """

    position: np.ndarray
    axes: np.ndarray
    focal_px: float
    side: int
    near: float


class MeshFaces:
    """The faces of a model's meshes.

    Args:
        model: `mujoco.MjModel`, as it is drawn.

    Attributes:
        num_faces: of each mesh.
    """

    def __init__(self, model: Any) -> None:
        self._starts = np.array(model.mesh_faceadr, np.int64)
        self.num_faces = self._counts = np.array(model.mesh_facenum, np.int64)
        sources = (model.mesh_face, model.mesh_facenormal, model.mesh_facetexcoord)
        self._sources = tuple(np.array(rows, np.int32) for rows in sources)
        num_blocks = -(-self._counts // _BLOCK)
        self._first_block = np.concatenate([[0], np.cumsum(num_blocks)])
        self._blocks = np.zeros((self._first_block[-1], 9, _BLOCK), np.float32)
        self._balls = np.zeros((model.nmesh, 4), np.float32)  # around each mesh: centre and radius (m)
        for mesh in range(model.nmesh):
            faces = model.mesh_face[self._starts[mesh] :][: self._counts[mesh]]
            corners = np.zeros((num_blocks[mesh] * _BLOCK, 9), np.float32)
            corners[: len(faces)] = model.mesh_vert[model.mesh_vertadr[mesh] + faces].reshape(-1, 9)
            points = corners[: len(faces)].reshape(-1, 3)
            centre = 0.5 * (points.min(axis=0) + points.max(axis=0)) if len(points) else np.zeros(3)
            self._balls[mesh] = [*centre, 1e-6 + np.sqrt(((points - centre) ** 2).sum(axis=1).max(initial=0.0))]
            mine = slice(self._first_block[mesh], self._first_block[mesh + 1])
            self._blocks[mine] = corners.reshape(-1, _BLOCK, 9).transpose(0, 2, 1)
        self._is_needed = np.zeros(len(model.mesh_face), np.uint8)
        self._candidates: tuple[np.ndarray, ...] = ()

    def are_out_of_view(
        self, view: View, meshes: np.ndarray, positions: np.ndarray, rotations: np.ndarray
    ) -> np.ndarray:
        """Which of some geoms, given as in `find`, are out of view as a whole: bool `[G]`."""
        centres = positions + (rotations @ self._balls[meshes, :3, None])[:, :, 0]
        x, y, z = ((centres - view.position) @ view.axes).T
        radius, half = self._balls[meshes, 3], 0.5 * view.side + 1.0
        beyond = np.maximum(np.abs(x), np.abs(y)) * view.focal_px + z * half
        behind: np.ndarray = radius - z < view.near
        return behind | (beyond > radius * np.hypot(view.focal_px, half))

    def clear(self, meshes: np.ndarray) -> None:
        """Forget which faces of these meshes are needed."""
        for mesh in meshes:
            self._is_needed[self._starts[mesh] : self._starts[mesh] + self._counts[mesh]] = 0

    def find(
        self, view: View, meshes: np.ndarray, positions: np.ndarray, rotations: np.ndarray, hides: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add the faces that a view of some geoms needs to those that are needed.

        Args:
            view: who looks.
            meshes: `[G]`, the mesh of each geom.
            positions: `[G, 3]` of the geoms (m).
            rotations: `[G, 3, 3]` of the geoms.
            hides: bool `[G]`, whether a geom hides what is behind it.

        Returns:
            How many of each geom's faces the view needs, `[G]`; and whether a geom shows slivers, 1, and is clipped
            as well, 2, `[G]`.
        """
        num_faces = int(self._counts[meshes].sum())
        if not self._candidates or len(self._candidates[0]) < num_faces:
            names, places = np.zeros((num_faces, 2), np.int32), np.zeros((num_faces, 8), np.float32)
            boxes, hits = np.zeros((num_faces, 4), np.int16), np.zeros((num_faces, 2), np.uint8)
            self._candidates = names, places, boxes, hits
        turned, moved = view.axes.T @ rotations, (positions - view.position) @ view.axes
        poses = np.concatenate([turned, moved[:, :, None]], axis=2).astype(np.float32)
        handedness = np.sign(np.linalg.det(view.axes))
        numbers = (view.focal_px, 0.5 * view.side, view.side, view.near, handedness, _DEPTH_STEP / view.near)
        camera = np.array(numbers, np.float32)
        depth = np.full((view.side, view.side), np.inf, np.float32)
        shapes = (self._starts, self._counts, self._first_block, self._blocks)
        found, slivers = np.zeros(len(meshes), np.int64), np.zeros(len(meshes), np.uint8)
        _find(meshes, poses, hides, camera, shapes, self._candidates, depth, self._is_needed, found, slivers)
        return found, slivers

    def put_into(self, model: Any, meshes: np.ndarray) -> None:
        """Leave in a model, a copy of the one that was given, only those faces of some meshes that are needed."""
        into = (model.mesh_face, model.mesh_facenormal, model.mesh_facetexcoord)
        _pack(meshes, self._starts, self._counts, self._is_needed, self._sources, into, model.mesh_facenum)


# The loops ------------------------------------------------------------------------------------------------------------
# All numbers are float32: SIMD takes sixteen at a time, and the slacks are hundreds of times what they round.
# `camera`: focal length (px), half and whole side (px), near (m), handedness, and by how much more per metre a depth
# buffer may take a face for nearer than it is.
# A candidate is a geom and a face (`names`); its corners in the frame (x, y; three times), its least and its greatest
# distance (`places`); and the box of samples that it might hit: first and last column, first and last row (`boxes`).
# Of a box of up to 2 x 2 samples, `hits` says which might be hit (bits 0 to 3) and which surely are (bits 4 to 7); 0
# stands for a larger box. Its second column is 1 for slivers, which the grid may turn to the front.


@njit(cache=True, error_model="numpy", fastmath={"nnan"})
def _find(meshes, poses, hides, camera, shapes, candidates, depth, is_needed, found, slivers):
    starts, counts, first_block, blocks = shapes
    seen, verdict = np.empty(12 * _BLOCK, np.float32), np.empty(2 * _BLOCK, np.uint8)
    is_clipped = np.zeros(len(meshes), np.uint8)
    first = num_candidates = 0
    for geom in range(len(meshes)):
        mesh = meshes[geom]
        for number in range(first_block[mesh + 1] - first_block[mesh]):
            _look_at(blocks[first_block[mesh] + number].ravel(), poses[geom].ravel(), camera, seen, verdict)
            done = number * _BLOCK
            num_faces = min(_BLOCK, counts[mesh] - done)
            num_candidates, clips = _note(
                seen, verdict, num_faces, geom, starts[mesh] + done, candidates, num_candidates
            )
            is_clipped[geom] |= clips
        if hides[geom]:
            _hide(first, num_candidates, candidates, camera, depth)
        first = num_candidates
    _keep_shown(num_candidates, candidates, camera, depth, found, slivers, is_needed)
    for geom in range(len(meshes)):
        slivers[geom] += slivers[geom] & is_clipped[geom]


@njit(cache=True, error_model="numpy", fastmath={"nnan", "contract"})
def _look_at(corners, pose, camera, seen, verdict):
    """Where the faces of a block lie in the frame.

    Without branches, and with distances in memory that the compiler knows, so that it becomes SIMD.

    Args:
        corners: `[9 * _BLOCK]`, x, y, z of the first corners, the second, the third.
        pose: `[12]`, from the mesh to the camera.
        camera: see above.
        seen: `[12 * _BLOCK]`: x and y of the corners, least and greatest distance, first column and the one after the
            last, first row and the one after the last.
        verdict: `[2 * _BLOCK]`: what is to be done with each: 0 nothing, 1 to look at its samples, 2 to draw it in any
            case, as it cuts the near plane or covers too many; 4 more if it is clipped, 8 more if it is a sliver; then
            its `hits`, see above.
    """
    focal, half, side, near, hand = camera[0], camera[1], camera[2], camera[3], camera[4]
    a00, a01, a02, a03, a10, a11 = pose[0], pose[1], pose[2], pose[3], pose[4], pose[5]
    a12, a13, a20, a21, a22, a23 = pose[6], pose[7], pose[8], pose[9], pose[10], pose[11]
    zero, centre, one, two = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(2.0)
    most, edge = np.float32(_MAX_SAMPLES), np.float32(0.01)
    slack, rounding = np.float32(_SLACK_PX), np.float32(_ROUNDING_PX)
    for i in range(_BLOCK):
        x0, y0, z0 = corners[i], corners[i + _BLOCK], corners[i + 2 * _BLOCK]
        x1, y1, z1 = corners[i + 3 * _BLOCK], corners[i + 4 * _BLOCK], corners[i + 5 * _BLOCK]
        x2, y2, z2 = corners[i + 6 * _BLOCK], corners[i + 7 * _BLOCK], corners[i + 8 * _BLOCK]
        da = -(a20 * x0 + a21 * y0 + a22 * z0 + a23)
        db = -(a20 * x1 + a21 * y1 + a22 * z1 + a23)
        dc = -(a20 * x2 + a21 * y2 + a22 * z2 + a23)
        fa, fb, fc = focal / max(da, near), focal / max(db, near), focal / max(dc, near)
        xa, ya = half + fa * (a00 * x0 + a01 * y0 + a02 * z0 + a03), half + fa * (a10 * x0 + a11 * y0 + a12 * z0 + a13)
        xb, yb = half + fb * (a00 * x1 + a01 * y1 + a02 * z1 + a03), half + fb * (a10 * x1 + a11 * y1 + a12 * z1 + a13)
        xc, yc = half + fc * (a00 * x2 + a01 * y2 + a02 * z2 + a03), half + fc * (a10 * x2 + a11 * y2 + a12 * z2 + a13)
        low_x, high_x, low_y, high_y = min(xa, xb, xc), max(xa, xb, xc), min(ya, yb, yc), max(ya, yb, yc)
        closest, farthest = min(da, db, dc), max(da, db, dc)
        first_x, end_x = np.floor(max(low_x + (centre - slack), zero)), np.floor(min(high_x + (centre + slack), side))
        first_y, end_y = np.floor(max(low_y + (centre - slack), zero)), np.floor(min(high_y + (centre + slack), side))
        width, height = end_x - first_x, end_y - first_y
        is_wide, is_high = width > one, height > one
        ux, uy, vx, vy, wx, wy = xb - xa, yb - ya, xc - xb, yc - yb, xa - xc, ya - yc
        area = hand * (uy * wx - ux * wy)
        spans = high_x - low_x + high_y - low_y
        is_turned = area >= -slack * (spans + slack)
        is_sliver = is_turned & (area <= rounding * (spans + rounding))
        is_near = closest <= near
        is_seen = (width >= one) & (height >= one) & is_turned & (not is_near)
        is_small = (width <= two) & (height <= two)
        # Of the first sample, on which side of the edges it lies; a pixel on, each changes by what the edge spans.
        x, y = first_x + centre, first_y + centre
        e = hand * (ux * (y - ya) - uy * (x - xa))
        f = hand * (vx * (y - yb) - vy * (x - xb))
        g = hand * (wx * (y - yc) - wy * (x - xc))
        se, sf, sg = slack * (abs(ux) + abs(uy)), slack * (abs(vx) + abs(vy)), slack * (abs(wx) + abs(wy))
        ex, fx, gx, ey, fy, gy = -hand * uy, -hand * vy, -hand * wy, hand * ux, hand * vx, hand * wx
        may_00 = (e >= -se) & (f >= -sf) & (g >= -sg)
        may_10 = (e + ex >= -se) & (f + fx >= -sf) & (g + gx >= -sg) & is_wide
        may_01 = (e + ey >= -se) & (f + fy >= -sf) & (g + gy >= -sg) & is_high
        may_11 = (e + ex + ey >= -se) & (f + fx + fy >= -sf) & (g + gx + gy >= -sg) & is_wide & is_high
        does_00 = (e > se) & (f > sf) & (g > sg)
        does_10 = (e + ex > se) & (f + fx > sf) & (g + gx > sg) & is_wide
        does_01 = (e + ey > se) & (f + fy > sf) & (g + gy > sg) & is_high
        does_11 = (e + ex + ey > se) & (f + fx + fy > sf) & (g + gx + gy > sg) & is_wide & is_high
        may = may_00 | (may_10 << 1) | (may_01 << 2) | (may_11 << 3)
        does = does_00 | (does_10 << 1) | (does_01 << 2) | (does_11 << 3)
        is_large = is_seen & (not is_small)
        is_open = is_large & (width * height <= most)
        is_certain = (is_large & (width * height > most)) | (is_near & (farthest > near))
        is_clipped = (low_x < edge) | (low_y < edge) | (max(high_x, high_y) > side - edge) | is_near
        shown = (is_seen & is_small & (may > 0)) | is_open | (is_certain << 1)
        verdict[i] = shown | (is_clipped << 2) | (is_sliver << 3)
        verdict[i + _BLOCK] = (may | (does << 4)) * is_small
        seen[i], seen[i + _BLOCK], seen[i + 2 * _BLOCK], seen[i + 3 * _BLOCK] = xa, ya, xb, yb
        seen[i + 4 * _BLOCK], seen[i + 5 * _BLOCK] = xc, yc
        seen[i + 6 * _BLOCK], seen[i + 7 * _BLOCK] = closest, farthest
        seen[i + 8 * _BLOCK], seen[i + 9 * _BLOCK] = first_x, end_x
        seen[i + 10 * _BLOCK], seen[i + 11 * _BLOCK] = first_y, end_y


@njit(cache=True)
def _note(seen, verdict, num_faces, geom, first_face, candidates, count):
    """Add those of a block's faces that are in sight to the candidates; how many there are then, and whether any of the
    block's is clipped."""
    names, places, boxes, hits = candidates
    clips = 0
    for i in range(num_faces):
        clips |= (verdict[i] >> 2) & 1
        if verdict[i] & 3:
            names[count, 0], names[count, 1] = geom, first_face + i
            places[count, 6], places[count, 7] = seen[i + 6 * _BLOCK], seen[i + 7 * _BLOCK]
            boxes[count, 0], boxes[count, 1] = seen[i + 8 * _BLOCK], seen[i + 9 * _BLOCK] - 1
            boxes[count, 2], boxes[count, 3] = seen[i + 10 * _BLOCK], seen[i + 11 * _BLOCK] - 1
            hits[count, 0], hits[count, 1] = verdict[i + _BLOCK], verdict[i] >> 3
            if verdict[i] & 2:
                boxes[count, 0], boxes[count, 3], hits[count, 0] = -1, -1, 0
            elif not hits[count, 0] or hits[count, 1]:
                for part in range(6):
                    places[count, part] = seen[i + part * _BLOCK]
            count += 1
    return count, clips


@njit(cache=True, error_model="numpy", fastmath={"nnan", "contract"})
def _hide(first, end, candidates, camera, depth):
    """Note how far one can see at most at the samples that some candidates surely hit."""
    _, places, boxes, hits = candidates
    slack = np.float32(_SLACK_PX)
    for i in range(first, end):
        farthest, column, row, surely = places[i, 7], np.intp(boxes[i, 0]), np.intp(boxes[i, 2]), hits[i, 0] >> 4
        if hits[i, 0]:
            if surely & 1 and farthest < depth[row, column]:
                depth[row, column] = farthest
            if surely & 2 and farthest < depth[row, column + 1]:
                depth[row, column + 1] = farthest
            if surely & 4 and farthest < depth[row + 1, column]:
                depth[row + 1, column] = farthest
            if surely & 8 and farthest < depth[row + 1, column + 1]:
                depth[row + 1, column + 1] = farthest
            continue
        for y in range(boxes[i, 2], boxes[i, 3] + 1):
            for x in range(boxes[i, 0], boxes[i, 1] + 1):
                if farthest < depth[y, x] and _is_hit(places, i, x, y, camera, slack):
                    depth[y, x] = farthest


@njit(cache=True, error_model="numpy", fastmath={"nnan", "contract"})
def _keep_shown(end, candidates, camera, depth, found, slivers, is_needed):
    """Mark the candidates for which there is a sample that they might hit and that is not surely hit nearer, and the
    geoms of slivers among them."""
    slack, near_grid = np.float32(_SLACK_PX), -np.float32(_GRID_PX + _ROUNDING_PX)
    names, places, boxes, hits = candidates
    for i in range(end):
        closest, column, row, may = places[i, 6], np.intp(boxes[i, 0]), np.intp(boxes[i, 2]), hits[i, 0]
        closest -= closest * (np.float32(_DEPTH_SLACK) + camera[5] * closest)
        if may:
            shows = (
                (may & 1 > 0 and closest <= depth[row, column])
                or (may & 2 > 0 and closest <= depth[row, column + 1])
                or (may & 4 > 0 and closest <= depth[row + 1, column])
                or (may & 8 > 0 and closest <= depth[row + 1, column + 1])
            )
        else:
            shows = column < 0 or _shows_in_box(i, places, boxes, closest, camera, -slack, depth)
        if shows and hits[i, 1] and column >= 0:
            slivers[names[i, 0]] |= _shows_in_box(i, places, boxes, closest, camera, near_grid, depth)
        if shows:
            is_needed[names[i, 1]] = 1
            found[names[i, 0]] += 1


@njit(cache=True, error_model="numpy", fastmath={"nnan", "contract"})
def _shows_in_box(i, places, boxes, closest, camera, slack, depth):
    """The same of one candidate, sample by sample, with a slack (px, negative) of its own."""
    for y in range(boxes[i, 2], boxes[i, 3] + 1):
        for x in range(boxes[i, 0], boxes[i, 1] + 1):
            if closest <= depth[y, x] and _is_hit(places, i, x, y, camera, slack):
                return True
    return False


@njit(cache=True, error_model="numpy", fastmath={"nnan", "contract"})
def _is_hit(places, i, column, row, camera, slack):
    """Whether a sample lies inside a face by so many pixels (or outside by no more, where they are negative)."""
    xa, ya, xb, yb, xc, yc = places[i, 0], places[i, 1], places[i, 2], places[i, 3], places[i, 4], places[i, 5]
    x, y, hand = np.float32(column) + np.float32(0.5), np.float32(row) + np.float32(0.5), camera[4]
    inside = hand * ((xb - xa) * (y - ya) - (yb - ya) * (x - xa)) >= slack * (abs(xb - xa) + abs(yb - ya))
    inside &= hand * ((xc - xb) * (y - yb) - (yc - yb) * (x - xb)) >= slack * (abs(xc - xb) + abs(yc - yb))
    inside &= hand * ((xa - xc) * (y - yc) - (ya - yc) * (x - xc)) >= slack * (abs(xa - xc) + abs(ya - yc))
    return inside


@njit(cache=True)
def _pack(meshes, starts, counts, is_needed, sources, into, numbers):
    faces, normals, coordinates = sources
    to_faces, to_normals, to_coordinates = into
    for mesh in meshes:
        row = starts[mesh]
        for face in range(starts[mesh], starts[mesh] + counts[mesh]):
            if is_needed[face]:
                for corner in range(3):
                    to_faces[row, corner] = faces[face, corner]
                    to_normals[row, corner] = normals[face, corner]
                    to_coordinates[row, corner] = coordinates[face, corner]
                row += 1
        numbers[mesh] = row - starts[mesh]
