"""Disturbances do in the simulator what they say, from when they say, and nothing before."""

from __future__ import annotations

import numpy as np
import pytest

from statevla.errors import UserError

pytest.importorskip("libero")

from statevla.worlds.libero.disturbances import COVER_VALUE, Disturbance, target_of_goal
from statevla.worlds.libero.env import LiberoWorld
from statevla.worlds.libero.tasks import find_task

ONSET = 5
CLOSE, OPEN = np.array([0.0] * 6 + [1.0]), np.array([0.0] * 6 + [-1.0])


@pytest.fixture(scope="module")
def world() -> LiberoWorld:
    return LiberoWorld(find_task("libero_object", 0), image_size=32)


def run(world: LiberoWorld, kind: str, action: np.ndarray, num_steps: int = 40) -> tuple[Disturbance, list[np.ndarray]]:
    """Positions of the target object before every step and after the last."""
    world.reset(0, {"init_state_index": 0})
    disturbance = Disturbance(kind, ONSET)  # type: ignore[arg-type]
    name, places = target_of_goal(world.simulation), []
    for step in range(num_steps):
        places.append(world.object_poses()[name][:3])
        world.step(disturbance.act(world.simulation, step, action))
    return disturbance, [*places, world.object_poses()[name][:3]]


@pytest.mark.slow
def test_moved_object_lies_elsewhere_on_the_table(world: LiberoWorld) -> None:
    still, calm = run(world, "none", OPEN)
    disturbance, moved = run(world, "moved", OPEN)
    assert still.visible_from is None
    assert disturbance.visible_from == ONSET + 1
    np.testing.assert_array_equal(moved[: ONSET + 1], calm[: ONSET + 1])
    shift = np.linalg.norm((moved[-1] - calm[-1])[:2])
    assert 0.08 < shift < 0.3
    assert moved[-1][2] > calm[-1][2] - 0.05  # on the table, not below it


@pytest.mark.slow
def test_blocked_fingers_stay_open(world: LiberoWorld) -> None:
    run(world, "none", CLOSE)
    closed = np.abs(world.simulation.finger_positions()).max()
    disturbance, _ = run(world, "blocked", OPEN)
    assert disturbance.visible_from is None  # never told to close: nothing to be seen
    open_ = np.abs(world.simulation.finger_positions()).max()
    disturbance, _ = run(world, "blocked", CLOSE)
    assert disturbance.visible_from == ONSET + 1
    assert closed < 0.5 * open_
    assert np.abs(world.simulation.finger_positions()).max() > 0.9 * open_


def test_covered_camera_sees_nothing_from_the_onset_on() -> None:
    images = {name: np.arange(48, dtype=np.uint8).reshape(4, 4, 3) for name in ("agentview", "eye_in_hand")}
    disturbance = Disturbance("occluded", ONSET)
    assert (disturbance.see(images, ONSET - 1)["agentview"] == images["agentview"]).all()
    assert disturbance.visible_from is None
    seen = disturbance.see(images, ONSET + 2)
    assert (seen["agentview"] == COVER_VALUE).all()
    assert (seen["eye_in_hand"] == images["eye_in_hand"]).all()
    assert disturbance.visible_from == ONSET + 2


def test_unknown_disturbance() -> None:
    with pytest.raises(UserError, match="earthquake"):
        Disturbance("earthquake", 0)  # type: ignore[arg-type]
