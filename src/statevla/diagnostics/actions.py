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
    robot = subject.robot
    result: dict[str, Any] = {"num_samples": len(samples.truth), "num_seeds": len(samples.sampled)}
    if robot.num_continuous:
        result |= _continuous_metrics(samples, subject)
    if robot.num_binary:
        result["binary"] = {
            samples.names[dim]: binary_metrics(samples.sampled[0, ..., dim], samples.truth[..., dim], samples.valid)
            for dim in np.flatnonzero(robot.is_binary)
        }
    return result


def action_units(robot: RobotSpec) -> list[str]:
    """Unit of each of the A numbers of an action: that of the state field which measures it, '' where none does."""
    measured = [(robot.find_field(group.state or ""), group.dims) for group in robot.actions]
    return [field.units if field else "" for field, dims in measured for _ in dims]


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


def _continuous_metrics(samples: ChunkSamples, subject: Subject) -> dict[str, Any]:
    """What `action_metrics` says of continuous numbers."""
    robot, transform, weight = subject.robot, subject.transform, samples.valid.astype(np.float64)
    start = torch.from_numpy(subject.cache.robot_state[samples.frames])

    def real(targets: np.ndarray) -> np.ndarray:
        return transform.targets_to_chunks(torch.from_numpy(targets), start).numpy()

    def normalized(chunks: np.ndarray) -> np.ndarray:
        return transform.chunks_to_targets(torch.from_numpy(chunks), start).numpy()

    truth, sampled = real(samples.truth), real(samples.sampled)
    mean = np.tile(np.asarray(transform.statistics.actions.mean, np.float32), (*samples.valid.shape, 1))
    state = truth.copy()
    measured: list[int] = []
    for group, part in zip(robot.actions, robot.action_slices().values()):
        if (values := subject.cache.robot_states.get(group.state or "")) is not None:
            state[..., part] = values[samples.frames, None]
            measured += range(part.start, part.stop)
    dims, units_of = np.flatnonzero(~robot.is_binary), action_units(robot)

    def described(some: Sequence[int]) -> dict[str, Any]:
        return {"names": [samples.names[dim] for dim in some], "units": [units_of[dim] for dim in some]}

    result, still = described(dims.tolist()), described(measured)
    for units, goal, *answers in (
        ("normalized", samples.truth, samples.sampled, normalized(mean), normalized(state)),
        ("real", truth, sampled, mean, state),
    ):
        own, of_mean, of_state = (answer - goal.astype(np.float64) for answer in answers)
        square = float(_mean(of_mean[..., dims] ** 2, weight).mean())
        result[units] = {**_summary(own[..., dims], weight), "mse_of_mean_action": square}
        if measured:
            policy = _summary(own[..., measured], weight)
            still[units] = {**_summary(of_state[None, ..., measured], weight), "policy": policy}
    result["spread"] = _mean(sampled[..., dims].std(0), weight).tolist()
    return result | ({"repeat_state": still} if measured else {})


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
