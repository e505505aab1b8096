"""`--init_checkpoint`: training that begins with the weights of a checkpoint, on whatever data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from libero_files import TASKS, smooth_episode, write_official_file
from statevla.checkpoints.checkpoint import load_checkpoint
from statevla.config import Config
from statevla.errors import UserError
from statevla.training.run import train
from statevla.training.setup import RunContext, Setup, prepare


@pytest.fixture(scope="module")
def trained(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `bc` run, long enough to have learned something."""
    config = with_bc(tiny_config, max_steps=60, learning_rate=3e-3)
    return train(config.model_copy(update={"output_dir": str(tmp_path_factory.mktemp("trained"))}), "bc")


@pytest.fixture(scope="module")
def other_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, task = tmp_path_factory.mktemp("other"), next(iter(TASKS))
    rng = np.random.default_rng(8)
    episodes = [smooth_episode(rng, 30, 64, (90, 60, 250)) for _ in range(3)]
    write_official_file(folder / f"{task}_demo.hdf5", task.replace("_", " "), episodes)
    return folder


def with_bc(config: Config, **changes: Any) -> Config:
    bc = config.training.bc.model_copy(update=changes)
    training = config.training.model_copy(update={"bc": bc})
    return config.model_copy(update={"training": training})


def on(config: Config, data: Path) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"path": str(data)})})


def begin(config: Config, phase: str, checkpoint: Path, say: Any = print) -> Setup:
    return prepare(config, phase, init_checkpoint=checkpoint, context=RunContext(say=say))


@pytest.mark.parametrize("phase", ["1", "bc"])
def test_weights_are_the_checkpoints_and_statistics_the_datas(
    tiny_config: Config, trained: Path, other_data: Path, phase: str
) -> None:
    setup, theirs = begin(on(tiny_config, other_data), phase, trained), load_checkpoint(trained)
    for name, tensor in theirs.model.state_dict().items():
        assert torch.equal(setup.model.state_dict()[name], tensor), name
    alone = prepare(on(tiny_config, other_data), phase)
    assert setup.statistics.to_dict() == alone.statistics.to_dict() != theirs.statistics.to_dict()
    assert not torch.equal(alone.model.policy.action.weight, theirs.model.policy.action.weight)


def test_what_only_this_run_needs_is_random_and_named(tiny_config: Config, trained: Path) -> None:
    loss = tiny_config.training.phase1.loss.model_copy(update={"keyframe_weight": 0.5})
    phase1 = tiny_config.training.phase1.model_copy(update={"loss": loss})
    training = tiny_config.training.model_copy(update={"phase1": phase1})
    said: list[str] = []
    model = begin(tiny_config.model_copy(update={"training": training}), "1", trained, said.append).model
    assert model.state_encoder.keyframe is not None
    assert any(f"begins with the weights of {trained}" in line for line in said)
    assert any(line.endswith("random: state_encoder.keyframe") for line in said)


def test_how_it_trains_and_samples_may_change(tiny_config: Config, trained: Path) -> None:
    policy = tiny_config.model.policy.model_copy(
        update={"sampling_temperature": 0.5, "num_sampling_steps": 7, "solver": "heun"}
    )
    model = tiny_config.model.model_copy(update={"policy": policy, "robot_token_dropout": 0.25})
    setup = begin(tiny_config.model_copy(update={"model": model}), "bc", trained)
    assert setup.model.config.model.policy.sampling_temperature == 0.5
    assert torch.equal(setup.model.policy.action.weight, load_checkpoint(trained).model.policy.action.weight)


