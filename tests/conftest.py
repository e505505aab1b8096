"""Fixtures that several tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from libero_files import TASKS, make_libero_dir
from statevla.config import Config, config_from_dict


@pytest.fixture(scope="session")
def libero_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set in LIBERO's official HDF5 layout, see `make_libero_dir`."""
    return make_libero_dir(tmp_path_factory.mktemp("libero"))


@pytest.fixture(autouse=True, scope="session")
def statevla_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep caches of tests out of the user's home."""
    patch = pytest.MonkeyPatch()
    home = tmp_path_factory.mktemp("statevla_home")
    patch.setenv("STATEVLA_HOME", str(home))
    yield home
    patch.undo()


@pytest.fixture(scope="session")
def tiny_config(libero_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A model that trains in seconds on `libero_dir`, in float32, with precomputed instruction embeddings."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(1)
    embeddings = {task.replace("_", " "): rng.normal(size=16).astype(np.float32) for task in TASKS}
    np.savez(folder / "language.npz", **embeddings)
    phase = {"max_steps": 8, "batch_size": 8, "warmup_steps": 2, "learning_rate": 1e-3}
    tree = {
        "model": {
            "embed_dim": 16,
            "encoder_depth": 1,
            "state_dim": 16,
            "action_seq_len": 4,
            "image_size": 32,
            "language_dim": 16,
            "stem": {"kind": "conv", "channels": [8, 16], "strides": [4, 4]},
            "mamba": {"d_state": 4},
            "policy": {"depth": 1, "d_state": 4, "mlp_hidden_dim": 0},
        },
        "language": {"encoder": str(folder / "language.npz")},
        "data": {"path": str(libero_dir), "cache_dir": str(folder / "cache"), "train_split": 0.7},
        "training": {
            "phase1": {**phase, "temporal_predictor_hidden_dim": 32},
            "phase2": phase,
            "bc": phase,
            "precision": "fp32",
            "policy_ema_decay": 0.9,
            "validate_every_steps": 4,
            "checkpoint_every_steps": 4,
            "log_every_steps": 1,
        },
        "output_dir": str(folder / "runs"),
        "device": "cpu",
        "num_threads": 1,
    }
    return config_from_dict(tree, source="tiny_config")
