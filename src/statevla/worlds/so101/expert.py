"""The scripted expert: lifts the cube, seeing where it is, by smooth joint targets.

There are no phases with timers. What to aim at is computed at every step from where hand, jaw and cube are, so that the
same sight has the same answer, a disturbed hand is led back, and a cube that slipped is taken again:

- a funnel stands on the cube: the farther the hand is beside its axis, the higher it aims, so that it comes from above
  and sinks in one motion as it gets over the cube;
- the jaw closes as soon as the cube is between its tips; the hand moves aside a little while the jaw is open, so that
  the fixed jaw does not land on the cube;
- as soon as both jaws hold the cube, the hand rises to the carrying pose.

A reference pose follows that aim with bounded speed and acceleration; targets are its joint angles, with what gravity
asks for, at most `_MAX_LEAD_RAD` from the measured ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from statevla.worlds.so101.kinematics import HandPose, Kinematics
from statevla.worlds.so101.scene import CONTROL_FREQ_HZ, CUBE_HALF_M, PAN_AXIS_X
from statevla.worlds.so101.world import So101LiftWorld

OPEN_RAD = 1.0
"""Jaw while approaching: 8 cm between the tips, enough for a cube's diagonal of 5.7 cm."""
SQUEEZE_RAD = 0.12
"""How far beyond the measured jaw angle the target goes when closing on the cube: about 28 N."""
_HELD_JAW_RAD = 0.62  # below, the jaws hold the cube if both touch it; 0.46 is a cube held flat
_GRASP_ABOVE_CENTRE_M = 0.006
_SIDESTEP_M = 0.006
_CARRY_POINT = (0.185, 0.175)  # distance from the shoulder's axis, height (m)
_CARRY_TILT = np.deg2rad(50.0)
_MAX_LEAD_RAD = 0.25
_MAX_TARGET_STEP_RAD = np.array([0.07] * 5 + [0.06])  # per control step
_MAX_TURN_RAD = np.array([0.018, 0.05])  # tilt and roll, per control step
_GAIN = 0.2
_END_STEPS = 10  # of holding, after success
_ASTRAY_RAD = np.array([0.10, 0.08, 0.08, 0.05, 0.10])  # how far a lapse leads, per joint


@dataclass(frozen=True)
class Style:
    """How one episode is executed: drawn per episode, so that demonstrations vary.

    Attributes:
        speed_m_s: greatest speed of the grasp point.
        careful: fraction of it near the cube.
        hover_m: height of the funnel.
    """

    speed_m_s: float = 0.13
    careful: float = 0.5
    hover_m: float = 0.055

    @staticmethod
    def draw(rng: np.random.Generator) -> Style:
        """A random style."""
        return Style(rng.uniform(0.11, 0.16), rng.uniform(0.45, 0.6), rng.uniform(0.05, 0.065))


