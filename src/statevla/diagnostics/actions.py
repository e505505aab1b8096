"""How far a policy's chunks are from the demonstrated ones, on held-out frames, beside what anybody could answer.

Continuous numbers have errors, in the robot's units and normalised (divided by the scale of the training targets);
binary ones have accuracy, precision and recall. Beside the errors stand those of two answers that need no policy: the
mean action, and the present state, where a group of actions names the state field that measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from statevla.data import ChunkDataset
from statevla.diagnostics.sequences import Subject
from statevla.machine.device import autocast
from statevla.robots import RobotSpec

BATCH = 64


@dataclass(frozen=True)
class ChunkSamples:
    """Demonstrated and sampled chunks of the same frames, as targets: normalised, relative where that was trained.

    Attributes:
        truth: float32 `[M, H, A]`.
        sampled: float32 `[seeds, M, H, A]`.
        valid: bool `[M, H]`, false past the end of an episode.
        frames: int64 `[M]`, indices into the cache.
        names: one for each of the A numbers.
    """

    truth: np.ndarray
    sampled: np.ndarray
    valid: np.ndarray
    frames: np.ndarray
    names: tuple[str, ...]


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
        subject.robot.action_names,
    )


def action_metrics(samples: ChunkSamples, subject: Subject) -> dict[str, Any]:
    """Errors of the continuous numbers, by name; how often binary ones are right; the spread of samples.

    Returns:
        Where the robot has continuous numbers:
            `names`, `units` ('' where not known): one for each of them.
            `normalized`, `real`: `mse`, `mae` (means over all), both per dim and per step of the chunk, and
                `mse_of_mean_action`: what always answering the mean action would give.
            `spread`: standard deviation over seeds, per dim, real units.
            `repeat_state`: what answering the present state would give, for the numbers that a state field measures:
                their `names` and `units`; `normalized` and `real` as above, and in each `policy`: the policy's own
                errors of these numbers. Absent where no group names its state field.
        Where it has binary ones, `binary`: name → accuracy, precision, recall and F1 of switching on.
        And `num_samples`, `num_seeds`.
    """
    robot, weight = subject.robot, samples.valid.astype(np.float64)
    result: dict[str, Any] = {"num_samples": len(samples.truth), "num_seeds": len(samples.sampled)}
    continuous = np.flatnonzero(~robot.is_binary)
    if len(continuous):
        errors = _Errors(samples, subject, continuous)
        result["names"] = [samples.names[dim] for dim in continuous]
        result["units"] = [action_units(robot)[dim] for dim in continuous]
        for units in ("normalized", "real"):
            still = errors.of_mean_action(units)
            result[units] = {
                **_summary(errors.of_policy(units), weight),
                "mse_of_mean_action": float(_mean(still**2, weight).mean()),
            }
        result["spread"] = errors.spread(weight)
        if measured := _repeat_state(errors, subject, weight):
            result["repeat_state"] = measured
    if robot.num_binary:
        result["binary"] = {
            samples.names[dim]: binary_metrics(samples.sampled[0, ..., dim], samples.truth[..., dim], samples.valid)
            for dim in np.flatnonzero(robot.is_binary)
        }
    return result


def action_units(robot: RobotSpec) -> list[str]:
    """Unit of each of the A numbers of an action: that of the state field which measures it, '' where none does."""
    units = []
    for group in robot.actions:
        field = None if group.state is None else robot.find_field(group.state)
        units += ["" if field is None else field.units] * len(group.dims)
    return units


def binary_metrics(predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 of switching on (above 0); all `[M, H]`.

    Nothing to switch on and nothing switched on: 1.
    """
    on, wanted = (predicted > 0)[valid], (truth > 0)[valid]
    hits = float((on & wanted).sum())
    precision = hits / on.sum() if on.any() else float(not wanted.any())
    recall = hits / wanted.sum() if wanted.any() else float(not on.any())
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    accuracy = float((on == wanted).mean())
    return {"accuracy": accuracy, "precision": float(precision), "recall": float(recall), "f1": float(f1)}


