"""Switches of the recipe that change what a phase trains, in whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from libero_files import smooth_episode, write_official_file
from statevla.checkpoints.checkpoint import load_checkpoint
from statevla.config import PHASES, Config, SourceConfig
from statevla.errors import UserError
from statevla.machine.storage import read_tensors
from statevla.training.run import train
from statevla.training.setup import RunContext, prepare


def with_phase(config: Config, phase: str, output_dir: Path, **changes: Any) -> Config:
    """A copy that writes to `output_dir` and has `changes` in the section of `phase`."""
    section = getattr(config.training, PHASES[phase].section).model_copy(update=changes)
    training = config.training.model_copy(update={PHASES[phase].section: section, "checkpoint_every_steps": 3})
    return config.model_copy(update={"training": training, "output_dir": str(output_dir)})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run / "last" / "model.safetensors")


@pytest.fixture(scope="module")
def phase1_run(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(with_phase(tiny_config, "1", tmp_path_factory.mktemp("phase1")), "1")


@pytest.fixture(scope="module")
def play_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("play")
    rng = np.random.default_rng(7)
    episodes = [smooth_episode(rng, 25, 64, (250, 250, 250)) for _ in range(3)]
    write_official_file(folder / "play_demo.hdf5", "push the green block to the left", episodes)
    return folder


def with_play(config: Config, path: Path | None) -> Config:
    sources = [SourceConfig(path=str(path), labelled=False)] if path else []
    return config.model_copy(update={"data": config.data.model_copy(update={"sources": sources})})


def test_play_is_watched_but_not_imitated(tiny_config: Config, tmp_path: Path, play_path: Path) -> None:
    config = with_phase(tiny_config, "1", tmp_path)
    alone = prepare(config, "1")
    lines: list[str] = []
    setup = prepare(with_play(config, play_path), "1", context=RunContext(say=lines.append))
    (line,) = lines
    assert line.startswith("also trained on: play0-32px-")
    assert line.endswith("3 episodes of play, 72 samples, each 1 times")
    assert len(setup.train) == len(alone.train) + 72
    assert len(setup.validation) == len(alone.validation)
    assert setup.statistics.to_dict() == alone.statistics.to_dict()
    assert len(setup.data.source_caches) == 1
    assert setup.data.source_caches != (setup.data.cache,)

    # Play and demonstrations in one batch, in the order asked for.
    count = len(alone.train)
    indices = torch.tensor([count, 3, count + 71, 0])
    batch = setup.train.gather_drawn(indices, None)
    demonstrated = alone.train.gather_drawn(torch.tensor([3, 0]), None)
    torch.testing.assert_close(batch.observation.images[[1, 3]], demonstrated.observation.images)
    torch.testing.assert_close(batch.actions[[1, 3]], demonstrated.actions)
    assert not torch.allclose(batch.observation.images[0], batch.observation.images[2])
    names = setup.train.episode_ids_of(indices)
    assert [name.startswith("play_demo") for name in names] == [True, False, True, False]


def test_play_changes_phase_1_and_only_it(
    tiny_config: Config, tmp_path: Path, phase1_run: Path, play_path: Path
) -> None:
    run = train(with_play(with_phase(tiny_config, "1", tmp_path), play_path), "1")
    assert any(not torch.equal(tensor, weights(run)[name]) for name, tensor in weights(phase1_run).items())
    assert load_checkpoint(run).data.source_caches
    config = with_play(tiny_config, play_path)
    setup = prepare(config, "2", run)
    assert len(setup.train) == len(prepare(tiny_config, "2", run).train)
    assert not setup.data.source_caches


def test_play_of_another_robot_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    episode = smooth_episode(rng, 25, 64, (250, 250, 250))
    episode["actions"] = episode["actions"][:, 2:]
    write_official_file(tmp_path / "play_demo.hdf5", "push the green block to the left", [episode])
    with pytest.raises(UserError, match=r"play_demo\.hdf5: demo_0: .*5 .*7"):
        prepare(with_play(tiny_config, tmp_path), "1")
    with pytest.raises(UserError, match="no such file or folder"):
        prepare(with_play(tiny_config, tmp_path / "absent"), "1")


def test_phase_2_builds_on_an_encoder_that_learnt_keyframes(tiny_config: Config, tmp_path: Path) -> None:
    loss = tiny_config.training.phase1.loss.model_copy(update={"keyframe_weight": 0.5})
    run = train(with_phase(tiny_config, "1", tmp_path, loss=loss), "1")
    metrics = load_checkpoint(run / "last").metrics["validation"]
    assert metrics["keyframe"] > 0
    terms = metrics["prediction"] + metrics["variance"] + 0.04 * metrics["covariance"]
    assert metrics["total"] == pytest.approx(terms + 0.5 * metrics["keyframe"], rel=1e-4)
    learnt = read_tensors(run / "best" / "model.safetensors")["state_encoder.keyframe.weight"]
    assert torch.equal(weights(train(tiny_config, "2", run))["state_encoder.keyframe.weight"], learnt)


@pytest.mark.parametrize("phase", ["1", "bc"])
def test_only_training_repeats_starts(phase: str, tiny_config: Config, tmp_path: Path) -> None:
    """What "best" is chosen by must not depend on how often starts are shown."""
    plain, often = (prepare(with_phase(tiny_config, phase, tmp_path, start_repeats=n), phase) for n in (0, 2))
    assert len(often.train) > len(plain.train)
    assert len(often.validation) == len(plain.validation)
