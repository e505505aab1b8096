"""`statevla calibrate` on a really trained, tiny world model: what is scored is what the policy would have seen."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from statevla.acting.alarm import novelty_of
from statevla.acting.policy import StateVLAPolicy
from statevla.checkpoints.checkpoint import ALARM_FILE, load_checkpoint, resolve_checkpoint
from statevla.commands.calibrate import CalibrateArgs, calibrate
from statevla.commands.share import ShareArgs, share
from statevla.config import Config
from statevla.data import FrameCache, open_frame_cache, split_episodes
from statevla.diagnostics.calibrate import encode_cached, score_episodes
from statevla.errors import UserError
from statevla.machine.lock import only_writer_in
from statevla.training.run import train
from statevla.types import Observation

ALPHA = 0.3  # four held-out episodes bound no smaller rate than 1/5


@pytest.fixture(scope="module")
def trained(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    data = tiny_config.data.model_copy(update={"train_split": 0.6})
    config = tiny_config.model_copy(update={"output_dir": str(tmp_path_factory.mktemp("runs")), "data": data})
    phase1 = train(config, "1")
    return {"2": train(config, "2", phase1), "bc": train(config, "bc")}


@pytest.fixture
def run(trained: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained["2"], tmp_path / "run", symlinks=True))


@pytest.fixture
def cache(trained: dict[str, Path]) -> FrameCache:
    return open_frame_cache(load_checkpoint(trained["2"]).config, progress=False)


def held_out(run: Path, cache: FrameCache) -> list[int]:
    data = load_checkpoint(run).data
    return split_episodes(cache, data.train_split, data.split_seed)[1]


def replay(policy: StateVLAPolicy, cache: FrameCache, index: int, count: int) -> tuple[list[float], list[float]]:
    """Show a recorded episode to a session that looks every `count` steps and hears what was executed."""
    episode = cache.episodes[index]
    session, surprise, novelty = policy.new_session(), [], []
    for step in range(episode.start, episode.stop, count):
        pictures = cache.frames(np.array([step])).numpy()[0]
        text = cache.instructions[episode.instruction]
        state = cache.robot.named_state(cache.robot_state[step], "test")
        seen = Observation(dict(zip(cache.cameras, pictures)), state, text)
        ((_, sighting),) = policy.sample_chunks([(session, seen)])
        session.note(sighting)
        if session.surprise is not None:
            surprise.append(session.surprise)
        if session.novelty is not None:
            novelty.append(session.novelty)
        session.set_executed(cache.executed_actions[step : step + count])
    return surprise, novelty


@pytest.mark.parametrize("count", [1, 3, 4])
def test_scores_are_what_the_policy_sees(run: Path, cache: FrameCache, count: int) -> None:
    calibrate(CalibrateArgs(str(run), alpha=ALPHA))
    policy = StateVLAPolicy.from_pretrained(run, device="cpu", execute_steps=count)
    assert policy.calibration is not None
    episodes = held_out(run, cache)
    scores = score_episodes(policy, cache, episodes, policy.calibration.memory)
    for place, index in enumerate(episodes):
        surprise, novelty = replay(policy, cache, index, count)
        assert max(surprise) == pytest.approx(scores["surprise"][count][place], rel=1e-3)
        assert max(novelty) == pytest.approx(scores["novelty"][count][place], rel=1e-3)
    # rank ceil(5 * 0.7) = 4: the largest of the four
    assert policy.threshold("surprise") == pytest.approx(max(scores["surprise"][count]), rel=1e-6)


def test_files_lie_in_the_checkpoint_and_are_read_with_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate(CalibrateArgs(str(run / "checkpoint_best.pt"), alpha=ALPHA))
    folder = resolve_checkpoint(run)
    tree = json.loads((folder / ALARM_FILE).read_text())
    assert tree["alpha"] == ALPHA
    assert set(tree["thresholds"]["surprise"]) == {"1", "2", "3", "4"}
    memory = folder / tree["memory"]
    assert list(folder.glob("alarm*.safetensors")) == [memory]
    assert "held-out episodes" in capsys.readouterr().out
    assert StateVLAPolicy.from_pretrained(run, device="cpu").threshold("surprise") is not None


def test_a_second_calibration_replaces_the_first_or_leaves_it(run: Path, tmp_path: Path) -> None:
    """Killed when the new memory is there and `alarm.json` is not, the calibration is the one of before."""
    folder = resolve_checkpoint(run)
    calibrate(CalibrateArgs(str(run), alpha=ALPHA))
    before = StateVLAPolicy.from_pretrained(run, device="cpu").calibration
    assert before is not None
    other = replace(before, memory=before.memory + 1, alpha=0.5)
    shutil.copytree(folder, tmp_path / "copy")
    other.save(tmp_path / "copy")
    for file in (tmp_path / "copy").glob("alarm*.safetensors"):
        shutil.copy(file, folder)
    kept = StateVLAPolicy.from_pretrained(run, device="cpu").calibration
    assert kept is not None
    assert kept.alpha == ALPHA
    assert torch.equal(kept.memory, before.memory)
    other.save(folder)
    replaced = StateVLAPolicy.from_pretrained(run, device="cpu").calibration
    assert replaced is not None
    assert torch.equal(replaced.memory, other.memory)
    assert len(list(folder.glob("alarm*"))) == 2


def test_what_is_being_trained_is_not_calibrated(run: Path) -> None:
    with only_writer_in(run), pytest.raises(UserError, match=f"{run}: process .* is writing here"):
        calibrate(CalibrateArgs(str(run), alpha=ALPHA))


def test_what_comes_along_or_from_the_hub_is_copied_first(run: Path, tmp_path: Path) -> None:
    cached = tmp_path / "models--owner--policy" / "snapshots" / "0123"
    shutil.copytree(resolve_checkpoint(run), cached)
    for checkpoint in ("libero_object_compact", str(cached)):
        before = sorted(resolve_checkpoint(checkpoint).iterdir())
        with pytest.raises(UserError, match=f"'statevla share --checkpoint {checkpoint} --to my_policy' and calibrate"):
            calibrate(CalibrateArgs(checkpoint, alpha=ALPHA))
        assert sorted(resolve_checkpoint(checkpoint).iterdir()) == before
    share(ShareArgs(str(cached), str(tmp_path / "my_policy")))
    calibrate(CalibrateArgs(str(tmp_path / "my_policy"), alpha=ALPHA))
    assert StateVLAPolicy.from_pretrained(tmp_path / "my_policy", device="cpu").threshold("surprise") is not None


def test_memory_is_of_training_frames(run: Path, cache: FrameCache) -> None:
    """A training frame is its own neighbour; a held-out one is farther away."""
    calibrate(CalibrateArgs(str(run), alpha=ALPHA))
    policy = StateVLAPolicy.from_pretrained(run, device="cpu")
    assert policy.calibration is not None
    data = load_checkpoint(run).data
    for episodes, inside in zip(split_episodes(cache, data.train_split, data.split_seed), (True, False)):
        z = encode_cached(policy, cache, cache.steps_of(episodes))
        nearest = novelty_of(z, policy.calibration.memory, num_neighbors=1)
        assert (bool((nearest < 1e-3).all())) == inside


def test_too_few_episodes_are_named(run: Path) -> None:
    with pytest.raises(UserError, match="at least 9 calibration episodes, got 4"):
        calibrate(CalibrateArgs(str(run), alpha=0.1))
    assert not (resolve_checkpoint(run) / ALARM_FILE).exists()


def test_without_world_model_there_is_nothing_to_calibrate(trained: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="no world model"):
        calibrate(CalibrateArgs(str(trained["bc"]), alpha=ALPHA))


def write_rollouts(folder: Path, sha256: str, surprises: list[list[float]]) -> None:
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"weights_sha256": sha256, "execute_steps": 2}))
    lines = [{"error": None, "surprise": values, "novelty": [1.0, *values]} for values in surprises]
    lines.append({"error": "worker gone", "surprise": [1e6], "novelty": [1e6]})
    torn = '{"error": null, "surp'
    (folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def test_rollouts_calibrate_their_own_number_of_actions(run: Path, tmp_path: Path) -> None:
    calibrate(CalibrateArgs(str(run), alpha=ALPHA))
    before = StateVLAPolicy.from_pretrained(run, device="cpu").calibration
    assert before is not None
    write_rollouts(tmp_path / "rollouts", before.weights_sha256, [[0.1, 0.5], [0.2], [0.4, 0.3], []])
    calibrate(CalibrateArgs(str(run), rollouts=str(tmp_path / "rollouts"), alpha=ALPHA))
    policy = StateVLAPolicy.from_pretrained(run, device="cpu", execute_steps=2)
    assert policy.threshold("surprise") == 0.5  # rank ceil(5 * 0.7) = 4 of 0, 0.2, 0.4, 0.5
    assert policy.threshold("surprise", 3) is None
    assert policy.calibration is not None
    assert torch.equal(policy.calibration.memory, before.memory)


def test_rollouts_of_other_weights_are_refused(run: Path, tmp_path: Path) -> None:
    write_rollouts(tmp_path / "rollouts", "0" * 64, [[0.1]] * 5)
    args = CalibrateArgs(str(run), rollouts=str(tmp_path / "rollouts"), alpha=ALPHA)
    with pytest.raises(UserError, match="needs a first calibration"):
        calibrate(args)
    calibrate(CalibrateArgs(str(run), alpha=ALPHA))
    with pytest.raises(UserError, match="other weights"):
        calibrate(args)
    with pytest.raises(UserError, match="no rollouts there"):
        calibrate(CalibrateArgs(str(run), rollouts=str(tmp_path / "absent"), alpha=ALPHA))
