"""Does the world model know what actions do? Measures on held-out episodes.

Every measure is against something trivial: copying the present, shuffled actions, the wrong picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from statevla.acting.alarm import roll_forward, surprise_of
from statevla.diagnostics.sequences import LatentSequence, Subject, encode_frames, encode_sequences
from statevla.diagnostics.signed_rank import signed_rank_p_value

HORIZONS = (1, 2, 4, 8)
NUM_CANDIDATES = 64
SEED = 0
THRESHOLDS = {"copy_skill_1": 0.2, "action_sensitivity_1": 1.3, "within_episode_variance": 0.1}
"""Below one of these a phase-1 encoder is no base for phase 2 (calibrated on one task; see docs/experiments.md)."""


def measure_world_model(subject: Subject, episodes: Sequence[int]) -> dict[str, float]:
    """All measures below by name; empty where no episode is long enough."""
    sequences = encode_sequences(subject, episodes)
    if not sequences:
        return {}
    values: dict[str, float] = {}
    for horizon in HORIZONS:
        if windows := Windows.of(sequences, horizon):
            predicted = rollout(subject, windows.z, windows.actions)
            values[f"copy_skill_{horizon}"] = copy_skill(predicted, windows.now, windows.later)
            shuffled = rollout(subject, windows.z, windows.actions[derangement(len(windows.actions))])
            errors = (_error(answer, windows.later) for answer in (shuffled, predicted))
            values[f"action_sensitivity_{horizon}"] = _ratio(*errors)
    values["action_retrieval_top1"] = action_retrieval(subject, sequences)
    values["within_episode_variance"] = within_episode_variance([s.z for s in sequences])
    values["rank_me_z"] = rank_me(torch.cat([s.z for s in sequences]))
    values["rank_me_delta_z"] = rank_me(torch.cat([s.z.diff(dim=0) for s in sequences]))
    values["straightness"] = straightness([s.z for s in sequences])
    values |= surprise(subject, sequences)
    return values


def go_no_go(values: dict[str, float]) -> dict[str, bool]:
    """Which thresholds are passed, by name."""
    return {name: values[name] > least for name, least in THRESHOLDS.items() if name in values}


def rollout(subject: Subject, z: Tensor, actions: Tensor) -> Tensor:
    """`roll_forward` on the subject's device: z `[M, Z]`, actions `[M, k, K·A]` → `[M, Z]` on the CPU."""
    return roll_forward(subject.model, z.to(subject.device), actions.to(subject.device)).cpu()


def copy_skill(predicted: Tensor, now: Tensor, later: Tensor) -> float:
    """S_k = 1 − Σ‖ẑ_{t+k} − z_{t+k}‖² / Σ‖z_t − z_{t+k}‖², all `[M, Z]`, z of the target; ≤ 0 is worse than copying."""
    return 1.0 - _ratio(_error(predicted, later), _error(now, later))


def within_episode_variance(latents: Sequence[Tensor]) -> float:
    """tr E_episodes[Cov(z)] / tr Cov(z); near 0 the code says which episode it is and nothing else."""
    within = torch.cat([z - z.mean(dim=0) for z in latents])
    return _ratio(*(float(z.var(dim=0, correction=0).sum()) for z in (within, torch.cat(list(latents)))))


def rank_me(z: Tensor) -> float:
    """exp(−Σ p log p) with p = σ_i / Σσ, the effective rank of `z` `[M, Z]` (Garrido et al. 2023, arXiv 2210.02885)."""
    singular = torch.linalg.svdvals(z.double())
    share = singular / singular.sum().clamp_min(1e-12)
    return float(torch.special.entr(share).sum().exp())


def straightness(latents: Sequence[Tensor]) -> float:
    """Mean cosine of consecutive changes of z; 1 is a straight path."""
    cosines = [F.cosine_similarity(delta[:-1], delta[1:], dim=1) for delta in (z.diff(dim=0) for z in latents)]
    return float(torch.cat(cosines).mean())


def action_retrieval(subject: Subject, sequences: Sequence[LatentSequence]) -> float:
    """How often the true action block explains the next z better than 63 others; chance is 1/64.

    With fewer than 64 blocks in all, among as many as there are.
    """
    windows = Windows.of(sequences, 1)
    assert windows is not None
    count = len(windows.z)
    generator = torch.Generator().manual_seed(SEED)
    num_others = min(NUM_CANDIDATES, count) - 1
    if num_others < 1:
        return float("nan")
    hits = 0.0
    for index in range(count):
        others = torch.randperm(count - 1, generator=generator)[:num_others]
        others = others + (others >= index).long()
        blocks = windows.actions[torch.cat([torch.tensor([index]), others])]
        predicted = rollout(subject, windows.z[index].expand(len(blocks), -1), blocks)
        errors = surprise_of(predicted, windows.later[index])
        # A model that ignores actions makes all errors equal: a tie is worth its chance.
        best = errors == errors.min()
        hits += float(best[0]) / float(best.sum())
    return hits / count


def surprise(subject: Subject, sequences: Sequence[LatentSequence]) -> dict[str, float]:
    """Does an impossible picture surprise more than the true one?

    Teleported: the picture of half an episode later stands in for the next one while
    the robot state is as expected. Frozen: the picture does not change at all.

    Returns:
        Median surprise of the true frame, its ratios to the others, how often the teleported one surprises more, and
        the p value of a one-sided Wilcoxon signed-rank test over the pairs.
    """
    windows = Windows.of(sequences, 1)
    assert windows is not None
    elsewhere = torch.cat([s.frames[1:].roll(len(s.frames) // 2) for s in sequences])
    before = torch.cat([s.frames[:-1] for s in sequences])
    exchanged = (
        encode_frames(subject, windows.frames, use_target=True, images_from=other) for other in (elsewhere, before)
    )
    predicted = rollout(subject, windows.z, windows.actions)
    true, far, still = (surprise_of(predicted, z).numpy() for z in (windows.later, *exchanged))
    median, of_far, of_still = (float(np.median(values)) for values in (true, far, still))
    return {
        "surprise_true": median,
        "surprise_teleported_ratio": _ratio(of_far, median),
        "surprise_frozen_ratio": _ratio(of_still, median),
        "surprise_teleported_more": float(np.mean(far > true)),
        "surprise_p_value": signed_rank_p_value(far - true),
    }


class Windows(NamedTuple):
    """All windows of k steps: z and target at the start, target at the end, actions between (`[M, k, K·A]`), and the
    frame at the end (index into the cache)."""

    z: Tensor
    now: Tensor
    later: Tensor
    actions: Tensor
    frames: Tensor

    @classmethod
    def of(cls, sequences: Sequence[LatentSequence], horizon: int) -> Windows | None:
        long = [s for s in sequences if len(s.z) > horizon]
        if not long:
            return None
        return cls(
            torch.cat([s.z[:-horizon] for s in long]),
            torch.cat([s.target[:-horizon] for s in long]),
            torch.cat([s.target[horizon:] for s in long]),
            torch.cat([s.actions.unfold(0, horizon, 1).transpose(1, 2) for s in long]),
            torch.cat([s.frames[horizon:] for s in long]),
        )


def derangement(count: int) -> Tensor:
    """A fixed random order in which nothing keeps its place (for count > 1)."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SEED))
    return torch.empty_like(order).scatter(0, order, order.roll(1))


def _error(a: Tensor, b: Tensor) -> float:
    return float(surprise_of(a.double(), b.double()).mean())


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / max(denominator, 1e-12)
