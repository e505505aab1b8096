"""Policies that nobody trained, for any robot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from statevla.checkpoints.checkpoint import Contents, DataInfo, TrainingState, save_checkpoint
from statevla.config import Config
from statevla.model.language import build_language_encoder
from statevla.model.statevla_model import StateVLA
from statevla.robots import RobotSpec
from statevla.transforms import FieldStatistics, Statistics


def save_untrained(config: Config, robot: RobotSpec, instructions: Sequence[str], folder: Path) -> Path:
    """A checkpoint of random weights that knows these instructions; its dimensions and cameras are the robot's."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    np.savez(folder / "language.npz", **{text: rng.normal(size=16).astype(np.float32) for text in instructions})
    language = config.language.model_copy(update={"encoder": str(folder / "language.npz")})
    free = config.model.model_copy(update={"action_dim": 0, "robot_state_dim": 0, "cameras": []})
    torch.manual_seed(0)
    model = StateVLA(config.model_copy(update={"language": language, "model": free}), robot)
    statistics = Statistics(
        FieldStatistics.of(rng.uniform(-1, 1, (100, robot.action_dim))),
        FieldStatistics.of(rng.normal(size=(100, robot.state_dim))),
    )
    contents = Contents(
        model.state_dict(),
        model.config,
        model.robot,
        statistics,
        build_language_encoder(language, 16).info,
        DataInfo("", 0.7, 0, frame_size=96),
        {"phase": "2"},
    )
    save_checkpoint(folder, contents, TrainingState({}, {}), is_best=True)
    return folder / "checkpoint_best.pt"