def expert(world: So101LiftWorld, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Actions `[6]`, one per control step, until the cube has been lifted and held.

    The world has just been reset and is stepped between one action and the next.

    Args:
        world: the world to act in.
        rng: draws this episode's style.
    """
    lift = _Lift(world, Style.draw(rng))
    held = 0
    while held < _END_STEPS:
        yield lift.action()
        held = held + 1 if world.success() else 0


class ExecutionNoise:
    """Smooth (Ornstein-Uhlenbeck) disturbance of the five joint targets, a quarter as strong near the cube.

    Args:
        world: tells how near the cube is.
        scale_rad: standard deviation; 0 for none.
        rng: its source.
    """

    def __init__(self, world: So101LiftWorld, scale_rad: float, rng: np.random.Generator) -> None:
        self._world = world
        self._scale_rad = scale_rad
        self._rng = rng
        self._value = np.zeros(5)

    def apply(self, action: np.ndarray) -> np.ndarray:
        """The action `[6]` to execute for the expert's."""
        self._value = 0.8 * self._value + 0.6 * self._rng.standard_normal(5)
        executed = action.copy()
        executed[:5] += self._scale_rad * self._value * (0.25 if self._world.hand_distance() < 0.07 else 1.0)
        return self._world.clipped(executed)


class Lapse:
    """A mistake that an expert does not make and a policy does: near the cube the hand goes astray for some steps, and
    mostly the jaw closes. What the expert answers meanwhile, and after, is the way back.

    Args:
        world: tells how near the cube is.
        rng: draws when it begins, how long it lasts and where it leads.
    """

    def __init__(self, world: So101LiftWorld, rng: np.random.Generator) -> None:
        self._world = world
        self._begins_within_m = rng.uniform(0.015, 0.09)
        self._steps_left = int(rng.integers(10, 26))
        self._astray_rad = np.append(rng.normal(0.0, _ASTRAY_RAD), 0.0)
        self._closes = bool(rng.random() < 0.7)
        self._has_begun = False

    def apply(self, action: np.ndarray) -> np.ndarray:
        """The action `[6]` to execute for the one that would be."""
        self._has_begun = self._has_begun or self._world.hand_distance() < self._begins_within_m
        if not self._has_begun or self._steps_left == 0:
            return action
        self._steps_left -= 1
        astray = action + self._astray_rad
        if self._closes:
            astray[5] = max(0.0, self._world.joints()[5] - SQUEEZE_RAD)
        return self._world.clipped(astray)


@dataclass(frozen=True)
class _Aim:
    """Where to go: a hand pose, a jaw target (rad) and the greatest speed (m/s)."""

    pose: HandPose
    jaw: float
    speed_m_s: float


class _Lift:
    """One episode's motion."""

    def __init__(self, world: So101LiftWorld, style: Style) -> None:
        self.world = world
        self.style = style
        self.kinematics = Kinematics(world)
        self.reference = self.kinematics.pose(world.joints())
        self.last = world.data.ctrl.copy()
        self.solution = world.joints()
        self.step_m = 0.0
        self.turn = np.zeros(2)

    def action(self) -> np.ndarray:
        """The targets `[6]` of this step."""
        measured = self.world.joints()
        aim = self._aim(measured)
        self._follow(aim)
        seed = self.solution.copy()
        seed[5] = measured[5]
        self.solution = self.kinematics.solve(self.reference, seed)
        targets = self.kinematics.targets(self.solution)
        targets[5] = np.clip(aim.jaw, measured[5] - SQUEEZE_RAD, measured[5] + SQUEEZE_RAD)
        targets[:5] = np.clip(targets[:5], measured[:5] - _MAX_LEAD_RAD, measured[:5] + _MAX_LEAD_RAD)
        targets = self.last + np.clip(targets - self.last, -_MAX_TARGET_STEP_RAD, _MAX_TARGET_STEP_RAD)
        self.last = self.world.clipped(targets)
        return self.last.copy()

    def _follow(self, aim: _Aim) -> None:
        """Move the reference toward the aim: slowly at first, in proportion to what is left at last."""
        here = self.reference
        way = aim.pose.point - here.point
        distance = float(np.linalg.norm(way))
        limit = aim.speed_m_s / CONTROL_FREQ_HZ
        self.step_m = min(limit, _GAIN * distance, self.step_m + 0.18 * limit + 1e-4)
        point = here.point + way * (self.step_m / max(distance, 1e-9))
        turn = np.array([aim.pose.tilt - here.tilt, aim.pose.roll - here.roll])
        wanted = np.clip(_GAIN * turn, -_MAX_TURN_RAD, _MAX_TURN_RAD)
        self.turn += np.clip(wanted - self.turn, -0.2 * _MAX_TURN_RAD, 0.2 * _MAX_TURN_RAD)
        self.reference = HandPose(point, here.tilt + self.turn[0], here.roll + self.turn[1])

    def _aim(self, measured: np.ndarray) -> _Aim:
        hand = self.kinematics.pose(measured)
        cube = self.world.cube_position()
        if self._holds(measured):
            return self._carry(hand, cube)
        return self._approach(measured, hand, cube)

    def _carry(self, hand: HandPose, cube: np.ndarray) -> _Aim:
        """Up to the carrying pose, straight at first."""
        azimuth = np.arctan2(hand.point[1], hand.point[0] - PAN_AXIS_X)
        reach, height = _CARRY_POINT
        lifted = float(np.clip((cube[2] - CUBE_HALF_M) / 0.05, 0.0, 1.0))
        reach = (1.0 - lifted) * np.hypot(hand.point[0] - PAN_AXIS_X, hand.point[1]) + lifted * reach
        point = np.array([PAN_AXIS_X + reach * np.cos(azimuth), reach * np.sin(azimuth), height])
        tilt = hand.tilt + lifted * (_CARRY_TILT - hand.tilt)
        return _Aim(HandPose(point, tilt, hand.roll), 0.0, self.style.speed_m_s)

    def _approach(self, measured: np.ndarray, hand: HandPose, cube: np.ndarray) -> _Aim:
        """Down the funnel that stands on the cube; close at its end."""
        grasp = cube + np.array([0.0, 0.0, _GRASP_ABOVE_CENTRE_M])
        tilt = grasp_tilt(grasp)
        azimuth = np.arctan2(grasp[1], grasp[0] - PAN_AXIS_X)
        reach = np.hypot(grasp[0] - PAN_AXIS_X, grasp[1])
        radial = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
        roll, across = self._grasp_roll(measured, grasp, tilt)
        openness = float(np.clip((measured[5] - 0.5) / 0.4, 0.0, 1.0))
        grasp = grasp - _SIDESTEP_M * openness * across
        # Back out of the grasp; next to the base outward, as the wrist cannot reach what is above there.
        slope = max(-np.tan(tilt), np.interp(reach, [0.11, 0.16], [0.45, -0.1]))
        axis = np.array([0.0, 0.0, 1.0]) + slope * radial
        axis /= np.linalg.norm(axis)
        off = hand.point - grasp
        beside = float(np.linalg.norm(off - (off @ axis) * axis))
        astray = max((beside - 0.007) / 0.035, (abs(roll - hand.roll) - 0.10) / 0.5)
        height = self.style.hover_m * float(np.clip(astray, 0.0, 1.0))
        point = grasp + height * axis
        raised = np.clip((max(height, off @ axis) - 0.01) / 0.045, 0.0, 1.0)
        tilt += raised * max(0.0, np.deg2rad(25.0) - tilt)
        arrived = np.linalg.norm(off) < 0.010 + 0.012 * (1.0 - openness) and abs(roll - hand.roll) < 0.2
        near = np.clip((np.linalg.norm(off) - 0.03) / 0.05, 0.0, 1.0)
        speed = self.style.speed_m_s * (self.style.careful + (1.0 - self.style.careful) * near)
        return _Aim(HandPose(point, tilt, roll), 0.0 if arrived else OPEN_RAD, speed)

    def _grasp_roll(self, measured: np.ndarray, grasp: np.ndarray, tilt: float) -> tuple[float, np.ndarray]:
        """Roll angle with which the jaws meet two sides of the cube, of the four the nearest to the present one, and
        the direction from the fixed to the moving jaw there."""
        joints = self.kinematics.solve(HandPose(grasp, tilt, measured[4]), self.solution)
        w, x, y, z = self.world.object_poses()["cube"][3:]
        yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        turns = []
        for quarter in range(4):
            direction = np.array([np.cos(yaw + quarter * np.pi / 2), np.sin(yaw + quarter * np.pi / 2), 0.0])
            turns.append((self.kinematics.roll_toward(joints, direction), direction))
        turn, direction = min(turns, key=lambda each: abs(each[0]))
        return float(measured[4] + turn), direction

    def _holds(self, measured: np.ndarray) -> bool:
        """Whether both jaws touch the cube and the moving one pushes."""
        if measured[5] > _HELD_JAW_RAD or measured[5] - self.last[5] < 0.08:
            return False
        model = self.world.model
        cube, *jaws = (model.body(name).id for name in ("block", "gripper", "moving_jaw_so101_v1"))
        pairs = model.geom_bodyid[self.world.data.contact.geom]
        touching = pairs[(pairs == cube).any(axis=1)]
        return all((touching == jaw).any() for jaw in jaws)


def grasp_tilt(grasp: np.ndarray) -> float:
    """Tilt (rad) of the hand at a grasp: nearly down close to the base, outward where the wrist's range asks for it."""
    reach = np.hypot(grasp[0] - PAN_AXIS_X, grasp[1])
    return float(np.deg2rad(np.interp(reach, [0.24, 0.30, 0.33, 0.36, 0.375], [5.0, 18.0, 27.0, 38.0, 45.0])))
