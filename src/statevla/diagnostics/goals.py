"""Does z know where the hand is going, from when on, and where on the table? The keyframe head's error.

Before the hand moves, only the instruction says which object is meant; some steps later the hand's place betrays it.
A state that knows the goal late but not at once follows the hand instead of reading the instruction, and acting on its
own it goes to a wrong object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from statevla.data.keyframes import UNIT_M, next_keyframes
from statevla.diagnostics.probes import hand_positions
from statevla.diagnostics.sequences import Subject, encode_frames
from statevla.model.jepa import KeyframeHead

STEPS = (0, 4, 8, 12, 16, 20)
"""Control steps since the start of the episode."""
SQUARE_M = 0.1
"""Side of the squares of the table over which first goals are told apart."""
MIN_PER_SQUARE = 5
"""Squares with fewer episodes say nothing."""


def measure_goals(subject: Subject, episodes: Sequence[int]) -> dict[str, dict[str, float]]:
    """Horizontal error of the next keyframe that the model reads off z.

    Returns:
        control steps since the start → {median_m, chance_m, num_episodes}: the median error, and that of always
        expecting the episodes' mean offset at that step (m). Empty where the model has no keyframe head, or the robot
        declares no hand position.
    """
    found: dict[str, dict[str, float]] = {}
    keyframes = _keyframes(subject)
    if keyframes is None:
        return found
    for step in STEPS:
        goals = _read_goals(subject, keyframes, episodes, step)
        if goals is None:
            continue
        mean = goals.truth.mean(0)
        found[str(step)] = {
            "median_m": float(np.median(goals.errors_m)),
            "chance_m": float(np.median(np.linalg.norm(mean - goals.truth, axis=1))),
            "num_episodes": len(goals.truth),
        }
    return found


def measure_goal_places(subject: Subject, episodes: Sequence[int]) -> list[dict[str, float]]:
    """Where on the table z knows the goal before the hand moves, and where it does not.

    A median over all episodes hides places that are rarely a goal, which a policy then does not find.

    Returns:
        {x_m, y_m, median_m, num_episodes} for each square of `SQUARE_M` with at least `MIN_PER_SQUARE` goals: its
        middle in the robot's frame, and the median error of the goals in it (m). Empty as for `measure_goals`.
    """
    keyframes = _keyframes(subject)
    goals = None if keyframes is None else _read_goals(subject, keyframes, episodes, step=0)
    if goals is None:
        return []
    squares = np.floor(goals.places_m / SQUARE_M).astype(int)
    found = []
    for square in np.unique(squares, axis=0):
        inside = (squares == square).all(axis=1)
        if inside.sum() < MIN_PER_SQUARE:
            continue
        x, y = (square + 0.5) * SQUARE_M
        median = float(np.median(goals.errors_m[inside]))
        found.append({"x_m": float(x), "y_m": float(y), "median_m": median, "num_episodes": int(inside.sum())})
    return found


@dataclass(frozen=True)
class _Goals:
    """Of N episodes at one step: offsets of the next keyframe in the horizontal plane, `[N, 2]` (m)."""

    truth: np.ndarray
    expected: np.ndarray
    places_m: np.ndarray
    """`[N, 2]`: where the keyframe is."""

    @property
    def errors_m(self) -> np.ndarray:
        return np.asarray(np.linalg.norm(self.expected - self.truth, axis=1))


@dataclass(frozen=True)
class _Keyframes:
    """Of all frames of the cache: found once, for that takes a walk through all episodes."""

    head: KeyframeHead
    hands_m: np.ndarray
    """`[num_frames, 3]`: where the hand is."""
    offsets_m: np.ndarray
    """`[num_frames, 2]`: from there to the next keyframe."""
    is_known: np.ndarray
    """bool `[num_frames]`: there is one, and the frame's picture is there (of a reach, few are)."""


def _keyframes(subject: Subject) -> _Keyframes | None:
    """None where the model has no keyframe head, or the robot declares no hand position."""
    head, hands = subject.model.state_encoder.keyframe, hand_positions(subject.cache)
    if head is None or hands is None:
        return None
    offsets, is_known = next_keyframes(subject.cache, subject.transform)
    return _Keyframes(head, hands, offsets[:, :2] * UNIT_M, is_known & subject.cache.is_seen)


@torch.no_grad()
def _read_goals(subject: Subject, keyframes: _Keyframes, episodes: Sequence[int], step: int) -> _Goals | None:
    """None where no episode has a keyframe after that step."""
    starts = {i: subject.cache.episodes[i].start for i in episodes if subject.cache.episodes[i].num_steps > step}
    kept = [i for i, start in starts.items() if keyframes.is_known[start + step]]
    if not kept:
        return None
    frames = np.array([starts[i] + step for i in kept], np.int64)
    z = encode_frames(subject, torch.from_numpy(frames))
    expected = keyframes.head(z.to(subject.device)).float().cpu().numpy()[:, :2] * UNIT_M
    truth = keyframes.offsets_m[frames]
    return _Goals(truth, expected, keyframes.hands_m[frames, :2] + truth)
