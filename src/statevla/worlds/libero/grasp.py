"""Where to grasp: top grasps across an object, rim grasps of bowls and mugs, and handles.

All grasps point down, but for those that lean from what overhangs an object or out of an opening.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from statevla.worlds.libero.clearance import (
    FINGER_TIP_M,
    FOREARM_ABOVE_M,
    HAND_HALF_M,
    HAND_UNDERSIDE_M,
    IN_THE_WAY,
    MAX_OPENING_M,
    axes_of,
    beside_hand,
    forearm_hits,
    hand_hits,
    near,
    own_hits,
)
from statevla.worlds.libero.motion import rotation_about_z, wrap_half_turn
from statevla.worlds.libero.scene import Scene

TOP_DEPTH_M = 0.027
"""How far below an object's top the grip site goes: deeper, and the hand would meet the object."""
RIM_DEPTH_M = 0.018
REACH_M = 0.72
"""Distance from the base, seen from above, up to which the hand moves well while it points down. At 0.79 the elbow
is straight: there the controller can no longer pull the hand back."""
_REACH_COST = 6.0
"""Of each metre beyond: a turn of the jaws that avoids ten centimetres of it costs less."""
_TURNS = tuple(np.deg2rad((0.0, 30.0, -30.0, 60.0, -60.0, 90.0, -90.0)))
_MAX_YAW = np.deg2rad(110)
_LEANS = (0.3, -0.3, 0.5, -0.5)  # rad
MAX_HANDLE_M = 0.05
"""What is wider is no handle."""
HANDLE_LEAN = 0.5
"""Of a hand that holds a handle (rad): away from the object and so from the opening that the object goes through."""
_LEAST_HANDLE_M = 0.055
"""From an object's origin to where its handle is held: nearer, and the hand would not stay outside of an opening."""

JAW_AXES = {"milk": 2, "orange_juice": 2}
"""Cartons, closed along this axis of their own frame only: on the faces at the ends of the roof ridge, the pads sink
into thin plates and the carton stays stuck to a finger after release."""
RIM_OBJECTS = ("bowl", "mug", "ramekin")
RIGHT_SIDE_COST = 0.06
"""Of holding a rim at the robot's right and not at its left. Both often cost all but the same; if the last millimetre
of a layout then decides, demonstrations give two answers to one picture."""


@dataclass(frozen=True)
class Grasp:
    """A grasp that points down, or nearly so.

    Attributes:
        position: `[3]`, of the grip site.
        yaw: of the jaw axis, from the world's y axis (rad).
        width: of what will be between the fingers (m).
        low: height of the object's lowest point (m).
        high: height of its highest point (m).
        cost: lower is better; from `IN_THE_WAY` on something is in the way.
        turn: how far to turn the hand on the way (rad), so that it stays within reach over the destination.
        lean: how far the hand leans about the jaw axis (rad), away from what overhangs the object.
    """

    position: np.ndarray
    yaw: float
    width: float
    low: float
    high: float
    cost: float
    turn: float = 0.0
    lean: float = 0.0

    @property
    def is_free(self) -> bool:
        """Whether nothing is in the way."""
        return self.cost < IN_THE_WAY


def is_rim_object(name: str) -> bool:
    """Whether an object is grasped by its rim."""
    return any(kind in name for kind in RIM_OBJECTS)


def plan_grasp(
    scene: Scene,
    name: str,
    obstacles: np.ndarray,
    deeper: float = 0.0,
    yaw_from: float = 0.0,
    place: np.ndarray | None = None,
) -> Grasp | None:
    """The cheapest grasp of an object, or None where there is none at all.

    Args:
        scene: the scene.
        name: the object.
        obstacles: `[P, 3]`, points of everything else.
        deeper: metres below the usual depth, for a second attempt.
        yaw_from: the yaw to turn as little as possible from.
        place: `[2]`, where the object will be put down; the hand, off centre at a rim, has to reach there too.
    """
    if is_rim_object(name):
        return plan_rim_grasp(scene, name, obstacles, deeper, yaw_from, place)
    grasp = plan_top_grasp(scene, name, obstacles, deeper, yaw_from)
    if grasp is not None and grasp.width > MAX_OPENING_M - 0.006:
        return plan_part_grasp(scene, name, obstacles, deeper, yaw_from) or grasp
    return grasp


