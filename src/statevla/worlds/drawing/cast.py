"""Who is in a scene: the geoms and sites that MuJoCo draws, and what of them makes a frame hard to divide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mujoco  # its backend has been chosen by whoever opened an OpenGL context
import numpy as np

_GEOM, _SITE = int(mujoco.mjtObj.mjOBJ_GEOM), int(mujoco.mjtObj.mjOBJ_SITE)
_MESH, _PLANE, _BOX = (int(getattr(mujoco.mjtGeom, f"mjGEOM_{kind}")) for kind in ("MESH", "PLANE", "BOX"))
_OPAQUE = 0.995
"""MuJoCo blends what has less."""
_HIDDEN_GROUP = 5
"""MuJoCo's default options do not draw it."""
_PLAIN_COST = 200
"""What a part that is neither mesh nor plane costs, in faces."""
_MOST_LINES = 200
"""MuJoCo draws a plane as a grid of up to so many lines a side, which its third size spaces."""


@dataclass(frozen=True)
class Cast:
    """The parts of a scene, geoms first, then sites; those that are not seen are left out.

    Attributes:
        geoms, sites: their numbers.
        meshes: int64 `[N]`, the mesh of each part; -1 for what is none.
        hides: bool `[N]`, whether a part hides what is behind it.
        has_glass: whether something can be seen through.
        mirrors: numbers of the geoms that reflect.
        planes: numbers of the planes, which can be seen through from behind.
        plain_costs: `[N]`, what each part costs that is no mesh, in faces.
        unseen_geoms, unseen_sites: numbers of those that are not seen.
        is_odd: whether there is what this class does not know of, or that casts shadows.
    """

    geoms: np.ndarray
    sites: np.ndarray
    meshes: np.ndarray
    hides: np.ndarray
    has_glass: bool
    mirrors: tuple[int, ...]
    planes: tuple[int, ...]
    plain_costs: np.ndarray
    unseen_geoms: np.ndarray
    unseen_sites: np.ndarray
    is_odd: bool

    def __len__(self) -> int:
        return len(self.meshes)

    def poses(self, data: Any) -> np.ndarray:
        """Positions and rotations of the parts as they are drawn, float32 `[N, 12]`."""
        positions = np.concatenate([data.geom_xpos[self.geoms], data.site_xpos[self.sites]])
        rotations = np.concatenate([data.geom_xmat[self.geoms], data.site_xmat[self.sites]])
        return np.concatenate([positions, rotations], axis=1, dtype=np.float32, casting="same_kind")

    def costs(self, num_faces: np.ndarray) -> np.ndarray:
        """What each part costs, in faces; `num_faces` is that of the model's meshes."""
        return np.where(self.meshes < 0, self.plain_costs, num_faces[self.meshes])

    def num_faces(self, num_faces: np.ndarray) -> int:
        """Of all parts that are meshes; `num_faces` is that of the model's meshes."""
        return int(num_faces[self.meshes[self.meshes >= 0]].sum())

    def cost_of_plane(self, plane: int) -> int:
        """What a plane costs, in faces."""
        return int(self.plain_costs[np.flatnonzero(self.geoms == plane)[0]])

    @contextmanager
    def only(self, model: Any, is_shown: np.ndarray) -> Iterator[None]:
        """Some parts, `[N]`, of a model are drawn inside the block, and none else."""
        split = len(self.geoms)
        geoms = np.concatenate([self.unseen_geoms, self.geoms[~is_shown[:split]]])
        sites = np.concatenate([self.unseen_sites, self.sites[~is_shown[split:]]])
        groups = model.geom_group[geoms], model.site_group[sites]
        model.geom_group[geoms] = model.site_group[sites] = _HIDDEN_GROUP
        try:
            yield
        finally:
            model.geom_group[geoms], model.site_group[sites] = groups


def take_stock(scene: Any, model: Any, faintest: float = 0.0) -> Cast:
    """Who is in a `mujoco.MjvScene` of a model that was just updated with everything.

    Args:
        scene: the scene.
        model: its model.
        faintest: opacity above which a part counts as seen; what is fully transparent never does.
    """
    parts = [scene.geoms[number] for number in range(scene.ngeom)]
    is_odd = any(part.objtype not in (_GEOM, _SITE) or (part.type == _MESH and part.dataid % 2) for part in parts)
    is_odd |= any(light.castshadow for light in scene.lights[: scene.nlight])
    kinds = ([part for part in parts if part.objtype == kind] for kind in (_GEOM, _SITE))
    geoms, sites = ([part for part in kind if part.rgba[3] > faintest] for kind in kinds)
    seen = [*geoms, *sites]
    return Cast(
        np.array([part.objid for part in geoms], np.int64),
        np.array([part.objid for part in sites], np.int64),
        np.array([part.dataid // 2 if part.type == _MESH else -1 for part in seen], np.int64),
        np.array([part.rgba[3] >= _OPAQUE for part in seen], bool),
        any(part.rgba[3] < _OPAQUE for part in seen),
        tuple(part.objid for part in geoms if part.type in (_PLANE, _BOX) and part.reflectance > 0),
        tuple(part.objid for part in geoms if part.type == _PLANE),
        np.array([_plane_cost(model.geom_size[part.objid]) if part.type == _PLANE else _PLAIN_COST for part in seen]),
        np.array([part.objid for part in parts if part.objtype == _GEOM and part.rgba[3] <= faintest], np.int64),
        np.array([part.objid for part in parts if part.objtype == _SITE and part.rgba[3] <= faintest], np.int64),
        is_odd,
    )


def _plane_cost(size: np.ndarray) -> int:
    """How many faces a plane is drawn with; a size of 0 is without end."""
    lines = [_MOST_LINES if side <= 0 else min(side / max(size[2], 1e-9), _MOST_LINES) + 2 for side in size[:2]]
    return int(2 * lines[0] * lines[1])
