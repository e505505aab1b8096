"""What `--resume` refuses to continue with, and what it lets a run change."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from statevla.config import Config, config_from_dict
from statevla.errors import UserError
from statevla.training.run import train
from statevla.training.start import resume_differences


def changed(config: Config, key: str, value: object) -> Config:
    tree = config.model_dump(mode="json")
    *sections, leaf = key.split(".")
    node = tree
    for section in sections:
        node = node[section]
    node[leaf] = value
    return config_from_dict(tree, "test")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.action_normalization", "quantile"),
        ("data.relative_actions", "all"),
        ("data.train_split", 0.5),
        ("data.demos_per_task", 2),
        ("model.encoder_depth", 2),
        ("seed", 3),
        ("training.bc.batch_size", 16),
        ("training.weight_decay", 0.5),
    ],
)
def test_what_the_weights_depend_on_must_stay(tiny_config: Config, key: str, value: object) -> None:
    (difference,) = resume_differences(changed(tiny_config, key, value), tiny_config, "bc", "bc")
    assert difference.startswith(f"{key} is {value} here and ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.bc.max_steps", 99),
        ("training.phase1.batch_size", 16),
        ("training.checkpoint_every_steps", 7),
        ("training.wandb", "offline"),
        ("output_dir", "elsewhere"),
        ("data.num_workers", 2),
        ("data.path", "the same data, elsewhere"),
        ("num_threads", 3),
        ("model.mamba.scan_backend", "torch"),
    ],
)
def test_length_saving_and_places_may_change(tiny_config: Config, key: str, value: object) -> None:
    assert resume_differences(changed(tiny_config, key, value), tiny_config, "bc", "bc") == []


def test_another_phase_is_refused(tiny_config: Config) -> None:
    assert resume_differences(tiny_config, tiny_config, "1", "bc") == ["phase is bc here and 1 in the checkpoint"]


def test_another_language_encoder_is_refused_and_the_same_may_have_moved(tiny_config: Config, tmp_path: Path) -> None:
    encoder = Path(tiny_config.language.encoder)
    config = changed(changed(tiny_config, "output_dir", str(tmp_path)), "training.bc.max_steps", 1)
    train(config, "bc")
    other = tmp_path / "other.npz"
    with np.load(encoder) as embeddings:
        np.savez(other, **{text: -embeddings[text] for text in embeddings.files})
    with pytest.raises(UserError, match=r"language\.encoder: '.*other\.npz' has fingerprint .* use the same"):
        train(changed(config, "language.encoder", str(other)), "bc", resume=True)
    moved = tmp_path / "elsewhere" / encoder.name
    moved.parent.mkdir()
    shutil.copy(encoder, moved)
    train(changed(config, "language.encoder", str(moved)), "bc", resume=True)