def plan_top_grasp(
    scene: Scene, name: str, obstacles: np.ndarray, deeper: float = 0.0, yaw_from: float = 0.0
) -> Grasp | None:
    """Grasp across the object near its top.

    The cost adds the jaw opening, the turn, the distance from the object's middle, and the hits of the hand and of the
    open fingers on neighbours.
    """
    points = scene.points(name)
    low, high = float(points[:, 2].min()), float(points[:, 2].max())
    flat = high - low < 0.035
    height = low + FINGER_TIP_M + 0.002 if flat else max(high - TOP_DEPTH_M - deeper, low + FINGER_TIP_M + 0.003)
    band = points[np.abs(points[:, 2] - height) < (0.5 * (high - low) if flat else 0.012)]
    if len(band) < 4:
        band = points
    jaw_axis = JAW_AXES.get(name.rsplit("_", 1)[0])
    required = None if jaw_axis is None else scene.rotation(name)[:2, jaw_axis]
    neighbours = near(obstacles, points[:, :2].mean(0))
    best: Grasp | None = None
    for yaw in np.deg2rad(np.arange(-90, 90, 5.0)):
        along, across = axes_of(yaw)
        if required is not None and abs(along @ required) < 0.9 * np.linalg.norm(required):
            continue
        u, v = band[:, :2] @ along, band[:, :2] @ across
        width, length = np.ptp(u), np.ptp(v)
        too_wide = max(width - (MAX_OPENING_M - 0.006), 0.0)
        middle = along * (u.max() + u.min()) / 2 + across * (v.max() + v.min()) / 2
        reach = max(length / 2 - 0.016, 0.0)
        shifts = (0.0,) if reach < 0.008 else (0.0, 0.5 * reach, -0.5 * reach, reach, -reach)
        for shift in shifts:
            centre = middle + across * shift
            cost = width + 20 * too_wide + 0.02 * abs(yaw - yaw_from) + 0.3 * abs(shift)
            if best is not None and cost >= best.cost:
                continue
            cost += hand_hits(centre, height, along, across, neighbours)
            if best is None or cost < best.cost:
                best = Grasp(np.r_[centre, height], float(yaw), float(width), low, high, float(cost))
    return best


def plan_handle_grasp(scene: Scene, name: str, obstacles: np.ndarray, inward: np.ndarray) -> Grasp | None:
    """Grasp what sticks out of an object, a handle, so that the object can go through an opening and the hand not.

    Args:
        scene: the scene.
        name: the object.
        obstacles: `[P, 3]`, points of everything else.
        inward: `[2]`, unit vector into the opening; the object is turned until its handle points the other way.
    """
    points = scene.points(name)
    low, high = float(points[:, 2].min()), float(points[:, 2].max())
    origin = scene.position(name)[:2]
    neighbours = near(obstacles, origin)
    best: Grasp | None = None
    for yaw in np.deg2rad(np.arange(-60, 120, 10.0)):  # the wrist turns further this way than the other
        along, across = axes_of(yaw)
        u, v = (points[:, :2] - origin) @ along, (points[:, :2] - origin) @ across
        for end in (-1.0, 1.0):
            furthest = float((end * v).max()) - 0.012
            for distance in np.arange(_LEAST_HANDLE_M, furthest + 0.01, 0.01):
                slab = end * min(distance, furthest)
                part = np.abs(v - slab) < 0.012
                width = float(np.ptp(u[part])) if part.any() else np.inf
                if width > MAX_HANDLE_M:
                    continue
                middle = float(u[part].max() + u[part].min()) / 2
                spot = origin + along * middle + across * slab
                outward = (spot - origin) / np.linalg.norm(spot - origin)
                turn = float(np.arctan2(outward[1] * inward[0] - outward[0] * inward[1], -outward @ inward))
                lean = end * HANDLE_LEAN
                top, bottom = float(points[part, 2].max()), float(points[part, 2].min())
                height = max(top - 0.6 * TOP_DEPTH_M, bottom + 0.004, low + FINGER_TIP_M + 0.002)
                under = (np.abs(u - middle) < HAND_HALF_M[0]) & (beside_hand(v - slab, lean) < HAND_HALF_M[1])
                needed = float(points[under, 2].max()) - HAND_UNDERSIDE_M + 0.002
                cost = width + 0.1 * abs(turn) + 0.5 * abs(slab) + _REACH_COST * _beyond_reach(scene, spot)
                cost += IN_THE_WAY * (needed > top - 0.003)
                height = min(max(height, needed), top - 0.003)
                cost += hand_hits(spot, height, along, across, neighbours, lean)
                if best is None or cost < best.cost:
                    best = Grasp(np.r_[spot, height], float(yaw), width, low, high, float(cost), turn, lean)
    return best


