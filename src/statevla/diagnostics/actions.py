"""How far a policy's chunks are from the demonstrated ones, on held-out frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from statevla.data import ChunkDataset
from statevla.device import autocast
from statevla.diagnostics.sequences import Subject

BATCH = 64


@dataclass(frozen=True)
class ChunkSamples:
    """Demonstrated and sampled chunks of the same frames, normalised.

    Attributes:
        truth: float32 `[M, H, A]`.
        sampled: float32 `[seeds, M, H, A]`.
        valid: bool `[M, H]`, false past the end of an episode.
        frames: int64 `[M]`, indices into the cache.
    """

    truth: np.ndarray
    sampled: np.ndarray
    valid: np.ndarray
    frames: np.ndarray


@torch.no_grad()
def sample_chunks(
    subject: Subject, episodes: Sequence[int], max_samples: int, num_seeds: int, steps: int | None = None
) -> ChunkSamples:
    """Sample `num_seeds` chunks for up to `max_samples` evenly spread frames of these episodes.

    Args:
        steps: solver steps; None takes the configuration's.
    """
    horizon = subject.config.model.action_seq_len
    dataset = ChunkDataset(subject.cache, episodes, horizon, subject.transform, subject.language_table)
    count = min(max_samples, len(dataset))
    items = torch.linspace(0, len(dataset) - 1, count).round().long()
    truth, valid, sampled = [], [], []
    subject.model.eval()
    for number, indices in enumerate(items.split(BATCH)):
        batch = dataset.gather(indices)
        truth.append(batch.actions.numpy())
        valid.append(~batch.is_pad.numpy())
        assert batch.observation is not None
        with autocast(subject.device, subject.config.training.precision):
            state = subject.model.encode_for_policy(batch.observation.to(subject.device))
            draws = []
            for seed in range(num_seeds):
                generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
                draws.append(subject.model.sample_actions(state, steps, generator).float().cpu().numpy())
        sampled.append(np.stack(draws))
    return ChunkSamples(
        np.concatenate(truth),
        np.concatenate(sampled, axis=1),
        np.concatenate(valid),
        dataset.frame_indices_of(items).numpy(),
    )


def action_metrics(samples: ChunkSamples, subject: Subject) -> dict[str, Any]:
    """Errors of the continuous dims in the robot's units and normalised, the gripper's accuracy, the spread of samples.

    Returns:
        `mse`, `mae` (means over all), per dim and per step of the chunk, each for `normalized` and `real` units;
        `mse_of_mean_action`: what always answering the mean action would give; `gripper`: accuracy, precision, recall
        and F1 of closing; `spread`: standard deviation over seeds, per dim, real units.
    """
    denormalize = subject.transform.denormalize_actions
    truth = {"normalized": samples.truth, "real": denormalize(torch.from_numpy(samples.truth)).numpy()}
    sampled = {"normalized": samples.sampled, "real": denormalize(torch.from_numpy(samples.sampled)).numpy()}
    weight = samples.valid.astype(np.float64)
    result: dict[str, Any] = {"num_samples": len(samples.truth), "num_seeds": len(samples.sampled)}
    mean_action = np.asarray(subject.transform.statistics.actions.mean, np.float32)
    constant = {
        "real": mean_action,
        "normalized": subject.transform.normalize_actions(torch.from_numpy(mean_action)).numpy(),
    }
    for units in ("normalized", "real"):
        goal = truth[units][..., :-1].astype(np.float64)
        error = sampled[units][..., :-1] - goal
        square, absolute = (error**2).mean(0), np.abs(error).mean(0)
        still = (constant[units][:-1] - goal) ** 2
        result[units] = {
            "mse": _mean(square, weight).mean(),
            "mae": _mean(absolute, weight).mean(),
            "mse_per_dim": _mean(square, weight).tolist(),
            "mae_per_dim": _mean(absolute, weight).tolist(),
            "mse_per_step": _per_step(square, weight),
            "mae_per_step": _per_step(absolute, weight),
            "mse_of_mean_action": _mean(still, weight).mean(),
        }
    result["spread"] = _mean(sampled["real"][..., :-1].std(0), weight).tolist()
    result["gripper"] = gripper_metrics(samples.sampled[0, ..., -1], samples.truth[..., -1], samples.valid)
    return result


def gripper_metrics(predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 of closing; all `[M, H]`. Nothing to close and nothing closed: 1."""
    closed, wanted = (predicted > 0)[valid], (truth > 0)[valid]
    hits = float((closed & wanted).sum())
    precision = hits / closed.sum() if closed.any() else float(not wanted.any())
    recall = hits / wanted.sum() if wanted.any() else float(not closed.any())
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    accuracy = float((closed == wanted).mean())
    return {"accuracy": accuracy, "precision": float(precision), "recall": float(recall), "f1": float(f1)}


def _mean(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mean over valid steps, `[M, H, D]` → `[D]`."""
    return (values * weight[..., None]).sum((0, 1)) / max(weight.sum(), 1.0)


def _per_step(values: np.ndarray, weight: np.ndarray) -> list[float | None]:
    """Mean over dims and samples for each step of the chunk; None where no chunk reaches so far."""
    sums, counts = (values.mean(-1) * weight).sum(0), weight.sum(0)
    return [float(s / c) if c else None for s, c in zip(sums, counts)]
