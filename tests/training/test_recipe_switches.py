"""Switches of the recipe that change what a phase trains, in whole runs: they learn, resume and say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from libero_files import smooth_episode, write_official_file
from statevla.checkpoints.checkpoint import PHASE_SECTIONS, load_checkpoint, load_training_state
from statevla.config import Config, SourceConfig
from statevla.data import open_frame_cache
from statevla.data.datasets import ChunkDataset, TransitionDataset
from statevla.errors import UserError
from statevla.machine.processes import Processes
from statevla.machine.storage import read_tensors
from statevla.training.run import train
from statevla.training.setup import prepare
from statevla.training.trainer import Trainer


class StopError(Exception):
    """Ends a run where a test wants it to end."""


def with_phase(config: Config, phase: str, output_dir: Path, **changes: Any) -> Config:
    """A copy that writes to `output_dir` and has `changes` in the section of `phase`."""
    section = getattr(config.training, PHASE_SECTIONS[phase]).model_copy(update=changes)
    training = config.training.model_copy(update={PHASE_SECTIONS[phase]: section, "checkpoint_every_steps": 3})
    return config.model_copy(update={"training": training, "output_dir": str(output_dir)})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run / "last" / "model.safetensors")


@pytest.fixture(scope="module")
def phase1_run(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(with_phase(tiny_config, "1", tmp_path_factory.mktemp("phase1")), "1")


@pytest.mark.parametrize(
    ("phase", "changes"),
    [
        ("1", {"behavior_cloning_weight": 0.1}),
        ("2", {"unfreeze_last_blocks": 1}),
    ],
)
def test_resuming_continues_bit_for_bit(
    tiny_config: Config, tmp_path: Path, phase1_run: Path, phase: str, changes: dict[str, Any]
) -> None:
    base = phase1_run if phase == "2" else None
    whole = train(with_phase(tiny_config, phase, tmp_path / "whole", max_steps=5, **changes), phase, base)
    config = with_phase(tiny_config, phase, tmp_path / "parts", max_steps=5, **changes)
    original = Trainer._save

    def save_and_stop(self: Any, is_best: bool) -> None:
        original(self, is_best)
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_save", save_and_stop)
        with pytest.raises(StopError):
            train(config, phase, base)
    parts = tmp_path / "parts" / whole.name
    assert load_training_state(parts)[0].values["step"] == 3
    train(config, phase, resume=True)
    left, right = weights(whole), weights(parts)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_cloning_trains_the_heads_in_phase_1_and_phase_2_starts_anew(
    tiny_config: Config, tmp_path: Path, phase1_run: Path
) -> None:
    run = train(with_phase(tiny_config, "1", tmp_path, behavior_cloning_weight=0.1), "1")
    plain, cloned = weights(phase1_run), weights(run)
    moved = {name for name in plain if not torch.equal(plain[name], cloned[name])}
    assert {"policy.action.weight", "gripper.mlp.0.weight"} <= moved
    assert "gripper_log_variance" not in moved
    metrics = load_checkpoint(run / "last").metrics["validation"]
    assert metrics["behavior_cloning"] > 0
    terms = metrics["prediction"] + metrics["variance"] + 0.04 * metrics["covariance"]
    assert metrics["total"] == pytest.approx(terms + 0.1 * metrics["behavior_cloning"], rel=1e-4)
    setup = prepare(tiny_config, "2", run, torch.device("cpu"), Processes(), lambda _: None)
    torch.manual_seed(tiny_config.seed)
    fresh = type(setup.model)(setup.config)
    assert torch.equal(setup.model.policy.action.weight, fresh.policy.action.weight)
    assert torch.equal(setup.model.state_encoder.tokenizer.cls, cloned["state_encoder.tokenizer.cls"])


def test_chunks_of_windows_are_those_of_their_frames(tiny_config: Config, tmp_path: Path, phase1_run: Path) -> None:
    config = with_phase(tiny_config, "1", tmp_path, behavior_cloning_weight=0.1, num_frames=3, frame_skip=2)
    setup = prepare(config, "1", None, torch.device("cpu"), Processes(), lambda _: None)
    cache, table = open_frame_cache(config), setup.language_table
    episodes = range(len(cache.episodes))
    windows = TransitionDataset(cache, episodes, config.training.phase1, setup.transform, table)
    chunks = ChunkDataset(cache, episodes, config.model.action_seq_len, setup.transform, table)
    # The last window of the first episode reaches its end: there, chunks are padded.
    last = cache.episodes[0].num_steps - 1 - 4
    batch = windows.gather(torch.tensor([0, last]))
    assert batch.chunks.shape == (2, 3, config.model.action_seq_len, 7)
    expected = chunks.gather(torch.tensor([0, 2, 4, last, last + 2, last + 4]))
    torch.testing.assert_close(batch.chunks.flatten(0, 1), expected.actions)
    assert torch.equal(batch.chunk_is_pad.flatten(0, 1), expected.is_pad)
    assert batch.chunk_is_pad.any()
    off = TransitionDataset(cache, episodes, tiny_config.training.phase1, setup.transform, table)
    assert off.gather(torch.tensor([0])).chunks is None


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
    config = with_phase(tiny_config, "1", tmp_path, behavior_cloning_weight=0.1)
    process, device = Processes(), torch.device("cpu")
    alone = prepare(config, "1", None, device, process, lambda _: None)
    lines: list[str] = []
    setup = prepare(with_play(config, play_path), "1", None, device, process, lines.append)
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
    assert batch.chunk_is_pad[[0, 2]].all()
    assert not batch.chunk_is_pad[3].any()
    names = setup.train.episode_ids_of(indices)
    assert [name.startswith("play_demo") for name in names] == [True, False, True, False]


def test_play_changes_phase_1_and_only_it(
    tiny_config: Config, tmp_path: Path, phase1_run: Path, play_path: Path
) -> None:
    run = train(with_play(with_phase(tiny_config, "1", tmp_path), play_path), "1")
    assert any(not torch.equal(tensor, weights(run)[name]) for name, tensor in weights(phase1_run).items())
    assert load_checkpoint(run).data.source_caches
    config = with_play(tiny_config, play_path)
    process, device = Processes(), torch.device("cpu")
    setup = prepare(config, "2", run, device, process, lambda _: None)
    assert len(setup.train) == len(prepare(tiny_config, "2", run, device, process, lambda _: None).train)
    assert not setup.data.source_caches


def test_play_of_another_robot_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    episode = smooth_episode(rng, 25, 64, (250, 250, 250))
    episode["actions"] = episode["actions"][:, 2:]
    write_official_file(tmp_path / "play_demo.hdf5", "push the green block to the left", [episode])
    with pytest.raises(UserError, match=r"play_demo\.hdf5: demo_0: .*5 .*7"):
        prepare(with_play(tiny_config, tmp_path), "1", None, torch.device("cpu"), Processes(), lambda _: None)
    with pytest.raises(UserError, match="no such file or folder"):
        prepare(
            with_play(tiny_config, tmp_path / "absent"), "1", None, torch.device("cpu"), Processes(), lambda _: None
        )


def test_unfrozen_parts_move_at_their_own_rate(tiny_config: Config, tmp_path: Path, phase1_run: Path) -> None:
    config = with_phase(tiny_config, "2", tmp_path, unfreeze_last_blocks=1, unfreeze_lr_scale=0.25)
    setup = prepare(config, "2", phase1_run, torch.device("cpu"), Processes(), lambda _: None)
    trainer = Trainer(setup, tmp_path / "run")
    rates = {id(p): g["lr"] for g in trainer.optimizer.param_groups for p in g["params"]}
    assert len(rates) == len(trainer.parameters)
    for name, parameter in trainer.parameters.items():
        slow = name.startswith("state_encoder.")
        assert rates[id(parameter)] == pytest.approx(1e-3 * (0.25 if slow else 1.0)), name
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-3

    run = train(config, "2", phase1_run)
    before, after = weights(phase1_run), weights(run)
    moved = {
        name for name in before if name.startswith("state_encoder.") and not torch.equal(before[name], after[name])
    }
    assert moved == {name for name in trainer.parameters if name.startswith("state_encoder.")}
    assert "state_encoder.encoder.stack.layers.0.mixer.in_proj.weight" in moved


def test_phase_2_can_start_with_the_cloned_heads(tiny_config: Config, tmp_path: Path, phase1_run: Path) -> None:
    cloned = with_phase(tiny_config, "2", tmp_path / "2", initial_heads="cloned")
    run = train(with_phase(tiny_config, "1", tmp_path / "1", behavior_cloning_weight=0.1), "1")
    model = prepare(cloned, "2", run, torch.device("cpu"), Processes(), lambda _: None).model
    heads = {name: tensor for name, tensor in weights(run).items() if name.startswith(("policy.", "gripper."))}
    assert len(heads) > 10
    for name, tensor in heads.items():
        assert torch.equal(model.state_dict()[name], tensor), name
    with pytest.raises(UserError, match=r"initial_heads 'cloned': .* without behavior_cloning_weight.*set it to 'new'"):
        prepare(cloned, "2", phase1_run, torch.device("cpu"), Processes(), lambda _: None)
    model_settings = cloned.model.model_copy(
        update={"policy": cloned.model.policy.model_copy(update={"mlp_hidden_dim": 24})}
    )
    wider = cloned.model_copy(update={"model": model_settings})
    with pytest.raises(UserError, match=r"initial_heads 'cloned', checkpoint .*: weights do not fit"):
        prepare(wider, "2", run, torch.device("cpu"), Processes(), lambda _: None)


def test_phase_2_builds_on_an_encoder_that_learnt_keyframes(tiny_config: Config, tmp_path: Path) -> None:
    loss = tiny_config.training.phase1.loss.model_copy(update={"keyframe_weight": 0.5})
    run = train(with_phase(tiny_config, "1", tmp_path, loss=loss), "1")
    metrics = load_checkpoint(run / "last").metrics["validation"]
    assert metrics["keyframe"] > 0
    terms = metrics["prediction"] + metrics["variance"] + 0.04 * metrics["covariance"]
    assert metrics["total"] == pytest.approx(terms + 0.5 * metrics["keyframe"], rel=1e-4)
    learnt = weights(run)["state_encoder.keyframe.weight"]
    assert torch.equal(weights(train(tiny_config, "2", run))["state_encoder.keyframe.weight"], learnt)


@pytest.mark.parametrize("phase", ["1", "bc"])
def test_only_training_repeats_starts(phase: str, tiny_config: Config, tmp_path: Path) -> None:
    """What "best" is chosen by must not depend on how often starts are shown."""
    plain, often = (
        prepare(
            with_phase(tiny_config, phase, tmp_path, start_repeats=n),
            phase,
            None,
            torch.device("cpu"),
            Processes(),
            print,
        )
        for n in (0, 2)
    )
    assert len(often.train) > len(plain.train)
    assert len(often.validation) == len(plain.validation)