def test_it_learns_from_where_the_checkpoint_stopped(tiny_config: Config, trained: Path, tmp_path: Path) -> None:
    """One small step away from trained weights, the loss is theirs and not that of random ones."""
    config = with_bc(tiny_config, max_steps=1, learning_rate=1e-6, warmup_steps=0)
    before = load_checkpoint(trained / "last").metrics["validation"]["loss"]

    def loss(name: str, init: Path | None) -> float:
        run = train(config.model_copy(update={"output_dir": str(tmp_path / name)}), "bc", init_checkpoint=init)
        return load_checkpoint(run / "last").metrics["validation"]["loss"]

    assert loss("tuned", trained / "last") == pytest.approx(before, rel=1e-3)
    assert loss("random", None) != pytest.approx(before, rel=5e-3)


def test_a_resumed_run_needs_no_initial_checkpoint(
    tiny_config: Config, trained: Path, other_data: Path, tmp_path: Path
) -> None:
    config = on(tiny_config, other_data).model_copy(update={"output_dir": str(tmp_path)})
    run = train(config, "1", init_checkpoint=trained)
    phase1 = config.training.phase1.model_copy(update={"max_steps": 10})
    longer = config.model_copy(update={"training": config.training.model_copy(update={"phase1": phase1})})
    assert load_checkpoint(run / "last").metrics["step"] == 8
    train(longer, "1", resume=True)
    assert load_checkpoint(run / "last").metrics["step"] == 10


def test_phase_2_goes_on_from_a_policy_on_its_frozen_encoder(
    tiny_config: Config, trained: Path, other_data: Path, tmp_path: Path
) -> None:
    config = on(tiny_config, other_data).model_copy(update={"output_dir": str(tmp_path)})
    setup, theirs = begin(config, "2", trained), load_checkpoint(trained)
    assert setup.statistics.to_dict() == theirs.statistics.to_dict()
    for name, tensor in theirs.model.state_dict().items():
        assert torch.equal(setup.model.state_dict()[name], tensor), name
    run = train(config, "2", init_checkpoint=trained)
    ours = load_checkpoint(run).model.state_dict()
    changed = {name for name, tensor in theirs.model.state_dict().items() if not torch.equal(ours[name], tensor)}
    assert changed
    assert not any(name.startswith("state_encoder.") for name in changed), changed
    phase2 = config.training.phase2.model_copy(update={"max_steps": config.training.phase2.max_steps + 2})
    longer = config.model_copy(update={"training": config.training.model_copy(update={"phase2": phase2})})
    train(longer, "2", resume=True, init_checkpoint=trained)
    assert load_checkpoint(run / "last").metrics["step"] == phase2.max_steps


def test_phase_2_goes_on_from_one_checkpoint_with_a_policy(tiny_config: Config, trained: Path, tmp_path: Path) -> None:
    phase1 = train(tiny_config.model_copy(update={"output_dir": str(tmp_path)}), "1")
    with pytest.raises(UserError, match=r"phase 1 made it, without a policy; give it as --phase1_checkpoint"):
        begin(tiny_config, "2", phase1)
    with pytest.raises(UserError, match=r"--init_checkpoint brings its encoder; leave --phase1_checkpoint out"):
        prepare(tiny_config, "2", phase1_checkpoint=phase1, init_checkpoint=trained)


def test_what_does_not_fit_is_said(tiny_config: Config, trained: Path, tmp_path: Path) -> None:
    wider = tiny_config.model_copy(update={"model": tiny_config.model.model_copy(update={"state_dim": 32})})
    with pytest.raises(
        UserError, match=r"another one; model\.state_dim is 32 here and 16 in the checkpoint; use the con"
    ):
        begin(wider, "1", trained)
    with pytest.raises(UserError, match="nowhere"):
        begin(tiny_config, "1", tmp_path / "nowhere")
    phase1 = tiny_config.training.phase1.model_copy(update={"frame_skip": 2})
    skipping = tiny_config.model_copy(update={"training": tiny_config.training.model_copy(update={"phase1": phase1})})
    with pytest.raises(
        UserError, match=r"--init_checkpoint .*weights do not fit.*other shapes: state_encoder.predictor"
    ):
        begin(skipping, "1", trained)
