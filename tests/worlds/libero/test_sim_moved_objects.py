"""Recorded moments drawn again, with the target object where it was and moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("libero")

from statevla.config import Config
from statevla.diagnostics.object_surprise import measure_object_surprise
from statevla.training.setup import prepare
from statevla.worlds.collect import collect
from statevla.worlds.libero.episodes import CollectSettings
from statevla.worlds.libero.moved_objects import SHIFT_M, move_target_objects

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Two collected demonstrations of one task, 64 px frames, seen by the model at 32 px."""
    folder = tmp_path_factory.mktemp("collected")
    collect(CollectSettings("libero_object", seed=1, image_size=64), [0], 2, folder)
    np.savez(
        folder / "language.npz", **{"pick up the alphabet soup and place it in the basket": np.ones(16, np.float32)}
    )
    data = tiny_config.data.model_copy(update={"path": str(folder), "train_split": 0.5})
    language = tiny_config.language.model_copy(update={"encoder": str(folder / "language.npz")})
    return tiny_config.model_copy(update={"data": data, "language": language})


def test_only_the_object_differs(config: Config) -> None:
    subject = prepare(config, "1").subject
    start = subject.cache.episodes[1].start
    frames = torch.tensor([start + 2, start + 10])
    exchanged = move_target_objects(subject, frames)
    assert exchanged is not None
    assert exchanged.source == "simulator"
    assert exchanged.rows.tolist() == [0, 1]
    assert exchanged.details["shift_m"] == SHIFT_M
    # Drawn again from the recorded state, frames are what the collector stored.
    assert exchanged.details["pixel_difference_of_unmoved"] < 0.5
    same, moved = (exchanged.z[kind] for kind in ("unmoved", "moved"))
    assert (moved - same).norm(dim=1).min() > 0


def test_the_test_of_surprise_uses_the_simulator(config: Config) -> None:
    subject = prepare(config, "1").subject
    with torch.no_grad():  # expects nothing to change
        subject.model.state_encoder.predictor.delta[-1].weight.zero_()
        subject.model.state_encoder.predictor.delta[-1].bias.zero_()
    found = measure_object_surprise(subject, [1], move_target_objects)
    assert found["source"] == "simulator"
    assert found["moved_more"] > 0.7
    assert found["p_value"] < 0.01
    assert found["unmoved_ratio"] == pytest.approx(1.0, rel=0.1)


def test_files_of_others_are_left_alone(tiny_config: Config, libero_dir: Path) -> None:
    subject = prepare(tiny_config, "1").subject
    assert move_target_objects(subject, torch.tensor([1, 2])) is None
