"""Push a flat dish across the table: pressed down by the finger tips, it follows them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from statevla.robots.libero import Gripper
from statevla.worlds.libero.clearance import FINGER_TIP_M
from statevla.worlds.libero.motion import Arm, Motion, facing_down

_START = 0.2  # of the dish's radius, on the side it is pushed to
_LEAD_M = 0.04
_PRESS_M = 0.010
"""How far below the dish's underside the finger tips aim: they press it down, and friction takes it along."""
_MAX_ATTEMPTS = 5
_ROTATION = facing_down(0.0)
_CLOSE_ENOUGH_M = 0.012


def is_dish(name: str) -> bool:
    """Whether an object is pushed instead of picked up."""
    return name.startswith("plate")


class Push:
    """Moves a dish to a place on the same table.

    Args:
        arm: the arm.
        name: the dish.
        place: `[2]`, for its centre.
        done: whether the goal holds.
    """

    def __init__(self, arm: Arm, name: str, place: np.ndarray, done: Callable[[], bool]) -> None:
        self.arm, self.scene, self.name, self.done = arm, arm.scene, name, done
        self.place = np.asarray(place, dtype=np.float64)[:2]

    def run(self) -> Motion:
        """Press the closed fingers onto the dish and draw it along; again where they have slid off it."""
        for _ in range(_MAX_ATTEMPTS):
            yield from self._draw_along()
            here = self.scene.hand()[0]
            yield from self.arm.go(here + np.array([0.0, 0.0, 0.08]), _ROTATION, Gripper.CLOSE, max_steps=12)
            if self.done():
                return

    def _draw_along(self) -> Motion:
        arm, scene = self.arm, self.scene
        points = scene.points(self.name)
        radius = float(np.linalg.norm(points[:, :2] - scene.position(self.name)[:2], axis=1).max())
        height = float(points[:, 2].min()) + FINGER_TIP_M - _PRESS_M
        start = np.r_[scene.position(self.name)[:2] + self._direction() * radius * _START, height]
        yield from arm.go(start + np.array([0.0, 0.0, 0.08]), _ROTATION, Gripper.CLOSE, tolerance=0.02)
        yield from arm.go(start, _ROTATION, Gripper.CLOSE, 0.3, free=False, tolerance=0.01, max_steps=14)
        for _ in range(100):
            left = self.place - scene.position(self.name)[:2]
            here = scene.hand()[0]
            off = float(np.linalg.norm(here[:2] - scene.position(self.name)[:2]))
            if off > radius or (np.linalg.norm(left) < _CLOSE_ENOUGH_M and self.done()):
                return
            lead = self._direction() * min(_LEAD_M, 0.02 + float(np.linalg.norm(left)))
            yield arm.toward(np.r_[here[:2] + lead, height], _ROTATION, Gripper.CLOSE, 0.5)

    def _direction(self) -> np.ndarray:
        """Unit vector `[2]` from the dish to its place."""
        left = self.place - self.scene.position(self.name)[:2]
        return left / max(float(np.linalg.norm(left)), 1e-6)
