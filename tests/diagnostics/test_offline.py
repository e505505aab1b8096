"""`eval.py` on a trained checkpoint, and the metrics behind it."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from statevla.checkpoints.checkpoint import load_checkpoint
from statevla.config import Config
from statevla.data import open_frame_cache, split_episodes
from statevla.diagnostics.actions import ChunkSamples, action_metrics, binary_metrics
from statevla.diagnostics.offline import evaluate, open_subject
from statevla.diagnostics.sequences import Subject, encode_sequences
from statevla.errors import UserError
from statevla.model.language import build_language_encoder
from statevla.robots import ImageOrientation, RobotSpec
from statevla.training.run import train
from statevla.transforms import Transform

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    config = tiny_config.model_copy(update={"output_dir": str(tmp_path_factory.mktemp("runs"))})
    phase1 = train(config, "1")
    return {"1": phase1, "2": train(config, "2", phase1), "bc": train(config, "bc")}


def make_subject(run: Path) -> Subject:
    loaded = load_checkpoint(run)
    cache = open_frame_cache(loaded.config, progress=False)
    encoder = build_language_encoder(loaded.config.language, loaded.config.model.language_dim)
    table = encoder.encode(list(cache.instructions))
    transform = Transform(loaded.config.model, loaded.statistics, loaded.robot)
    return Subject(loaded.model, loaded.config, cache, transform, table, torch.device("cpu"))


def test_eval_py_writes_numbers_tables_and_pictures(runs: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = runs["2"] / "checkpoint_best.pt"
    command = [sys.executable, str(ROOT / "eval.py"), "--checkpoint", str(checkpoint), "--device", "cpu"]
    done = subprocess.run([*command, "--max-samples", "40"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = runs["2"] / "evaluation_best"
    results = json.loads((out / "evaluation.json").read_text())
    assert results["phase"] == "2"
    assert results["actions"]["num_samples"] == 40
    assert math.isfinite(results["actions"]["real"]["mse"])
    assert len(results["actions"]["normalized"]["mae_per_dim"]) == 6
    assert len(results["actions"]["normalized"]["mae_per_step"]) == 4
    assert {"copy_skill_1", "copy_skill_8", "surprise_p_value"} <= results["world_model"].keys()
    by_line = {"ridge", "robot_state", "episode_mean", "random_encoder"}
    kinds = by_line | {"mlp", "robot_state_mlp", "random_encoder_mlp"}
    assert kinds == results["probes"]["end_effector"].keys()
    for picture in ("action_errors", "chunks", "world_model", "probes"):
        assert (out / f"{picture}.png").stat().st_size > 5_000
    assert "gripper: accuracy" in done.stdout
    assert results["actions"]["names"] == ["x", "y", "z", "rx", "ry", "rz"]
    assert results["actions"]["binary"].keys() == {"gripper"}
    assert "repeat_state" not in results["actions"]  # deltas: no state measures them
    share = 1 - results["actions"]["normalized"]["mse"] / results["actions"]["normalized"]["mse_of_mean_action"]
    verdict = f"{share:.0%} below" if share >= 0 else f"{1 - share:.3g} times"
    assert f"the policy's normalised MSE is {verdict} that of always answering the mean action" in done.stdout
    assert RobotSpec.from_dict(results["robot"], "test") == load_checkpoint(checkpoint).robot
    # The robot's joints hold the hand's position in this world: the baseline must find it.
    assert results["probes"]["end_effector"]["robot_state"] > 0.99


def test_every_phase_is_evaluated_for_what_it_learnt(runs: dict[str, Path]) -> None:
    found = {phase: evaluate(run, max_samples=20, probes=False, device="cpu") for phase, run in runs.items()}
    assert "actions" not in found["1"].results
    assert "world_model" in found["1"].results
    assert "world_model" not in found["bc"].results
    assert found["bc"].results["actions"]["num_seeds"] == 4
    # The encoder is frozen in phase 2: it is the same world model.
    assert found["2"].results["world_model"] == found["1"].results["world_model"]


def test_evaluation_is_repeatable(runs: dict[str, Path]) -> None:
    first, second = (evaluate(runs["bc"], max_samples=30, probes=False, device="cpu").results for _ in range(2))
    assert first["actions"] == second["actions"]


def test_held_out_means_held_out(runs: dict[str, Path]) -> None:
    subject = make_subject(runs["1"])
    data = load_checkpoint(runs["1"]).data
    train_ids, held_out = split_episodes(subject.cache, data.train_split, data.split_seed)
    result = evaluate(runs["1"], probes=False, device="cpu").results
    assert result["num_episodes"] == len(held_out)
    assert not set(train_ids) & set(held_out)


def test_errors_of_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "eval.py"), "--checkpoint", str(tmp_path / "checkpoint_best.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_what_was_said_of_the_trainings_frames_says_nothing_of_others(
    tiny_config: Config, runs: dict[str, Path], tmp_path: Path
) -> None:
    believed = make_subject(runs["bc"]).cache.robot.cameras[0].orientation
    assert believed is not ImageOrientation.UPRIGHT
    data = tiny_config.data.model_copy(update={"orientation": ImageOrientation.UPRIGHT})
    run = train(tiny_config.model_copy(update={"data": data, "output_dir": str(tmp_path / "runs")}), "bc")
    shutil.copytree(data.path, tmp_path / "other")

    def stored(*other: str) -> ImageOrientation:
        path, *said = other or (None,)
        return open_subject(run, path, "cpu", *said).subject.cache.robot.cameras[0].orientation  # type: ignore[arg-type]

    assert stored() is ImageOrientation.UPRIGHT
    assert stored(str(tmp_path / "other")) is believed
    assert stored(str(tmp_path / "other"), "mirrored") is ImageOrientation.MIRRORED


def test_other_embeddings_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    loaded = load_checkpoint(runs["2"])
    path = Path(loaded.config.language.encoder)
    before = path.read_bytes()
    changed = {key: value * 2 for key, value in np.load(path).items()}
    try:
        np.savez(path, **changed)
        with pytest.raises(UserError, match=r"language\.encoder: .* has fingerprint"):
            evaluate(runs["2"], probes=False, device="cpu")
    finally:
        path.write_bytes(before)


def test_sequences_pair_latents_with_the_actions_between_them(runs: dict[str, Path]) -> None:
    subject = make_subject(runs["1"])
    (sequence,) = encode_sequences(subject, [2])
    episode = subject.cache.episodes[2]
    assert sequence.frames[0] == episode.start
    assert len(sequence.z) == len(sequence.target) == episode.num_steps
    raw = torch.from_numpy(subject.cache.executed_actions[episode.start : episode.stop - 1])
    torch.testing.assert_close(sequence.actions, subject.transform.normalize_actions(raw))


def test_action_metrics_of_known_errors(runs: dict[str, Path]) -> None:
    subject = make_subject(runs["bc"])
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(30, 4, 7)).astype(np.float32)
    truth[..., -1] = np.sign(truth[..., -1])
    sampled = np.stack([truth, truth])
    sampled[0, ..., 0] += 0.5
    sampled[1, ..., 0] -= 0.5
    valid = np.ones((30, 4), bool)
    valid[:10, 2:] = False
    sampled[:, :10, 2:] += 100.0  # padding must not count
    samples = ChunkSamples(truth, sampled, valid, np.arange(30), subject.robot.action_names)
    metrics = action_metrics(samples, subject)
    assert metrics["normalized"]["mse_per_dim"] == pytest.approx([0.25, 0, 0, 0, 0, 0], abs=1e-6)
    assert metrics["normalized"]["mae"] == pytest.approx(0.5 / 6, rel=1e-5)
    assert metrics["normalized"]["mae_per_step"] == pytest.approx([0.5 / 6] * 4, rel=1e-5)
    scale = subject.transform.statistics.actions.std[0]
    assert metrics["real"]["mae_per_dim"][0] == pytest.approx(0.5 * scale, rel=1e-4)
    assert metrics["spread"][0] == pytest.approx(0.5 * scale, rel=1e-4)
    assert metrics["binary"] == {"gripper": {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}}
    statistics = subject.transform.statistics.actions
    still = (
        statistics.mean[:6]
        - subject.transform.targets_to_chunks(torch.from_numpy(truth), torch.zeros(30, 9)).numpy()[..., :6]
    )
    assert metrics["real"]["mse_of_mean_action"] == pytest.approx(float((still[valid] ** 2).mean()), rel=1e-5)
    by_scale = still[valid] / statistics.std[:6]
    assert metrics["normalized"]["mse_of_mean_action"] == pytest.approx(float((by_scale**2).mean()), rel=1e-5)


def test_binary_metrics_by_hand() -> None:
    predicted = np.array([[1.0, 1.0, -1.0, -1.0, 1.0]])
    truth = np.array([[1.0, -1.0, -1.0, 1.0, 1.0]])
    valid = np.array([[True, True, True, True, False]])
    metrics = binary_metrics(predicted, truth, valid)
    assert metrics == {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    open_only = -np.ones((1, 5))
    assert binary_metrics(open_only, open_only, valid)["f1"] == 1.0