def plan_part_grasp(
    scene: Scene, name: str, obstacles: np.ndarray, deeper: float = 0.0, yaw_from: float = 0.0
) -> Grasp | None:
    """Grasp across a narrow part of an object that is too wide as a whole, such as a pan's handle."""
    points = scene.points(name)
    low, high = float(points[:, 2].min()), float(points[:, 2].max())
    centre = points[:, :2].mean(0)
    neighbours = near(obstacles, centre)
    best: Grasp | None = None
    for yaw in np.deg2rad(np.arange(-90, 90, 10.0)):
        along, across = axes_of(yaw)
        u, v = points[:, :2] @ along, points[:, :2] @ across
        for slab in np.arange(v.min() + 0.012, v.max() - 0.01, 0.01):
            part = np.abs(v - slab) < 0.012
            if not part.any():
                continue
            width = float(np.ptp(u[part]))
            if width > MAX_OPENING_M - 0.012:
                continue
            top = float(points[part, 2].max())
            bottom = float(points[part, 2].min())
            height = max(top - 0.6 * TOP_DEPTH_M - deeper, bottom + 0.004, low + FINGER_TIP_M + 0.002)
            spot = along * (u[part].max() + u[part].min()) / 2 + across * slab
            cost = width + 0.03 * abs(yaw - yaw_from) + 0.5 * float(np.linalg.norm(spot - centre))
            cost += _REACH_COST * _beyond_reach(scene, spot)
            if best is not None and cost >= best.cost:
                continue
            cost += hand_hits(spot, height, along, across, neighbours) + own_hits(spot, height, along, across, points)
            if best is None or cost < best.cost:
                best = Grasp(np.r_[spot, height], float(yaw), width, low, high, float(cost))
    return best


def plan_rim_grasp(
    scene: Scene,
    name: str,
    obstacles: np.ndarray,
    deeper: float = 0.0,
    yaw_from: float = 0.0,
    place: np.ndarray | None = None,
) -> Grasp | None:
    """Grasp the rim, one finger inside and one outside, the jaws radial within 30°; keeps clear of handles.

    The hand points down; it leans only where it could not get at the rim otherwise, as beside an open drawer.
    """
    best = _best_rim_grasp(scene, name, obstacles, deeper, yaw_from, place, (0.0,))
    if best is None or not best.is_free:
        leaning = _best_rim_grasp(scene, name, obstacles, deeper, yaw_from, place, _LEANS)
        if leaning is not None and (best is None or leaning.cost < best.cost):
            return leaning
    return best


def _best_rim_grasp(
    scene: Scene,
    name: str,
    obstacles: np.ndarray,
    deeper: float,
    yaw_from: float,
    place: np.ndarray | None,
    leans: tuple[float, ...],
) -> Grasp | None:
    points = scene.points(name)
    low, high = float(points[:, 2].min()), float(points[:, 2].max())
    centre = scene.position(name)[:2]
    neighbours = near(obstacles, centre)
    relative = points[:, :2] - centre
    best: Grasp | None = None
    for angle in np.deg2rad(np.arange(0, 360, 10.0)):
        outward = np.array([np.cos(angle), np.sin(angle)])
        along_ray, off_ray = relative @ outward, np.abs(relative @ np.array([-outward[1], outward[0]]))
        section = (off_ray < 0.012) & (along_ray > 0.01)
        if not section.any():
            continue
        top = points[section, 2].max()  # the rim's height just here: the bowl may be tilted
        rim = section & (points[:, 2] > top - 0.012)
        if np.ptp(along_ray[rim]) > 0.03:  # a handle
            continue
        spot = centre + outward * along_ray[rim].mean()
        turns, side = [(0.0, 0.0)], RIGHT_SIDE_COST * (1.0 - outward[1]) / 2
        if place is not None:
            turns = [_carry_cost(scene, place, spot - centre, turn) for turn in _TURNS]
        for shallower in (0.0, 0.004):
            height = top - RIM_DEPTH_M - deeper + shallower
            for skew, lean in product(np.deg2rad((0, 15, -15, 30, -30)), leans):
                yaw = wrap_half_turn(angle - np.pi / 2 + skew)
                stretched, turn = min(option for option in turns if abs(yaw + option[1]) < _MAX_YAW)
                cost = 0.03 * abs(yaw - yaw_from) + 0.1 * abs(skew) + 6 * shallower + side
                cost += stretched + _REACH_COST * _beyond_reach(scene, spot) + 0.1 * abs(lean)
                if best is not None and cost >= best.cost:
                    continue
                along, across = axes_of(yaw)
                cost += hand_hits(spot, height, along, across, neighbours, lean)
                cost += own_hits(spot, height, along, across, points)
                cost += forearm_hits(scene, spot, height, across * np.tan(lean) * FOREARM_ABOVE_M, neighbours)
                if best is None or cost < best.cost:
                    best = Grasp(np.r_[spot, height], yaw, 0.006, low, high, float(cost), turn, lean)
    return best


def _carry_cost(scene: Scene, place: np.ndarray, offset: np.ndarray, turn: float) -> tuple[float, float]:
    """Cost of holding an object at `offset` from its centre over `place` with the hand turned, and the turn."""
    held_at = place + rotation_about_z(turn)[:2, :2] @ offset
    return 8 * _beyond_reach(scene, held_at) + 0.05 * abs(turn), turn


def _beyond_reach(scene: Scene, spot: np.ndarray) -> float:
    return max(float(np.linalg.norm(spot - scene.base())) - REACH_M, 0.0)
