"""Checkpoints, policies and observations for the tests of the server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_server import INSTRUCTIONS, save_tiny_checkpoint

from statevla.acting.policy import StateVLAPolicy
from statevla.robots import LIBERO, LIBERO_EITHER, LIBERO_HAND, RobotSpec
from statevla.types import Observation


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained (so it says) on joint positions."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("joint"), LIBERO)


@pytest.fixture(scope="session")
def hand_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained (so it says) on poses of the hand, as openpi's LIBERO script sends them."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("hand"), LIBERO_HAND)


@pytest.fixture(scope="session")
def either_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained (so it says) on either."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("either"), LIBERO_EITHER)


@pytest.fixture
def policy(checkpoint: Path) -> StateVLAPolicy:
    return StateVLAPolicy.from_pretrained(checkpoint)


@pytest.fixture
def hand_policy(hand_checkpoint: Path) -> StateVLAPolicy:
    return StateVLAPolicy.from_pretrained(hand_checkpoint)


@pytest.fixture
def observe() -> Callable[..., Observation]:
    """`observe(seed, robot)` makes an observation of random pixels and numbers."""

    def make(seed: int = 0, robot: RobotSpec = LIBERO) -> Observation:
        rng = np.random.default_rng(seed)
        images = {name: rng.integers(0, 256, (48, 48, 3), dtype=np.uint8) for name in robot.camera_names}
        state = robot.named_state(rng.normal(size=robot.state_dim).astype(np.float32), "test")
        return Observation(images, state, INSTRUCTIONS[seed % 2])

    return make
