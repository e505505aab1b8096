"""The specification's configuration block, pasted into a file as it stands, trains both phases."""

from __future__ import annotations

from pathlib import Path

import pytest

from statevla.checkpoints.checkpoint import load_checkpoint
from statevla.config import load_config
from statevla.training.run import train

BLOCK = """
model:
  embed_dim: 256              # Token/state dimension
  encoder_depth: 12           # Mamba encoder layers
  state_dim: 256              # State representation dimension
  action_dim: 7               # 6 pos/rot + 1 gripper
  action_seq_len: 10          # Action chunk length
  robot_state_dim: 9          # 7 joints + 2 gripper fingers

training:
  phase1:
    num_epochs: 1000
    learning_rate: 1.0e-4
    temporal_predictor_hidden_dim: 512
  phase2:
    num_epochs: 1000
    learning_rate: 5.0e-5
"""


def test_the_block_trains(libero_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(BLOCK)
    overrides = [f"data.path={libero_dir}", f"data.cache_dir={tmp_path / 'cache'}", f"output_dir={tmp_path / 'runs'}"]
    for phase in ("phase1", "phase2"):
        overrides += [f"training.{phase}.max_steps=1", f"training.{phase}.batch_size=2"]
    overrides += ["training.max_validation_batches=1", "device=cpu"]
    config = load_config(file, overrides)
    assert config.model.language_dim == 512
    run = train(config, "2", train(config, "1"))
    losses = load_checkpoint(run / "last").metrics["validation"]
    assert losses["total"] == pytest.approx(losses["flow"] + losses["gripper"])
