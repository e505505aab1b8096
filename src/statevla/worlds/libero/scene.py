"""What the scripted expert knows of a scene: poses, joints, and points on the collision shapes."""

from __future__ import annotations

from collections.abc import Iterable

import mujoco
import numpy as np

from statevla.worlds.libero.simulation import Simulation

_ROBOT_PREFIXES = ("robot0", "gripper0", "mount0")
_SURFACES = ("table", "floor", "kitchen_table", "living_room_table", "study_table", "coffee_table")
_POINT_SPACING_M = 0.012
_MAX_POINTS_PER_AXIS = 14


class Scene:
    """Read-only queries of a simulation; positions in metres, world frame."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.model = simulation.model
        self.data = simulation.data
        self._env = simulation.robosuite_env
        self._site = self.model.site("gripper0_grip_site").id
        self._object_geoms: dict[str, list[int]] = {}
        self._local_points: dict[int, np.ndarray] = {}
        model = self.model
        self._solid = (model.geom_contype | model.geom_conaffinity).astype(bool)
        names = [model.geom(geom).name for geom in range(model.ngeom)]
        self._fingers = {geom: side for side in (1, 2) for geom, name in enumerate(names) if f"_finger{side}_" in name}
        self._roots = np.array([self._root(body) for body in model.geom_bodyid])

    # The hand ---------------------------------------------------------------------------------------------------------

    def hand(self) -> tuple[np.ndarray, np.ndarray]:
        """Position `[3]` and rotation `[3, 3]` of the grip site; the jaws open along the rotation's first column."""
        return self.data.site_xpos[self._site].copy(), self.data.site_xmat[self._site].reshape(3, 3).copy()

    def base(self) -> np.ndarray:
        """Position `[2]` of the arm's base."""
        return self.data.body("robot0_base").xpos[:2].copy()

    def jaw_opening(self) -> float:
        """Distance between the fingers (m)."""
        first, second = self.simulation.finger_positions()
        return float(first - second)

    def holds(self, name: str) -> bool:
        """Whether both fingers touch an object."""
        root = self._root(self._body(name))
        touching = set()
        for contact in self.data.contact:
            for geom, other in (contact.geom, contact.geom[::-1]):
                if self._roots[other] == root:
                    touching.add(self._fingers.get(int(geom)))
        return {1, 2} <= touching

    def touches_robot(self, names: Iterable[str]) -> bool:
        """Whether any of these objects or fixtures touches the robot."""
        roots = {self._root(self._body(name)) for name in names}
        for contact in self.data.contact:
            first, second = (int(self._roots[geom]) for geom in contact.geom)
            for own, other in ((first, second), (second, first)):
                if own in roots and self.model.body(other).name.startswith(_ROBOT_PREFIXES):
                    return True
        return False

    # Objects ----------------------------------------------------------------------------------------------------------

    def position(self, name: str) -> np.ndarray:
        """Position `[3]` of an object's or fixture's body."""
        return self.data.xpos[self._body(name)].copy()

    def rotation(self, name: str) -> np.ndarray:
        """Rotation `[3, 3]` of an object's or fixture's body."""
        return self.data.xmat[self._body(name)].reshape(3, 3).copy()

    def is_region(self, name: str) -> bool:
        """Whether a goal names a region (a site of a fixture or of the table) and not an object."""
        return name in self._env.object_sites_dict

    def region(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A region's centre `[3]`, rotation `[3, 3]` and half sizes `[3]`."""
        site = self.model.site(name).id
        half = np.asarray(self._env.object_sites_dict[name].size, dtype=np.float64)
        return self.data.site_xpos[site].copy(), self.data.site_xmat[site].reshape(3, 3).copy(), half

    def region_owner(self, name: str) -> str:
        """The fixture or object that a region belongs to."""
        return str(getattr(self._env.object_sites_dict[name], "parent_name", "") or "")

    def joint(self, name: str) -> int:
        """The joint behind an articulated region (a drawer) or fixture (a knob, a door)."""
        site = self._env.object_sites_dict.get(name)
        joints = site.joints if site is not None else self._env.get_object(name).joints
        return int(self.model.joint(joints[-1]).id)

    def drawer_fronts(self, name: str) -> list[np.ndarray]:
        """Where the fronts of a fixture's drawers are when they are open, seen from above, `[2]` each."""
        root, fronts = self._root(self._body(name)), []
        for joint in np.flatnonzero(self.model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE):
            body = int(self.model.jnt_bodyid[joint])
            if self._root(body) != root:
                continue
            axis = self.data.xmat[body].reshape(3, 3) @ self.model.jnt_axis[joint]
            furthest = max(self.model.jnt_range[joint], key=abs)
            points = self.geom_points(self.body_geoms(body))
            outermost = points[(points @ (axis * np.sign(furthest))).argmax()]
            fronts.append((outermost + axis * furthest)[:2])
        return fronts

    def joint_position(self, joint: int) -> float:
        """Position of a hinge (rad) or slide (m)."""
        return float(self.data.qpos[self.model.jnt_qposadr[joint]])

    def body_geoms(self, body: int) -> list[int]:
        """Solid geoms attached to one body itself."""
        return [g for g in range(self.model.ngeom) if self.model.geom_bodyid[g] == body and self._solid[g]]

    # Points -----------------------------------------------------------------------------------------------------------

    def points(self, name: str) -> np.ndarray:
        """Points `[P, 3]` on (and in) the collision shapes of an object with everything attached to it."""
        if name not in self._object_geoms:
            root = self._root(self._body(name))
            self._object_geoms[name] = list(np.flatnonzero((self._roots == root) & self._solid))
        return self.geom_points(self._object_geoms[name])

    def obstacles(self, ignoring: Iterable[str] = ()) -> np.ndarray:
        """Points `[P, 3]` of everything but the robot, the ground, the table and the named objects."""
        ignored = {self._root(self._body(name)) for name in ignoring}
        geoms = []
        for geom in np.flatnonzero(self._solid):
            root = int(self._roots[geom])
            name = self.model.body(root).name
            plane = self.model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE
            if not (root == 0 or plane or root in ignored or name in _SURFACES or name.startswith(_ROBOT_PREFIXES)):
                geoms.append(int(geom))
        return self.geom_points(geoms)

    def geom_points(self, geoms: Iterable[int]) -> np.ndarray:
        """World points `[P, 3]` of some geoms."""
        parts = []
        for geom in geoms:
            if geom not in self._local_points:
                self._local_points[geom] = self._sample(geom)
            rotation = self.data.geom_xmat[geom].reshape(3, 3)
            parts.append(self._local_points[geom] @ rotation.T + self.data.geom_xpos[geom])
        return np.concatenate(parts) if parts else np.zeros((0, 3))

    def _sample(self, geom: int) -> np.ndarray:
        """Points of one geom in its own frame: a mesh's vertices, or a grid through a primitive."""
        model = self.model
        kind, size = model.geom_type[geom], model.geom_size[geom]
        if kind == mujoco.mjtGeom.mjGEOM_MESH:
            mesh = model.geom_dataid[geom]
            first = model.mesh_vertadr[mesh]
            return model.mesh_vert[first : first + model.mesh_vertnum[mesh]].astype(np.float64)
        round_kinds = (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_CAPSULE)
        if kind == mujoco.mjtGeom.mjGEOM_BOX:
            half = size
        elif kind in round_kinds:
            half = np.array([size[0], size[0], size[1]])
        else:
            half = np.array([size[0]] * 3)
        counts = np.clip(np.ceil(2 * half / _POINT_SPACING_M) + 1, 3, _MAX_POINTS_PER_AXIS).astype(int)
        axes = [np.linspace(-h, h, n) for h, n in zip(half, counts)]
        points = np.stack(np.meshgrid(*axes), -1).reshape(-1, 3)
        if kind in round_kinds:  # pull the corners of the square in to the circle
            radius = np.linalg.norm(points[:, :2], axis=1, keepdims=True)
            points[:, :2] *= np.minimum(1.0, half[0] / np.maximum(radius, 1e-9))
        return points

    def _body(self, name: str) -> int:
        return int(self._env.obj_body_id[name])

    def _root(self, body: int) -> int:
        while body != 0 and self.model.body_parentid[body] != 0:
            body = self.model.body_parentid[body]
        return int(body)


def highest_along(
    points: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float, skip_end: float = 0.0
) -> float:
    """Height of the highest point within `radius` of the segment from `start` to `end` (seen from above).

    Args:
        points: `[P, 3]`.
        start: `[2]`.
        end: `[2]`.
        radius: half the width of the swept corridor (m).
        skip_end: ignore points this near to `end` (m), such as those of what stands at the goal.

    Returns:
        The height, or -1.0 where the corridor is empty.
    """
    if not len(points):
        return -1.0
    way = end - start
    fraction = np.clip(((points[:, :2] - start) @ way) / (way @ way + 1e-12), 0.0, 1.0)
    near = np.linalg.norm(points[:, :2] - (start + fraction[:, None] * way), axis=1) < radius
    if skip_end:
        near &= np.linalg.norm(points[:, :2] - end, axis=1) > skip_end
    return float(points[near, 2].max()) if near.any() else -1.0
