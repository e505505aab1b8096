"""The training loop: it learns, it resumes exactly, it says what is wrong."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statevla.checkpoints.checkpoint import load_checkpoint, load_training_state, save_checkpoint
from statevla.config import Config, JepaLossConfig
from statevla.data import BatchSampler, TransitionDataset, open_frame_cache, split_episodes
from statevla.errors import UserError
from statevla.machine.storage import read_tensors
from statevla.model.flow import FlowDraws
from statevla.model.statevla_model import ActionLosses
from statevla.training import trainer
from statevla.training.phases import PhaseLoss
from statevla.training.run import train
from statevla.training.setup import prepare
from statevla.training.trainer import Trainer
from statevla.types import ChunkBatch


class StopError(Exception):
    """Ends a run where a test wants it to end."""


def with_training(config: Config, output_dir: Path, phase: str = "1", **changes: Any) -> Config:
    """A copy that writes to `output_dir`; keys that a phase has change there, others in `training`."""
    section = {"1": "phase1", "2": "phase2", "bc": "bc"}[phase]
    training = config.training
    own = {key: value for key, value in changes.items() if key in type(getattr(training, section)).model_fields}
    rest = {key: value for key, value in changes.items() if key not in own}
    part = getattr(training, section).model_copy(update=own)
    training = training.model_copy(update={section: part, **rest})
    return config.model_copy(update={"training": training, "output_dir": str(output_dir)})


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return read_tensors(run / name / "model.safetensors")


def assert_same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.fixture(scope="module")
def phase1_run(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(with_training(tiny_config, tmp_path_factory.mktemp("phase1")), "1")


def run_phase(config: Config, phase: str, phase1_run: Path, **options: Any) -> Path:
    return train(config, phase, phase1_run if phase == "2" else None, **options)


@pytest.mark.parametrize("phase", ["1", "2", "bc"])
def test_a_run_leaves_what_it_promises(tiny_config: Config, tmp_path: Path, phase1_run: Path, phase: str) -> None:
    run = run_phase(with_training(tiny_config, tmp_path, phase), phase, phase1_run)
    names = {"1": "phase1_temporal_jepa", "2": "phase2_flow_matching", "bc": "behaviour_cloning"}
    assert run == tmp_path / names[phase]
    for name in (
        "last",
        "best",
        "checkpoint_last.pt",
        "checkpoint_best.pt",
        "run.json",
        "first_batch.png",
        "tensorboard",
    ):
        assert (run / name).exists(), name
    assert (run / "first_batch.png").stat().st_size > 5_000
    info = json.loads((run / "run.json").read_text())
    assert info["seed"] == 0
    assert info["versions"]["torch"] == torch.__version__
    assert [line["step"] for line in records(run, "train")] == list(range(1, 9))
    assert [line["step"] for line in records(run, "validation")] == [4, 8]
    metrics = load_checkpoint(run / "last").metrics
    assert (metrics["phase"], metrics["step"]) == (phase, 8)
    losses = {line["step"]: line["loss"] for line in records(run, "validation")}
    assert load_checkpoint(run / "best").metrics["step"] == min(losses, key=lambda step: losses[step])
    if phase == "1":
        assert {"copy_skill_1", "action_sensitivity_1", "within_episode_variance"} <= metrics["world_model"].keys()


@pytest.mark.parametrize("phase", ["1", "2", "bc"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_continues_bit_for_bit(
    tiny_config: Config, tmp_path: Path, phase1_run: Path, phase: str, num_workers: int
) -> None:
    data = tiny_config.data.model_copy(update={"num_workers": num_workers})
    base = tiny_config.model_copy(update={"data": data})
    # 180 samples in batches of 64 are two steps an epoch, so the interruption falls into a later epoch.
    changes = {"batch_size": 64, "gradient_accumulation_steps": 2}
    whole = run_phase(with_training(base, tmp_path / "whole", phase, max_steps=7, **changes), phase, phase1_run)

    # Stop after three steps of a schedule of seven: with max_steps=3 the learning rate would differ.
    config = with_training(base, tmp_path / "parts", phase, max_steps=7, checkpoint_every_steps=3, **changes)

    def save_and_stop(*arguments: Any) -> None:
        save_checkpoint(*arguments)
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", save_and_stop)
        with pytest.raises(StopError):
            run_phase(config, phase, phase1_run)
    parts = tmp_path / "parts" / whole.name
    assert load_training_state(parts)[0].values["step"] == 3
    train(config, phase, resume=True)  # phase 2 finds its encoder in its own checkpoint

    assert_same_weights(weights(whole), weights(parts))
    state, other = load_training_state(whole)[0], load_training_state(parts)[0]
    assert_same_weights(state.tensors, other.tensors)
    assert state.values["sampler"] == other.values["sampler"]
    assert state.values["best_loss"] == other.values["best_loss"]
    for kind in ("train", "validation"):
        drop = {"time", "samples_per_s"}
        left, right = (
            [{k: v for k, v in line.items() if k not in drop} for line in records(run, kind)] for run in (whole, parts)
        )
        assert left == right


def test_resuming_needs_the_same_configuration(tiny_config: Config, tmp_path: Path) -> None:
    config = with_training(tiny_config, tmp_path, "bc", max_steps=2)
    train(config, "bc")
    with pytest.raises(UserError, match=r"training\.bc\.learning_rate is 0\.5 here and 0\.001 in the checkpoint"):
        train(with_training(config, tmp_path, "bc", learning_rate=0.5), "bc", resume=True)
    # Longer is the same run, and nothing is overwritten by accident.
    with pytest.raises(UserError, match="holds a run already"):
        train(config, "bc")
    run = train(with_training(config, tmp_path, "bc", max_steps=3), "bc", resume=True)
    assert load_training_state(run)[0].values["step"] == 3
    train(config, "bc", overwrite=True)
    assert load_training_state(run)[0].values["step"] == 2


def test_resuming_nothing_is_an_error(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint to continue from"):
        train(with_training(tiny_config, tmp_path, "bc"), "bc", resume=True)


# Terms over the batch depend on how many samples they see together; without them phase 1 is exact too.
NO_BATCH_TERMS = {"loss": JepaLossConfig(variance_weight=0.0, covariance_weight=0.0)}


@pytest.mark.parametrize(("phase", "changes"), [("1", NO_BATCH_TERMS), ("2", {}), ("bc", {})])
def test_accumulation_equals_the_whole_batch(
    tiny_config: Config, tmp_path: Path, phase1_run: Path, phase: str, changes: dict[str, Any]
) -> None:
    """Losses, gradient norms and weights, over all steps: every sample has its noise wherever it lies.

    Padding makes micro-batches unequal, so averaging their means would fail here.
    """
    runs = []
    for pieces in (1, 2, 4):
        own = {"batch_size": 32, "gradient_accumulation_steps": pieces, **changes}
        runs.append(run_phase(with_training(tiny_config, tmp_path / str(pieces), phase, **own), phase, phase1_run))
    first = records(runs[0], "train")
    weighed = {"1": ("total", "prediction"), "2": ("total", "flow", "gripper")}
    for run in runs[1:]:
        for left, right in zip(first, records(run, "train"), strict=True):
            for name in (*weighed["1" if phase == "1" else "2"], "grad_norm"):
                assert left[name] == pytest.approx(right[name], rel=1e-4), (name, left["step"])
        ours, theirs = weights(runs[0]), weights(run)
        for name, tensor in ours.items():
            # Its gradient is rounding noise (a normalisation follows), which Adam blows up to full steps.
            if not re.fullmatch(r".*stems\.\d+\.0\.bias", name):
                torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=2e-5, msg=f"{name} differs")


def test_a_single_sample_has_no_variance(tiny_config: Config, tmp_path: Path) -> None:
    config = with_training(tiny_config, tmp_path, "1", batch_size=8, gradient_accumulation_steps=8)
    with pytest.raises(UserError, match=r"expected 2 or more predictions per micro-batch, .* got 1; accumulate less"):
        train(config, "1")


@pytest.mark.parametrize("accumulation", [1, 3])
def test_every_sample_has_its_own_noise_however_a_batch_is_cut(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    changes = {"batch_size": 24, "max_steps": 2, "gradient_accumulation_steps": accumulation}
    setup = prepare(with_training(tiny_config, tmp_path, "bc", **changes), "bc")
    original, given = setup.model.action_loss, []

    def note(batch: ChunkBatch, draws: FlowDraws | None = None) -> ActionLosses:
        if setup.model.training:  # validation draws its own
            assert draws is not None
            given.append(draws.noise)
        return original(batch, draws)

    monkeypatch.setattr(setup.model, "action_loss", note)
    Trainer(setup, tmp_path / "run").fit()
    assert [noise.shape for noise in given] == [(24 // accumulation, 4, 6)] * 2 * accumulation
    assert len({tuple(row.tolist()) for row in torch.cat(given).flatten(1)}) == 2 * 24


def test_processes_and_accumulation_share_the_same_batches() -> None:
    indices = BatchSampler(100, 24, seed=0).next_batch()
    for rank in range(2):
        part = BatchSampler(100, 24, seed=0, rank=rank, world_size=2, accumulation=3)
        for piece in range(3):
            assert torch.equal(part.next_batch(), indices[part.rows(piece)])


@pytest.mark.parametrize("phase", ["1", "2", "bc"])
def test_one_batch_can_be_learnt_by_heart(tiny_config: Config, phase1_run: Path, phase: str) -> None:
    steps = {"1": 150, "2": 300, "bc": 300}[phase]
    phase1 = phase1_run if phase == "2" else None
    setup = prepare(tiny_config, phase, phase1)
    loss = PhaseLoss(setup.model, phase)
    parameters = [parameter for _, parameter in setup.model.phase_parameters(phase)]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    batch = setup.train.gather_drawn(torch.arange(0, 160, 20), None)
    losses: list[dict[str, float]] = []
    for step in range(steps):
        torch.manual_seed(step % 8)
        optimizer.zero_grad()
        total, terms = loss(batch)
        total.backward()
        optimizer.step()
        if phase == "1":
            setup.model.update_target(step, steps)
        losses.append({name: float(value) for name, value in terms.items()})
    if phase == "1":
        assert losses[-1]["total"] < 0.5 * losses[0]["total"]
        assert losses[-1]["variance"] < losses[0]["variance"]
    else:
        assert losses[-1]["flow"] < 0.5 * losses[0]["flow"]
        assert losses[-1]["gripper"] < 0.2 * losses[0]["gripper"]


def test_a_phase_trains_its_own_parameters_only(tiny_config: Config, tmp_path: Path, phase1_run: Path) -> None:
    before = weights(phase1_run, "best")
    run = run_phase(with_training(tiny_config, tmp_path, "2"), "2", phase1_run / "checkpoint_best.pt")
    after = weights(run)
    for name, tensor in after.items():
        if name.startswith("state_encoder."):
            assert torch.equal(tensor, before[name]), name
    assert any(not torch.equal(after[name], before[name]) for name in after if name.startswith("policy."))


def test_a_cache_damaged_since_is_refused_and_the_checkpoint_stays(
    tiny_config: Config, tmp_path: Path, libero_dir: Path
) -> None:
    data = tiny_config.data.model_copy(update={"cache_dir": str(tmp_path / "cache")})
    config = tiny_config.model_copy(update={"data": data})
    run = train(with_training(config, tmp_path, "bc", max_steps=3), "bc")
    before = weights(run)
    # Readers refuse NaN; what comes into the cache later must not poison weights either.
    cache = open_frame_cache(config, progress=False)
    path = cache.folder / "actions.npy"
    actions = np.load(path)
    episode = cache.episodes[load_split(config)[0]]
    actions[episode.start : episode.stop] = np.nan
    np.save(path, actions)
    with pytest.raises(UserError) as raised:
        train(with_training(config, tmp_path, "bc", max_steps=60), "bc", resume=True)
    assert "actions.npy: damaged" in str(raised.value)
    assert_same_weights(weights(run), before)


def load_split(config: Config) -> list[int]:
    return split_episodes(open_frame_cache(config, progress=False), config.data.train_split, config.seed)[0]


def test_not_a_number_names_the_episodes(tiny_config: Config, tmp_path: Path) -> None:
    config = with_training(tiny_config, tmp_path, "1", batch_size=16)
    setup = prepare(config, "1")
    bad = setup.main.train[1]
    episode = setup.main.cache.episodes[bad]
    cache = setup.main.cache
    cache.executed_actions = np.array(cache.executed_actions)
    cache.executed_actions[episode.start : episode.stop] = np.nan
    samples = TransitionDataset(
        cache, setup.main.train, config.training.phase1, setup.transform, setup.main.language_table
    )
    with pytest.raises(UserError) as raised:
        Trainer(replace(setup, train=samples), tmp_path / "run").fit()
    assert f"NaN or infinite values: {episode.episode_id};" in str(raised.value)


def test_diverging_training_says_so(tiny_config: Config, tmp_path: Path) -> None:
    config = with_training(tiny_config, tmp_path, "bc", learning_rate=1e30, max_steps=20, grad_clip_norm=1e30)
    with pytest.raises(UserError, match=r"its inputs are finite .* lower the learning rate"):
        train(config, "bc")


def test_phase_2_needs_a_fitting_phase_1(tiny_config: Config, tmp_path: Path, phase1_run: Path) -> None:
    config = with_training(tiny_config, tmp_path, "2")
    with pytest.raises(UserError, match=r"needs --phase1_checkpoint; run `python train\.py .* --phase 1`"):
        train(config, "2")
    with pytest.raises(UserError, match="phase bc takes none"):
        train(config, "bc", phase1_run)
    with pytest.raises(UserError, match="not found"):
        train(config, "2", tmp_path / "nowhere" / "checkpoint_best.pt")
    other = config.model_copy(update={"model": config.model.model_copy(update={"cameras": ["agentview"]})})
    with pytest.raises(UserError, match=r"model\.cameras is \['agentview'\] here and \['agentview', 'eye_in_hand'\]"):
        train(other, "2", phase1_run)


def test_phase_2_refuses_another_language_encoder(tiny_config: Config, tmp_path: Path, phase1_run: Path) -> None:
    embeddings = dict(np.load(tiny_config.language.encoder))
    np.savez(tmp_path / "other.npz", **{key: value + 1 for key, value in embeddings.items()})
    language = tiny_config.language.model_copy(update={"encoder": str(tmp_path / "other.npz")})
    config = with_training(tiny_config, tmp_path, "2").model_copy(update={"language": language})
    with pytest.raises(UserError, match=r"language\.encoder: .*other\.npz' has fingerprint"):
        train(config, "2", phase1_run)


def test_the_policy_may_differ_between_the_phases(tiny_config: Config, tmp_path: Path, phase1_run: Path) -> None:
    model = tiny_config.model.model_copy(
        update={"action_seq_len": 6, "policy": tiny_config.model.policy.model_copy(update={"depth": 2})}
    )
    run = train(with_training(tiny_config, tmp_path, "2").model_copy(update={"model": model}), "2", phase1_run)
    assert load_checkpoint(run).config.model.action_seq_len == 6


def test_statistics_come_from_phase_1(tiny_config: Config, tmp_path: Path, phase1_run: Path) -> None:
    config = with_training(tiny_config.model_copy(update={"seed": 5}), tmp_path, "2")
    run = train(config, "2", phase1_run)
    ours, theirs = load_checkpoint(run), load_checkpoint(phase1_run)
    assert ours.statistics.to_dict() == theirs.statistics.to_dict()
    # Held-out episodes stay held out whatever the seed of phase 2.
    assert ours.data == theirs.data


def test_training_without_held_out_episodes_works(tiny_config: Config, tmp_path: Path) -> None:
    data = tiny_config.data.model_copy(update={"train_split": 1.0})
    run = train(with_training(tiny_config.model_copy(update={"data": data}), tmp_path, "bc"), "bc")
    assert load_checkpoint(run / "best").metrics["step"] == 8
