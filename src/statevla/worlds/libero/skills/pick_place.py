"""Pick an object up and put it down: reach, close, lift, carry, release, retreat; tries again with an empty hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from statevla.robots.libero import Gripper
from statevla.worlds.libero.clearance import FINGER_TIP_M, MAX_OPENING_M
from statevla.worlds.libero.grasp import Grasp, is_rim_object, plan_grasp
from statevla.worlds.libero.motion import Arm, Motion, facing_down, leaning, rotation_about_z, wrap_half_turn
from statevla.worlds.libero.overhang import way_out
from statevla.worlds.libero.scene import highest_along

MAX_ATTEMPTS = 4
_GRASP_SCATTER_M = 0.003
_GRASP_HEIGHT_SCATTER_M = 0.002
_YAW_SCATTER = 0.03
_PLACE_SCATTER_M = 0.008
_TRAVEL_CLEARANCE_M = 0.02
_SWING_RADIUS_M = 0.68
_GENTLE_LIFT_M = 0.025
_GENTLE_LIFT_SPEED = 0.4  # a thin rim slips out of a jerk
_OUT_M = 0.015
_AT_REST_M = 0.004
"""In a control step."""
_FUNNEL, _STEEP = 4.0, 30.0
"""Height over the target for each metre beside it; steep where something overhangs the way down."""
_LOST_M = 0.04
_TIPPED = 0.06  # change of any entry of the object's rotation matrix that makes a plan stale


@dataclass(frozen=True)
class Destination:
    """Where an object goes.

    Attributes:
        position: `[2]`, for the object's centre.
        surface: height it lands on (m).
        drop: height of its lowest point above `surface` at release (m).
        scatter: standard deviation of this episode's aim (m).
        long_axis: direction that the object's longer side has to take, seen from above (rad); None if any will do.
        snug: whether the object only just fits: then its outline is centred, otherwise its body's origin.
        inward: `[2]`, unit vector into what is open at one side only; None where the object comes from above.
        depth: how far the object's origin goes inward of the opening (m).
        room: how far the object may be off (m) when it goes down between walls; None where there are none.
        keep: whether to end with the object in the hand, where the goal would no longer hold once it lies.
    """

    position: np.ndarray
    surface: float
    drop: float
    scatter: float = _PLACE_SCATTER_M
    long_axis: float | None = None
    snug: bool = False
    keep: bool = False
    room: float | None = None
    inward: np.ndarray | None = None
    depth: float = 0.0


class PickPlace:
    """Moves one object to a destination.

    Args:
        arm: the arm.
        name: the object.
        destination: where it goes.
        done: whether the goal that this serves holds.
    """

    def __init__(self, arm: Arm, name: str, destination: Destination, done: Callable[[], bool]) -> None:
        self.arm = arm
        self.scene = arm.scene
        self.name = name
        self.destination = destination
        self.done = done
        aim = np.clip(arm.rng.standard_normal(2), -2, 2) * destination.scatter
        self.place = np.asarray(destination.position, dtype=np.float64)[:2] + aim
        self.deeper = 0.0
        self.yaw = 0.0
        self.offset = np.zeros(3)  # from the object's origin to the grasp
        self.carried = np.zeros(2)  # from the object's centre to the grip site: a rim grasp hangs off centre
        self.release_height = 0.0

    def run(self) -> Motion:
        """The whole skill."""
        for attempt in range(MAX_ATTEMPTS):
            if not self._plan():
                return
            held = attempt == 0 and self.scene.holds(self.name)
            if held:
                self._take_over()
            else:
                yield from self._reach()
            yield from self.arm.close(lambda: (self.target, self.rotation))
            yield from self._lift()
            if self._in_hand() or (held and self.scene.holds(self.name)):  # it may be high enough already
                yield from self._carry()
                if not self._is_lost():
                    if not (self.destination.keep and self.done()):
                        yield from self._release()
                    return
            # Nothing in the hand: look again and grip a little deeper.
            self.deeper += 0.004 if is_rim_object(self.name) else 0.002

    def reach_beside(self, error: np.ndarray) -> Motion:
        """Approach the grasp and miss it by `error` `[3]` (m), as who misjudges it does; the hand stays open."""
        if self._plan():
            self.offset = self.offset + error
            yield from self._reach()

    # Planning ---------------------------------------------------------------------------------------------------------

    def _plan(self) -> bool:
        scene, rng = self.scene, self.arm.rng
        obstacles = scene.obstacles([self.name])
        grasp = self._grasp(obstacles)
        if grasp is None:
            return False
        scatter = np.clip(rng.standard_normal(4), -2, 2)
        play = max((MAX_OPENING_M - grasp.width) / 2, 0.002)  # free space on each side of the object
        axes = rotation_about_z(grasp.yaw)[:2]
        sideways = axes[:, 0] * scatter[0] * _GRASP_SCATTER_M
        lengthways = axes[:, 1] * scatter[1] * min(_GRASP_SCATTER_M, play / 5)
        self.target = grasp.position + np.r_[sideways + lengthways, abs(scatter[2]) * _GRASP_HEIGHT_SCATTER_M]
        self.yaw = grasp.yaw + scatter[3] * min(_YAW_SCATTER, play)
        self.rotation = leaning(facing_down(self.yaw), grasp.lean)
        self.tolerance = float(np.clip(0.35 * play, 0.0025, 0.006))
        self.lean, self.steepness = grasp.lean, _STEEP if grasp.lean else _FUNNEL
        self.turn = grasp.turn if self.destination.long_axis is None else self._aligning_turn(grasp.yaw)
        self.width = grasp.width
        self.offset = self.target - scene.position(self.name)
        self.planned_rotation = scene.rotation(self.name)
        self._plan_heights(grasp, obstacles)
        self.escape = way_out(scene.points(self.name), obstacles)
        return True

    def _grasp(self, obstacles: np.ndarray) -> Grasp | None:
        return plan_grasp(self.scene, self.name, obstacles, self.deeper, self.yaw, self.place)

    def _take_over(self) -> None:
        """The grasp is the one that the hand has already, as where a policy's way is gone on with."""
        self.target, self.rotation = self.scene.hand()
        jaw_axis = self.rotation[:, 0]
        self.yaw = float(np.arctan2(-jaw_axis[0], jaw_axis[1]))
        self.turn = 0.0 if self.destination.long_axis is None else self._aligning_turn(self.yaw)
        self.offset = self.target - self.scene.position(self.name)

    def _plan_heights(self, grasp: Grasp, obstacles: np.ndarray) -> None:
        """Heights of the grip site that clear what lies below the ways to the object and to the destination."""
        style = self.arm.style
        here = self.scene.hand()[0]
        hang = self.target[2] - grasp.low
        over_object = grasp.high + FINGER_TIP_M + style.hover_m
        over_way = highest_along(obstacles, here[:2], self.target[:2], 0.07, skip_end=0.05) + FINGER_TIP_M + 0.02
        self.approach_height = max(over_object, over_way)
        self.way = way = highest_along(obstacles, self.target[:2], self.place, 0.11)
        at_goal = self.destination.surface + self.destination.drop + hang
        self.carry_height = max(way + hang + _TRAVEL_CLEARANCE_M, at_goal + 0.03) + style.lift_m
        self.release_height = at_goal

    def _aligning_turn(self, yaw: float) -> float:
        """How far to turn the object on the way so that its longer side fits the destination."""
        assert self.destination.long_axis is not None
        outline = self.scene.points(self.name)[:, :2]
        _, axes = np.linalg.eigh(np.cov((outline - outline.mean(0)).T))
        now = float(np.arctan2(axes[1, 1], axes[0, 1]))
        turn = wrap_half_turn(self.destination.long_axis - now)
        return min((turn, turn + np.pi, turn - np.pi), key=lambda option: abs(yaw + option))

    # Phases -----------------------------------------------------------------------------------------------------------

    def _reach(self) -> Motion:
        """Approach in a funnel: down only as far as the hand is over the target; follows the object if it moves."""
        since_plan = 0
        for step in range(150):
            turned = np.abs(self.scene.rotation(self.name) - self.planned_rotation).max()
            since_plan += 1
            if turned > _TIPPED and since_plan >= 8:
                self._plan()
                since_plan = 0
            self.target = self.scene.position(self.name) + self.offset
            here = self.scene.hand()[0]
            sideways = float(np.linalg.norm(here[:2] - self.target[:2]))
            above = here[2] - self.target[2]
            if sideways < max(self.tolerance, 0.005) and above < 0.005:
                return
            if step > 60 and sideways < 0.012 and above < 0.01:
                return
            highest = max(self.approach_height - self.target[2], 0.0)
            funnel = np.clip((sideways - self.tolerance) * self.steepness, 0.0, highest)
            far = sideways > 0.03
            wanted = np.r_[self.target[:2], self.target[2] + funnel]
            yield self.arm.toward(wanted, self.rotation, Gripper.OPEN, self._speed(far), far)

    def _lift(self) -> Motion:
        """Straight up until clear; stops early where the object stays behind."""
        here = self.scene.hand()[0]
        self.lift_from, self.object_from = here.copy(), self.scene.position(self.name)[2]
        self.carried = here[:2] - self._centre()
        is_out = not self.escape.any()
        for _ in range(60):
            here = self.scene.hand()[0]
            left = self.carry_height - here[2]
            if left < 0.015 or (here[2] - self.lift_from[2] > 0.04 and not self._in_hand(0.1)):
                return
            started = here[2] - self.lift_from[2] > _GENTLE_LIFT_M
            if started and self.destination.room is not None:  # a bowl held by its rim hangs lower than it stood
                hang = here[2] - self.scene.points(self.name)[:, 2].min()
                self.carry_height = max(self.carry_height, self.way + hang + _TRAVEL_CLEARANCE_M)
            sideways = self.lift_from[:2] + self.escape if left > 0.03 else self._over_place()
            wanted = np.r_[sideways, self.carry_height + 0.01]
            is_out = is_out or float(np.linalg.norm(here[:2] - sideways)) < _OUT_M
            if not is_out:
                wanted[2] = self.lift_from[2] + _GENTLE_LIFT_M + 0.01
            speed = self.arm.style.speed if started else _GENTLE_LIFT_SPEED
            yield self.arm.toward(wanted, self.rotation, Gripper.CLOSE, speed, started)

    def _in_hand(self, share: float = 0.4) -> bool:
        """Whether the object has risen by a share of the hand's rise; a bowl held by its rim tilts first."""
        risen = self.scene.position(self.name)[2] - self.object_from
        return bool(risen > share * (self.scene.hand()[0][2] - self.lift_from[2]))

    def _from_hand(self) -> float:
        """From the grip site to the object's origin (m), which does not change while the object is held."""
        return float(np.linalg.norm(self.scene.position(self.name) - self.scene.hand()[0]))

    def _is_lost(self) -> bool:
        """Whether what was lifted is no longer in the hand."""
        return self._from_hand() > self.held_at + _LOST_M

    def _carry(self) -> Motion:
        """To the destination and down to the release height, or until the object stands on something or is lost."""
        here, self.held_at = self.scene.hand()[0], self._from_hand()
        hang = here[2] - self.scene.points(self.name)[:, 2].min()
        self.release_height = self.destination.surface + self.destination.drop + hang
        self.rotation = leaning(facing_down(self.yaw + self.turn), self.lean)
        before, blocked, raised, push = np.zeros(3), 0, 0, np.zeros(2)
        for _ in range(120):
            here = self.scene.hand()[0]
            wanted = self._over_place()
            sideways = float(np.linalg.norm(here[:2] - wanted))
            funnel = np.clip((sideways - 0.02) * 3.0, 0.0, max(self.carry_height - self.release_height, 0.0))
            moved = float(np.linalg.norm(here - before))
            blocked = blocked + 1 if moved < 8e-4 else 0
            before = here
            if self._is_lost():
                return
            if self.destination.long_axis is not None or self.destination.room is not None:
                # Stay above until the object is just over where it fits in.
                tight = self.destination.long_axis is not None
                room = 0.006 if tight or self.destination.room is None else self.destination.room
                fits = sideways < room
                if tight:  # and has come to rest: what swings past does not go in
                    fits = fits and self.arm.turn_left(self.rotation) < 0.06 and moved < _AT_REST_M
                entered = here[2] < self.carry_height - 0.03
                funnel = 0.0 if fits or entered else max(self.carry_height - self.release_height, 0.0)
            if sideways < 0.012 and here[2] - self.release_height < 0.008:
                return
            if blocked >= 4 and (sideways < 0.015 or raised >= 3):
                return
            if blocked >= 4:  # it stands on something beside its place, or the arm is stretched: up and harder
                self.release_height += 0.01
                blocked, raised = 0, raised + 1
                push += np.clip(4 * (wanted - here[:2]), -0.06, 0.06)
            far = sideways > 0.03
            goal = np.r_[self._within_reach(here, wanted) + push, self.release_height + funnel]
            yield self.arm.toward(goal, self.rotation, Gripper.CLOSE, self._speed(far), far)

    def _within_reach(self, here: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The next point `[2]` on the way to `wanted`: swings round the base instead of stretching the arm."""
        base = self.scene.base()
        if np.linalg.norm(here[:2] - wanted) < 0.08:
            return wanted
        from_base = wanted - base
        return base + from_base * min(1.0, _SWING_RADIUS_M / float(np.linalg.norm(from_base)))

    def _release(self) -> Motion:
        over = self._over_place()
        for step in range(14):
            if self.scene.jaw_opening() > min(self.width + 0.02, 0.072) and step >= 6:
                break
            yield self.arm.toward(np.r_[over, self.release_height], self.rotation, Gripper.OPEN, 0.3)
        for step in range(25):
            height = max(self.carry_height, self.scene.hand()[0][2]) + 0.02
            yield self.arm.toward(np.r_[over, height], self.rotation, Gripper.OPEN, free=step > 4)
            if step >= 5 and self.done():
                return

    def _speed(self, far: bool) -> float:
        return self.arm.style.speed * (1.0 if far else self.arm.style.careful)

    def _over_place(self) -> np.ndarray:
        """Where the grip site has to be `[2]` for the object's centre to be over its place."""
        hanging = np.clip(self.scene.hand()[0][:2] - self._centre(), -0.25, 0.25)
        self.carried = 0.7 * self.carried + 0.3 * hanging
        return self.place + self.carried

    def _centre(self) -> np.ndarray:
        """What of the object has to be over its place `[2]`."""
        if not self.destination.snug:
            return self.scene.position(self.name)[:2]
        outline = self.scene.points(self.name)[:, :2]
        return (outline.min(0) + outline.max(0)) / 2
