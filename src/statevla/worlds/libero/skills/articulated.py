"""Drawers, knobs and doors: parts of a fixture that slide or turn on one joint."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from statevla.robots.libero import Gripper
from statevla.worlds.libero.motion import (
    DOWN,
    Arm,
    Motion,
    about_axis,
    facing_down,
    rotation_about_z,
    rotation_vector,
    wrap_half_turn,
)

_UP = np.array([0.0, 0.0, 1.0])
_LONG_BAR_M = 0.025
_THIN_BAR_M = 0.02
_CLOSE_TO_BASE_M = 0.38
_LEAN = 0.45  # rad
_GRIPPING_TILTS = (0.0, 0.2, 0.35, 0.5, 0.7)  # rad
_WRIST_M = 0.06
_SLIPPED_M = 0.04
_PUSHING_TILT = np.deg2rad(30.0)
"""Of the hand that pushes a handle: enough to keep it off the handles above, and no more, or the wrist behind it would
meet what stands in front of the cabinet."""


def nearest_to_down(rotations: list[np.ndarray]) -> np.ndarray:
    """The rotation that the hand turns least to reach from pointing down."""
    return min(rotations, key=lambda rotation: float(np.linalg.norm(rotation_vector(rotation @ DOWN.T))))


class Drawer:
    """A sliding drawer with a bar handle.

    Args:
        arm: the arm.
        region: the drawer's region, as goals name it.
        done: whether the goal holds.
    """

    def __init__(self, arm: Arm, region: str, done: Callable[[], bool]) -> None:
        self.arm, self.scene, self.done = arm, arm.scene, done
        model, data = self.scene.model, self.scene.data
        self.joint = self.scene.joint(region)
        low, high = model.jnt_range[self.joint]
        self.fully_open = float(high if abs(high) > abs(low) else low)
        self.outward = data.xaxis[self.joint] * np.sign(self.fully_open)
        self.sideways = np.cross(_UP, self.outward)
        self.handle = self._find_handle()
        self.shift = float(arm.rng.normal(0.0, 0.006))

    def _find_handle(self) -> int:
        """The bar that sticks out furthest."""
        model = self.scene.model
        geoms = self.scene.body_geoms(int(model.jnt_bodyid[self.joint]))
        sizes = {geom: np.sort(model.geom_size[geom]) for geom in geoms}
        bars = [geom for geom in geoms if sizes[geom][2] > _LONG_BAR_M and sizes[geom][1] < _THIN_BAR_M]
        return max(bars or geoms, key=lambda geom: float(self.scene.data.geom_xpos[geom] @ self.outward))

    def grip(self) -> np.ndarray:
        """Where to hold the handle `[3]`, now."""
        return self.scene.data.geom_xpos[self.handle] + self.sideways * self.shift

    def open(self) -> Motion:
        """Grip the handle from the front, jaws upright, and pull."""
        arm = self.arm
        rotation = self._gripping()
        yield from arm.go(self.grip() + self.outward * 0.13 + _UP * 0.03, rotation, Gripper.OPEN, tolerance=0.03)
        for _ in range(60):
            offset = self.grip() - arm.scene.hand()[0]
            beside = float(np.linalg.norm(offset - self.outward * (offset @ self.outward)))
            in_front = self.grip() + self.outward * np.clip((beside - 0.006) * 5, 0.0, 0.1)
            if arm.distance(self.grip()) < 0.008:
                break
            yield arm.toward(in_front, rotation, Gripper.OPEN, 0.6)
        yield from arm.close(lambda: (self.grip(), rotation), 0.2)
        for _ in range(60):
            if self.done():
                break
            left = abs(self.fully_open - self.scene.joint_position(self.joint))
            if arm.distance(self.grip()) > _SLIPPED_M:
                break
            pulled = arm.scene.hand()[0] + self.outward * min(left + 0.02, 0.1)
            yield arm.toward(pulled, rotation, Gripper.CLOSE, 0.7)
        yield from arm.open(arm.scene.hand()[0], rotation, num_steps=6)
        away = self.grip() + self.outward * 0.10 + _UP * 0.15
        yield from arm.go(away, rotation, Gripper.OPEN, max_steps=8)
        yield from arm.go(away, DOWN, Gripper.OPEN, max_steps=12)

    def _gripping(self) -> np.ndarray:
        """How to hold the handle: the hand level, or tilted down as far as it takes to clear what stands in front."""
        obstacles = self.scene.obstacles() - self.grip()
        obstacles = obstacles[(np.linalg.norm(obstacles, axis=1) < 0.5) & (obstacles @ self.outward > 0.0)]
        pulled_out = obstacles - self.outward * abs(self.fully_open - self.scene.joint_position(self.joint))

        def rotation(tilt: float) -> np.ndarray:
            forward = -np.cos(tilt) * self.outward - np.sin(tilt) * _UP
            jaws = np.cos(tilt) * _UP - np.sin(tilt) * self.outward
            return nearest_to_down([np.stack([s * jaws, np.cross(forward, s * jaws), forward], 1) for s in (1.0, -1.0)])

        def hits(held: np.ndarray) -> int:
            hand = np.abs(obstacles @ held) < (0.11, 0.04, np.inf)
            hand[:, 2] = (obstacles @ held[:, 2] < -0.03) & (obstacles @ held[:, 2] > -0.12)
            wrist = np.abs(pulled_out @ held) < (_WRIST_M, _WRIST_M, np.inf)
            wrist[:, 2] = (pulled_out @ held[:, 2] < -0.12) & (pulled_out @ held[:, 2] > -0.25)
            return int(hand.all(1).sum() + wrist.all(1).sum())

        ways = [rotation(tilt) for tilt in _GRIPPING_TILTS]
        return next((way for way in ways if not hits(way)), min(ways, key=hits))

    def close(self) -> Motion:
        """Push the handle with the closed finger tips, the hand tilted."""
        arm = self.arm
        forward = -np.sin(_PUSHING_TILT) * self.outward - np.cos(_PUSHING_TILT) * _UP
        rotation = nearest_to_down(
            [np.stack([s * self.sideways, np.cross(forward, s * self.sideways), forward], 1) for s in (1.0, -1.0)]
        )
        before = self.grip() + self.outward * 0.06
        yield from arm.turn_near_base(before + _UP * 0.10, rotation, Gripper.CLOSE)
        yield from arm.go(before + _UP * 0.10, rotation, Gripper.CLOSE, tolerance=0.04)
        yield from arm.go(before + _UP * 0.02, rotation, Gripper.CLOSE, tolerance=0.03)
        for step in range(80):
            if self.done() and step > 2:
                break
            beside = float(np.linalg.norm(np.cross(arm.scene.hand()[0] - self.grip(), self.outward)))
            target = self.grip() + self.outward * (-0.05 if beside < 0.02 else 0.05)
            yield arm.toward(target, rotation, Gripper.CLOSE, 0.6)
        away = self.grip() + self.outward * 0.10 + _UP * 0.05
        yield from arm.go(away, rotation, Gripper.CLOSE, max_steps=10, tolerance=0.0)


class Knob:
    """A knob with a grip bar on top, turned about the vertical.

    Args:
        arm: the arm.
        fixture: the fixture whose only joint is the knob's.
        done: whether the goal holds.
    """

    def __init__(self, arm: Arm, fixture: str, done: Callable[[], bool]) -> None:
        self.arm, self.scene, self.done = arm, arm.scene, done
        joint = self.scene.joint(fixture)
        points = self.scene.geom_points(self.scene.body_geoms(int(self.scene.model.jnt_bodyid[joint])))
        self.top = float(points[:, 2].max())
        bar = points[points[:, 2] > self.top - 0.02][:, :2]
        self.centre = np.r_[bar.mean(0), self.top - 0.016]
        _, axes = np.linalg.eigh(np.cov((bar - bar.mean(0)).T))
        across = axes[:, 0]  # the bar's thin direction: close the jaws along it
        self.yaw = wrap_half_turn(float(np.arctan2(-across[0], across[1])))

    def turn(self, direction: float) -> Motion:
        """Grip the bar and turn it; positive is counter-clockwise seen from above."""
        arm, centre = self.arm, self.centre
        held = self._held()
        for _ in range(90):
            beside = float(np.linalg.norm(arm.scene.hand()[0][:2] - centre[:2]))
            if arm.distance(centre) < 0.008 and arm.turn_left(held) < 0.15:
                break
            above = centre + _UP * np.clip((beside - 0.004) * 4, 0.0, 0.10)
            yield arm.toward(above, held, Gripper.OPEN, 0.5, free=beside > 0.03)
        yield from arm.close(lambda: (centre, held))
        rotation = held
        for step in range(30):
            if self.done() and step > 8:
                break
            rotation = rotation_about_z(direction * min(0.12 * (step + 1), 1.3)) @ held
            yield arm.toward(centre, rotation, Gripper.CLOSE, 0.3)
        yield from arm.open(arm.scene.hand()[0], rotation)
        away = centre + _UP * 0.17
        yield from arm.go(away, rotation, Gripper.OPEN, max_steps=5)
        yield from arm.go(away, DOWN, Gripper.OPEN, max_steps=10)

    def _held(self) -> np.ndarray:
        """How to hold the bar: down, but near the base with the wrist leaning outward, or the arm would fold up."""
        rotation = facing_down(self.yaw)
        outward = self.centre[:2] - self.scene.base()
        distance = float(np.linalg.norm(outward))
        if distance > _CLOSE_TO_BASE_M:
            return rotation
        axis = np.array([-outward[1], outward[0], 0.0]) / distance
        return about_axis(axis, _LEAN) @ rotation
