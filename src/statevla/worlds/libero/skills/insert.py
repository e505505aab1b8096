"""Put an object through an opening at the side, as into a microwave: held by its handle, the hand stays outside."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from statevla.robots.libero import Gripper
from statevla.worlds.libero.grasp import Grasp, plan_handle_grasp
from statevla.worlds.libero.motion import Arm, Motion, facing_down, leaning
from statevla.worlds.libero.scene import Scene
from statevla.worlds.libero.skills.pick_place import Destination, PickPlace

_BEFORE_M = 0.03
"""Between the object and the opening when it is about to enter."""
_ASIDE_M = (0.0, 0.01, -0.01, 0.02, -0.02, 0.03, -0.03, 0.04, -0.04, 0.05, -0.05, 0.06, -0.06)
_GAP_M = 0.008
_SPEED = 0.5


def opening_of(scene: Scene, region: str) -> np.ndarray | None:
    """Unit vector `[2]` into a region that is covered and open at one side only; None for any other."""
    centre, rotation, half = scene.region(region)
    extent = np.abs(rotation) @ half
    offset = scene.points(scene.region_owner(region)) - centre
    if not ((np.abs(offset[:, :2]) < 0.6 * extent[:2]).all(1) & (offset[:, 2] > 0)).any():
        return None
    level = np.abs(offset[:, 2]) < 0.5 * extent[2]
    free = []
    for axis, sign in ((0, 1.0), (0, -1.0), (1, 1.0), (1, -1.0)):
        ahead, aside = sign * offset[:, axis], np.abs(offset[:, 1 - axis])
        wall = level & (ahead > 0.5 * extent[axis]) & (ahead < extent[axis] + 0.06) & (aside < 0.04)
        if not wall.any():
            free.append(-sign * np.eye(2)[axis])
    return free[0] if len(free) == 1 else None


class Insert(PickPlace):
    """Moves one object through the opening that its destination names."""

    def __init__(self, arm: Arm, name: str, destination: Destination, done: Callable[[], bool]) -> None:
        super().__init__(arm, name, destination, done)
        assert destination.inward is not None
        self.inward = destination.inward
        self.aim = self.place.copy()

    def _grasp(self, obstacles: np.ndarray) -> Grasp | None:
        return plan_handle_grasp(self.scene, self.name, obstacles, self.inward)

    def _carry(self) -> Motion:
        """In front of the opening, down to its height, and in."""
        arm, scene = self.arm, self.scene
        self.held_at = self._from_hand()
        self.rotation = leaning(facing_down(self.yaw + self.turn), self.lean)
        for _ in range(90):  # until it has turned and stands before the opening
            here = scene.hand()[0]
            points = scene.points(self.name)
            hang = here[2] - points[:, 2].min()
            self.release_height = self.destination.surface + self.destination.drop + hang
            self.place = self.aim - self.inward * ((points[:, :2] - self._centre()) @ self.inward).max()
            self.place -= self.inward * (_BEFORE_M + self.destination.depth)
            before = self._over_place()
            sideways = float(np.linalg.norm(here[:2] - before))
            above = float(np.clip((sideways - 0.02) * 3.0, 0.0, max(self.carry_height - self.release_height, 0.0)))
            turned = arm.turn_left(self.rotation) < 0.15
            if self._is_lost() or (sideways < 0.012 and abs(here[2] - self.release_height) < 0.008 and turned):
                break
            goal = np.r_[self._within_reach(here, before), self.release_height + above]
            yield arm.toward(goal, self.rotation, Gripper.CLOSE, self._speed(sideways > 0.03), sideways > 0.03)
        self.place = self._free_place()
        before, blocked = np.zeros(3), 0
        for _ in range(90):
            here = scene.hand()[0]
            wanted = np.r_[self._over_place(), self.release_height]
            blocked = blocked + 1 if np.linalg.norm(here - before) < 8e-4 else 0
            before = here
            if self._is_lost() or arm.distance(wanted) < 0.008 or blocked > 5:
                return
            yield arm.toward(wanted, self.rotation, Gripper.CLOSE, _SPEED)

    def _free_place(self) -> np.ndarray:
        """Where in the opening `[2]` the object and what of the hand comes near it meet nothing."""
        scene = self.scene
        obstacles = scene.obstacles([self.name])
        points = scene.points(self.name)
        sideways = np.array([-self.inward[1], self.inward[0]])
        hand = scene.hand()[0]
        jaws = np.abs(scene.hand()[1][:2, 0] @ sideways) * 0.104
        low, high = points[:, 2].min() + 0.003, points[:, 2].max()
        extent = (points[:, :2] - self._centre()) @ sideways

        def free(shift: float) -> float:
            aside = (obstacles[:, :2] - self.aim) @ sideways - shift
            ahead = (obstacles[:, :2] - self.aim) @ self.inward
            level = (obstacles[:, 2] > low) & (obstacles[:, 2] < high) & (ahead < 0.05) & (ahead > -0.2)
            object_gap = np.abs(aside[level] - np.clip(aside[level], extent.min(), extent.max()))
            held = (hand[:2] - self._centre()) @ sideways
            beside = (obstacles[:, 2] > hand[2]) & (obstacles[:, 2] < hand[2] + 0.1) & (ahead < -0.01) & (ahead > -0.2)
            hand_gap = np.maximum(np.abs(aside[beside] - held) - jaws, 0.0)
            gaps = np.concatenate([object_gap, hand_gap])
            return float(gaps.min()) if len(gaps) else np.inf

        shift = next((shift for shift in _ASIDE_M if free(shift) > _GAP_M), max(_ASIDE_M, key=free))
        return self.aim + sideways * shift

    def _release(self) -> Motion:
        """Let go, straight out, and up."""
        arm, here = self.arm, self.scene.hand()[0]
        yield from arm.open(here, self.rotation)
        out = here - np.r_[self.inward, 0.0] * 0.12
        yield from arm.go(out, self.rotation, Gripper.OPEN, _SPEED, free=False, max_steps=20)
        yield from arm.go(out + np.array([0.0, 0.0, 0.12]), self.rotation, Gripper.OPEN, max_steps=15)
