"""Unlabelled interaction for world-model training: the hand wanders, grasps, carries and drops at random.

A near-deterministic expert makes the effect of an action hard to tell from the habit of the expert; play does not.
"""

from __future__ import annotations

import numpy as np

from statevla.robots.libero import Gripper
from statevla.worlds.libero.motion import Arm, Motion, facing_down
from statevla.worlds.libero.skills.pick_place import Destination, PickPlace

PLAY_INSTRUCTION = "play with the objects"
PLAY_STEPS = 200
PLAY_NOISE_FACTOR = 3.0
"""Play is this many times noisier than demonstrations."""
_LOWEST_M = 0.03
_HIGHEST_M = 0.30
_REACH_M = 0.25


def play(arm: Arm) -> Motion:
    """Random manipulation without end; the caller stops it."""
    names = arm.scene.simulation.object_names
    while True:
        if names and arm.rng.random() < 0.6:
            yield from _move_object(arm, names[arm.rng.integers(len(names))])
        yield from _wander(arm)


def _move_object(arm: Arm, name: str) -> Motion:
    """Try to pick an object up and let it go somewhere near, from a random height."""
    here = arm.scene.position(name)
    place = np.clip(here[:2] + arm.rng.uniform(-_REACH_M, _REACH_M, 2), -0.28, 0.28)
    lowest = float(arm.scene.points(name)[:, 2].min())
    goal = Destination(place, lowest, float(arm.rng.uniform(0.01, 0.08)))
    yield from PickPlace(arm, name, goal, done=lambda: True).run()


def _wander(arm: Arm) -> Motion:
    """To a random pose above the table, with the gripper open or closed."""
    table = min(float(arm.scene.points(name)[:, 2].min()) for name in arm.scene.simulation.object_names)
    height = table + arm.rng.uniform(_LOWEST_M, _HIGHEST_M)
    target = np.r_[arm.rng.uniform(-0.25, 0.15), arm.rng.uniform(-0.28, 0.28), height]
    rotation = facing_down(float(arm.rng.uniform(-1.2, 1.2)))
    gripper = Gripper.CLOSE if arm.rng.random() < 0.4 else Gripper.OPEN
    yield from arm.go(target, rotation, gripper, max_steps=int(arm.rng.integers(10, 40)))
