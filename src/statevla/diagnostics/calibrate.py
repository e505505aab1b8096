"""Thresholds of the surprise alarm, from episodes that the checkpoint was not trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from statevla.acting.alarm import SCORES, Calibration, conformal_threshold, expect, novelty_of, surprise_of
from statevla.acting.policy import StateVLAPolicy
from statevla.checkpoints.checkpoint import weights_hash
from statevla.checkpoints.measured import read_tree
from statevla.data import FrameCache
from statevla.diagnostics.offline import open_subject
from statevla.diagnostics.probes import thin
from statevla.errors import UserError
from statevla.machine.sealed import check_seal
from statevla.types import Observation, Orientation

MEMORY_SIZE = 4096
"""Training frames that novelty is measured against, spread evenly over the training episodes."""
ENCODE_BATCH = 32

Scores = dict[str, dict[int, list[float]]]
"""score → number of actions between two looks → one value per episode, its largest."""


def calibrate_on_data(
    checkpoint: str | Path, data: str | None, alpha: float, device: str = "auto", orientation: Orientation = "auto"
) -> Calibration:
    """Thresholds for every number of actions per look, from the held-out episodes of a data set.

    Raises:
        UserError: no trained policy or no world model, no data, or too few held-out episodes for `alpha`.
    """
    policy = StateVLAPolicy.from_pretrained(checkpoint, device=device)
    if not policy.has_world_model:
        raise UserError(f"calibrate {checkpoint}: behaviour cloning trains no world model; give a phase-2 checkpoint")
    opened = open_subject(checkpoint, data, device, orientation)
    cache = opened.subject.cache
    conformal_threshold(np.zeros(len(opened.held_out)), alpha)  # too few episodes are found before encoding any
    wanted = cache.steps_of(opened.train)
    if not len(wanted):
        raise UserError(
            f"calibrate {checkpoint}: no training episodes in {cache.folder}; give --data with more of them"
        )
    memory = encode_cached(policy, cache, wanted[thin(range(len(wanted)), MEMORY_SIZE)])
    scores = score_episodes(policy, cache, opened.held_out, memory)
    source = f"{len(opened.held_out)} held-out episodes of {cache.folder.name}"
    return Calibration(
        alpha=alpha,
        num_episodes=len(opened.held_out),
        thresholds=_thresholds(scores, alpha),
        memory=memory,
        weights_sha256=weights_hash(opened.loaded.path) or "",
        source=source,
    )


def score_episodes(policy: StateVLAPolicy, cache: FrameCache, episodes: Sequence[int], memory: Tensor) -> Scores:
    """The largest surprise and novelty of each episode, had the policy looked every 1, 2, … H actions of it."""
    scores: Scores = {score: {count: [] for count in range(1, policy.horizon + 1)} for score in SCORES}
    for index in episodes:
        episode = cache.episodes[index]
        steps = np.arange(episode.start, episode.stop)
        states = encode_cached(policy, cache, steps).to(policy.device)
        executed = torch.from_numpy(cache.executed_actions[steps]).to(policy.device)
        novelties = novelty_of(states, memory.to(policy.device)).cpu()
        for count in range(1, policy.horizon + 1):
            scores["novelty"][count].append(float(novelties[::count].max()))
            scores["surprise"][count].append(_largest_surprise(policy, states, executed, count))
    return scores


def encode_cached(policy: StateVLAPolicy, cache: FrameCache, frames: np.ndarray) -> Tensor:
    """z of frames of a cache as the policy itself sees them, in its own precision: float32 `[F, Z]`, on the CPU."""
    instruction = np.repeat([e.instruction for e in cache.episodes], [e.num_steps for e in cache.episodes])
    parts = []
    for start in range(0, len(frames), ENCODE_BATCH):
        batch = frames[start : start + ENCODE_BATCH]
        pictures = cache.frames(batch).numpy()
        observations = [
            Observation(
                dict(zip(cache.cameras, pictures[row])),
                {name: values[frame] for name, values in cache.robot_states.items()},
                cache.instructions[instruction[frame]],
            )
            for row, frame in enumerate(batch)
        ]
        parts.append(policy.encode(observations).cpu())
    return torch.cat(parts).clone()


def calibrate_on_rollouts(checkpoint: str | Path, rollouts: Path, alpha: float) -> Calibration:
    """Thresholds from the policy's own episodes in simulation, which later ones of the same kind are exchangeable with.

    Raises:
        UserError: the folder holds no episodes of this calibrated checkpoint, or too few for `alpha`.
    """
    policy = StateVLAPolicy.from_pretrained(checkpoint)
    if policy.calibration is None:
        raise UserError(f"calibrate {checkpoint}: --rollouts needs a first calibration; run it without --rollouts once")
    settings, lines = _read_rollouts(rollouts)
    if settings.get("weights_sha256") != policy.calibration.weights_sha256:
        raise UserError(
            f"calibrate {rollouts}: rollouts of other weights than {checkpoint}; give this checkpoint's own"
        )
    judged = [line for line in lines if line.get("error") is None and line.get("novelty")]
    count = int(settings["execute_steps"])
    scores: Scores = {
        "surprise": {count: [max(line["surprise"], default=0.0) for line in judged]},
        "novelty": {count: [max(line["novelty"]) for line in judged]},
    }
    thresholds, source = _thresholds(scores, alpha), f"{len(judged)} rollouts of {rollouts.name}"
    return replace(policy.calibration, alpha=alpha, num_episodes=len(judged), thresholds=thresholds, source=source)


def _read_rollouts(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    settings, files = read_tree(folder / "settings.json"), sorted(folder.glob("episodes*.jsonl"))
    try:
        # A kill may have left the last line unfinished.
        texts = [text for file in files for text in file.read_text(encoding="utf-8").splitlines(True)]
        lines = [json.loads(text) for text in texts if text.endswith("\n")]
    except (OSError, ValueError):
        lines = []
    if not settings or not lines:
        raise UserError(f"calibrate {folder}: no rollouts there; give the --out folder of 'statevla rollout'")
    for line in lines:
        check_seal(line, f"calibrate {folder}: an episode", "take other rollouts", was_sealed=False)
    return settings, lines


def _thresholds(scores: Scores, alpha: float) -> dict[str, dict[int, float]]:
    return {
        score: {count: conformal_threshold(np.array(values), alpha) for count, values in by_count.items()}
        for score, by_count in scores.items()
    }


@torch.inference_mode()
def _largest_surprise(policy: StateVLAPolicy, states: Tensor, executed: Tensor, count: int) -> float:
    """Over looks every `count` steps of one episode; 0 where it ends before the second one."""
    looks = torch.arange(0, len(states), count)
    if len(looks) < 2:
        return 0.0
    actions = torch.stack([executed[look : look + count] for look in looks[:-1]])
    expected = expect(policy.model, policy.transform, states[looks[:-1]], actions)
    return float(surprise_of(expected, states[looks[1:]]).max())
