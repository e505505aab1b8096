"""Checkpoints, policies and observations for the tests of the server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_server import INSTRUCTIONS, save_tiny_checkpoint

from statevla.policy import StateVLAPolicy
from statevla.types import Observation, RobotStateLayout


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained (so it says) on joint positions."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("joint"), RobotStateLayout.JOINT_GRIPPER)


@pytest.fixture(scope="session")
def ee_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained (so it says) on end effector poses, as openpi's LIBERO script sends them."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("ee"), RobotStateLayout.EE_GRIPPER)


@pytest.fixture
def policy(checkpoint: Path) -> StateVLAPolicy:
    return StateVLAPolicy.from_pretrained(checkpoint)


@pytest.fixture
def ee_policy(ee_checkpoint: Path) -> StateVLAPolicy:
    return StateVLAPolicy.from_pretrained(ee_checkpoint)


@pytest.fixture
def observe() -> Callable[..., Observation]:
    """`observe(seed, layout)` makes an observation of random pixels and numbers."""

    def make(seed: int = 0, layout: RobotStateLayout = RobotStateLayout.JOINT_GRIPPER) -> Observation:
        rng = np.random.default_rng(seed)
        images = {name: rng.integers(0, 256, (48, 48, 3), dtype=np.uint8) for name in ("agentview", "eye_in_hand")}
        return Observation(images, rng.normal(size=layout.dim).astype(np.float32), layout, INSTRUCTIONS[seed % 2])

    return make
