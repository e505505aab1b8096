"""Does z know where the hand is going, from when on, and where on the table? The keyframe head's error.

Before the hand moves, only the instruction says which object is meant; some steps later the hand's place betrays it.
A state that knows the goal late but not at once follows the hand instead of reading the instruction, and acting on its
own it goes to a wrong object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from statevla.data.keyframes import UNIT_M, next_keyframes
from statevla.diagnostics.probes import hand_positions
from statevla.diagnostics.sequences import Subject, encode_frames

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
    return {
        str(step): {
            "median_m": float(np.median(errors_m)),
            "chance_m": float(np.median(np.linalg.norm(offsets_m.mean(0) - offsets_m, axis=1))),
            "num_episodes": len(offsets_m),
        }
        for step, offsets_m, errors_m, _ in _read_goals(subject, episodes, STEPS)
    }


def measure_goal_places(subject: Subject, episodes: Sequence[int]) -> list[dict[str, float]]:
    """Where on the table z knows the goal before the hand moves, and where it does not.

    A median over all episodes hides places that are rarely a goal, which a policy then does not find.

    Returns:
        {x_m, y_m, median_m, num_episodes} for each square of `SQUARE_M` with at least `MIN_PER_SQUARE` goals: its
        middle in the robot's frame, and the median error of the goals in it (m). Empty as for `measure_goals`.
    """
    found = []
    for _, _, errors_m, places_m in _read_goals(subject, episodes, steps=(0,)):
        squares = np.floor(places_m / SQUARE_M).astype(int)
        for square in np.unique(squares, axis=0):
            inside = (squares == square).all(axis=1)
            if inside.sum() >= MIN_PER_SQUARE:
                x, y = (square + 0.5) * SQUARE_M
                median = float(np.median(errors_m[inside]))
                found.append({"x_m": float(x), "y_m": float(y), "median_m": median, "num_episodes": int(inside.sum())})
    return found


@torch.no_grad()
def _read_goals(
    subject: Subject, episodes: Sequence[int], steps: Sequence[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Next keyframes in the horizontal plane as they are and as the model reads them off z, step by step.

    Yields:
        A step since the start, and of the N episodes with a keyframe after it: the offset of that from the hand,
        `[N, 2]`, how far off the model's is, `[N]`, and where the keyframe is, `[N, 2]` (m). Steps at which there is
        none are left out; so are all where the model has no keyframe head, or the robot declares no hand position.
    """
    cache, head, hands_m = subject.cache, subject.model.state_encoder.keyframe, hand_positions(subject.cache)
    if head is None or hands_m is None:
        return
    keyframes, is_known = next_keyframes(cache, subject.transform)
    is_known &= cache.is_seen  # of a reach, few frames have a picture
    for step in steps:
        long = [cache.episodes[i] for i in episodes if cache.episodes[i].num_steps > step]
        frames = np.array([episode.start + step for episode in long], np.int64)
        frames = frames[is_known[frames]]
        if len(frames):
            z = encode_frames(subject, torch.from_numpy(frames))
            expected_m = head(z.to(subject.device)).float().cpu().numpy()[:, :2] * UNIT_M
            offsets_m = keyframes[frames, :2] * UNIT_M
            yield step, offsets_m, np.linalg.norm(expected_m - offsets_m, axis=1), hands_m[frames, :2] + offsets_m