class _Errors:
    """Differences from the demonstrated chunks in the C continuous numbers `dims`, by units."""

    def __init__(self, samples: ChunkSamples, subject: Subject, dims: np.ndarray) -> None:
        self._transform, self.dims, self.frames = subject.transform, dims, samples.frames
        self._start = torch.from_numpy(subject.cache.robot_state[samples.frames])
        self._truth = {"normalized": samples.truth, "real": self._real(samples.truth)}
        self._sampled = {"normalized": samples.sampled, "real": self._real(samples.sampled)}

    def of_policy(self, units: str) -> np.ndarray:
        """float64 `[seeds, M, H, C]`."""
        return self._taken(self._sampled[units]) - self._goal(units)

    def of_mean_action(self, units: str) -> np.ndarray:
        """float64 `[M, H, C]`, of always answering the mean of the training episodes' actions."""
        mean = np.asarray(self._transform.statistics.actions.mean, np.float32)
        return self.of_answer(np.broadcast_to(mean, self._truth["real"].shape), units)

    def of_answer(self, chunks: np.ndarray, units: str) -> np.ndarray:
        """float64 `[M, H, C]`, of answering `chunks` `[M, H, A]`, in the robot's units."""
        if units == "normalized":
            chunks = self._transform.chunks_to_targets(torch.from_numpy(chunks.copy()), self._start).numpy()
        return self._taken(chunks) - self._goal(units)

    def spread(self, weight: np.ndarray) -> list[float]:
        """Standard deviation over seeds of every number, real units."""
        return _mean(self._taken(self._sampled["real"]).std(0), weight).tolist()

    def answer_of_state(self, states: dict[int, np.ndarray]) -> np.ndarray:
        """Chunks float32 `[M, H, A]` of `states`, number of an action → `[M]`; of what was demonstrated elsewhere."""
        chunks = self._truth["real"].copy()
        for dim, values in states.items():
            chunks[..., dim] = values[:, None]
        return chunks

    def _goal(self, units: str) -> np.ndarray:
        return self._taken(self._truth[units]).astype(np.float64)

    def _taken(self, chunks: np.ndarray) -> np.ndarray:
        return np.take(chunks, self.dims, axis=-1)

    def _real(self, targets: np.ndarray) -> np.ndarray:
        return self._transform.targets_to_chunks(torch.from_numpy(targets), self._start).numpy()


def _repeat_state(errors: _Errors, subject: Subject, weight: np.ndarray) -> dict[str, Any]:
    """`repeat_state` of `action_metrics`; empty where no state field measures what is commanded."""
    robot, cache = subject.robot, subject.cache
    states: dict[int, np.ndarray] = {}
    for group, part in zip(robot.actions, robot.action_slices().values()):
        measured = None if group.state is None else cache.robot_states.get(group.state)
        if measured is not None:
            states |= dict(zip(range(part.start, part.stop), measured[errors.frames].T))
    if not states:
        return {}
    answer, kept = errors.answer_of_state(states), np.isin(errors.dims, list(states))
    dims = errors.dims[kept]
    result: dict[str, Any] = {
        "names": [robot.action_names[dim] for dim in dims],
        "units": [action_units(robot)[dim] for dim in dims],
    }
    for units in ("normalized", "real"):
        result[units] = {
            **_summary(errors.of_answer(answer, units)[None, ..., kept], weight),
            "policy": _summary(errors.of_policy(units)[..., kept], weight),
        }
    return result


def _summary(error: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    """Means over valid steps of errors `[seeds, M, H, D]`: over all, per dim, per step of the chunk."""
    square, absolute = (error**2).mean(0), np.abs(error).mean(0)
    return {
        "mse": float(_mean(square, weight).mean()),
        "mae": float(_mean(absolute, weight).mean()),
        "mse_per_dim": _mean(square, weight).tolist(),
        "mae_per_dim": _mean(absolute, weight).tolist(),
        "mse_per_step": _per_step(square, weight),
        "mae_per_step": _per_step(absolute, weight),
    }


def _mean(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mean over valid steps, `[M, H, D]` → `[D]`."""
    return (values * weight[..., None]).sum((0, 1)) / max(weight.sum(), 1.0)


def _per_step(values: np.ndarray, weight: np.ndarray) -> list[float | None]:
    """Mean over dims and samples for each step of the chunk; None where no chunk reaches so far."""
    sums, counts = (values.mean(-1) * weight).sum(0), weight.sum(0)
    return [float(s / c) if c else None for s, c in zip(sums, counts)]
