"""The trained policy in `models/` is whole, says what it needs, and works in the simulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from statevla.policy import StateVLAPolicy
from statevla.types import Observation, RobotStateLayout

SHIPPED = Path(__file__).parents[3] / "models" / "libero_object_compact"


def test_it_acts_and_listens() -> None:
    policy = StateVLAPolicy.from_pretrained(SHIPPED, device="cpu")
    rng = np.random.default_rng(0)
    images = {camera: rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for camera in ("agentview", "eye_in_hand")}
    chunks = []
    for thing in ("milk", "butter"):
        told = f"pick up the {thing} and place it in the basket"
        policy.reset()
        chunks.append(policy.act_chunk(Observation(images, np.zeros(9), RobotStateLayout.JOINT_GRIPPER, told)).actions)
    assert chunks[0].shape == (16, 7)
    assert np.abs(chunks[0] - chunks[1]).max() > 0.01


@pytest.mark.slow
@pytest.mark.ci
def test_it_solves_tasks_in_simulation(tmp_path: Path) -> None:
    pytest.importorskip("libero")
    from statevla.worlds.evaluate import RolloutArgs, evaluate

    args = RolloutArgs(str(SHIPPED), tasks="3,7", num_trials=1, replan_steps=8, videos=0, out=str(tmp_path / "out"))
    _, summary = evaluate(args)
    assert summary is not None
    assert summary["total"]["successes"] == 2
