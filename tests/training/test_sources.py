"""Several data sets in one training: weights, held-out episodes, one statistics, and robots that must agree."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from libero_files import smooth_episode, write_official_file
from statevla.checkpoints.checkpoint import load_checkpoint
from statevla.config import Config, SourceConfig
from statevla.data.joined import JoinedSamples
from statevla.errors import UserError
from statevla.training.run import train
from statevla.training.setup import Setup, prepare


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four more demonstrations of one of the tasks."""
    folder = tmp_path_factory.mktemp("more")
    rng = np.random.default_rng(3)
    episodes = [smooth_episode(rng, 20, 64, (40, 90, 200)) for _ in range(4)]
    write_official_file(folder / "more_demo.hdf5", "push the green block to the left", episodes)
    return folder


def with_sources(config: Config, *sources: dict[str, Any], **data: Any) -> Config:
    chosen = [SourceConfig(**source) for source in sources]
    return config.model_copy(update={"data": config.data.model_copy(update={"sources": chosen, **data})})


def prepared(config: Config, phase: str = "bc") -> Setup:
    return prepare(config, phase)


@pytest.mark.parametrize(("weight", "times"), [(1.0, 1.0), (2.0, 2.0), (0.5, 0.5)])
def test_weights_say_how_often_a_sample_counts(tiny_config: Config, more: Path, weight: float, times: float) -> None:
    alone = prepared(tiny_config)
    both = prepared(with_sources(tiny_config, {"path": str(more), "weight": weight}))
    names = both.train.episode_ids_of(torch.arange(len(both.train)))
    from_more = sum(name.startswith("more_demo") for name in names)
    assert len(both.train) == len(alone.train) + from_more
    # 0.7 of four episodes are trained on, 20 samples each; the others are held out, once each whatever the weight.
    assert from_more == round(3 * 20 * times)
    assert len(both.validation) == len(alone.validation) + 20
    held_out = set(both.validation.episode_ids_of(torch.arange(len(both.validation))))
    assert not held_out & set(names)


def test_statistics_are_those_of_all_training_episodes(tiny_config: Config, more: Path) -> None:
    alone, both = prepared(tiny_config), prepared(with_sources(tiny_config, {"path": str(more), "weight": 7.0}))
    actions = [alone.main.cache.actions[alone.main.cache.steps_of(alone.main.train)]]
    used = {name.split("/")[1] for name in both.train.episode_ids_of(torch.arange(len(both.train))) if "more" in name}
    with h5py.File(more / "more_demo.hdf5") as file:
        actions += [file["data"][key]["actions"][()] for key in sorted(used)]
    expected = np.concatenate(actions).astype(np.float32)
    np.testing.assert_allclose(both.statistics.actions.mean, expected.mean(0, dtype=np.float64), atol=1e-6)
    np.testing.assert_allclose(both.statistics.actions.max, expected.max(0), atol=1e-6)


def test_every_phase_trains_on_two_sources(tiny_config: Config, more: Path, tmp_path: Path) -> None:
    config = with_sources(tiny_config, {"path": str(more)}).model_copy(update={"output_dir": str(tmp_path)})
    run = train(config, "1")
    for folder in (run, train(config, "2", phase1_checkpoint=run)):
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in log if line["kind"] == "train"] == list(range(1, 9))
        assert all(math.isfinite(line["total"]) for line in log if line["kind"] == "train")
        (said,) = load_checkpoint(folder).data.source_caches
        assert said.startswith(more.stem)


def test_a_batch_keeps_the_order_that_was_asked_for(tiny_config: Config, more: Path) -> None:
    both = prepared(with_sources(tiny_config, {"path": str(more), "weight": 2.0}))
    assert isinstance(both.train, JoinedSamples)
    main = len(both.train.parts[0])
    own = len(both.train.parts[1])
    indices = torch.tensor([main + 5, 3, main + own + 5, 0])
    batch = both.train.gather_drawn(indices, None)
    torch.testing.assert_close(batch.actions[0], batch.actions[2])  # the same sample, counted twice
    torch.testing.assert_close(batch.actions[[1, 3]], both.train.parts[0].gather_drawn(indices[[1, 3]], None).actions)


def test_rates_that_disagree_are_refused(tiny_config: Config, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    write_official_file(tmp_path / "slow_demo.hdf5", "push the green block", [smooth_episode(rng, 20, 64, (9, 9, 9))])
    with h5py.File(tmp_path / "slow_demo.hdf5", "r+") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 10}})
    with pytest.raises(UserError, match=r"slow_demo|another robot than 'libero'; control_freq_hz: 20\.0 against 10\.0"):
        prepared(with_sources(tiny_config, {"path": str(tmp_path)}))


def test_another_robot_is_refused(tiny_config: Config, more: Path) -> None:
    with pytest.raises(UserError, match=r"robot_state_dim is 9, robot 'libero_hand' has 8"):
        prepared(with_sources(tiny_config, {"path": str(more), "robot": "libero_hand"}))
