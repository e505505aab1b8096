"""Does z know where the hand is going, and from when on? The keyframe head's error by time since the start.

Before the hand moves, only the instruction says which object is meant; some steps later the hand's place betrays it.
A state that knows the goal late but not at once follows the hand instead of reading the instruction, and acting on its
own it goes to a wrong object.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from statevla.data.keyframes import UNIT_M, next_keyframe_offsets
from statevla.diagnostics.sequences import Subject, encode_frames
from statevla.types import RobotStateLayout

STEPS = (0, 4, 8, 12, 16, 20)
"""Control steps since the start of the episode."""


@torch.no_grad()
def measure_goals(subject: Subject, episodes: Sequence[int]) -> dict[str, dict[str, float]]:
    """Horizontal error of the next keyframe that the model reads off z.

    Returns:
        control steps since the start → {median_m, chance_m, num_episodes}: the median error, and that of always
        expecting the episodes' mean offset at that step (m). Empty where the model has no keyframe head, or the data
        set does not say where the hand is.
    """
    head = subject.model.state_encoder.keyframe
    if head is None or RobotStateLayout.EE_GRIPPER not in subject.cache.robot_states:
        return {}
    offsets, is_known = next_keyframe_offsets(subject.cache)
    found = {}
    for step in STEPS:
        long_enough = [i for i in episodes if subject.cache.episodes[i].num_steps > step]
        frames = np.array([subject.cache.episodes[i].start + step for i in long_enough], np.int64)
        chosen = is_known[frames]
        if not chosen.any():
            continue
        frames = frames[chosen]
        kept = [i for i, known in zip(long_enough, chosen) if known]
        z = encode_frames(subject, kept, torch.from_numpy(frames))
        expected = head(z.to(subject.device)).float().cpu().numpy()[:, :2] * UNIT_M
        truth = offsets[frames, :2] * UNIT_M
        found[str(step)] = {
            "median_m": float(np.median(np.linalg.norm(expected - truth, axis=1))),
            "chance_m": float(np.median(np.linalg.norm(truth.mean(0) - truth, axis=1))),
            "num_episodes": len(frames),
        }
    return found
