"""Does an object that jumped surprise the world model, and nothing else?

The picture of frame t+1 is exchanged while its robot state stays:

    moved      the target object lies elsewhere (must surprise)
    unmoved    exchanged in the same way, the object where it was (the control)
    repeated   the frame itself once more (must not surprise)

Without a simulator the pictures are those of other episodes of the same task, chosen by where the object lay; the
control's arm is a little farther off than that of the moved picture, so that the arm cannot be what surprises. With a
simulator (`statevla.worlds.libero.moved_objects`) the object really is moved, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from statevla.acting.alarm import surprise_of
from statevla.diagnostics.probes import target_positions, thin
from statevla.diagnostics.sequences import Subject, encode_frames, encode_sequences, episode_of, retained_frames
from statevla.diagnostics.signed_rank import signed_rank_p_value
from statevla.diagnostics.world_model import Windows, rollout

MOVED_M, UNMOVED_M = 0.05, 0.015
"""From how far on an object counts as moved, and up to where as unmoved."""
MAX_ARM_STD = 0.3
"""How far off the arm of a stand-in may be (standard deviations of the robot state, root mean square over its numbers):
farther off, it is the arm that surprises, a hundred times as much as the true frame and more."""
MAX_PAIRS = 160
MIN_PAIRS = 8
"""A test on fewer pairs says nothing."""
MAX_DONOR_EPISODES = 60
NO_PAIRS = (
    "object surprise: skipped, hardly any other episode shows the object elsewhere with the arm in the same place; "
    "`statevla probe` moves it where the simulator is installed"
)
NO_POSES = "object surprise and object probes: skipped, the data set has no poses of the object that instructions name"


class Exchanged(NamedTuple):
    """What some frames look like with other pictures.

    Attributes:
        rows: int64 `[P]`, which of the frames.
        z: `moved` and `unmoved` → z of these frames with such pictures, `[P, Z]`.
        source: where the pictures come from.
        details: numbers for the report.
    """

    rows: Tensor
    z: dict[str, Tensor]
    source: str
    details: dict[str, float]


Exchange = Callable[[Subject, Tensor], "Exchanged | None"]
"""Makes pictures for frames, int64 `[M]`, indices into the cache; None where it cannot."""


def measure_object_surprise(
    subject: Subject, episodes: Sequence[int], exchange: Exchange | None = None
) -> dict[str, Any]:
    """Paired tests of an object that jumped, on at most `MAX_PAIRS` transitions, evenly spread over `episodes`.

    Args:
        exchange: makes the pictures; without it, or where it cannot, they are those of other episodes of the cache.

    Returns:
        `source` and `num_pairs`; medians of surprise at the true picture, and its ratios at `repeated`, `unmoved` and
        `moved` ones; `moved_more`, the share of pairs where the moved object surprises more than the control;
        `p_value`, of a one-sided Wilcoxon signed-rank test of that; `details`. Empty where there are too few pairs.
    """
    windows = Windows.of(encode_sequences(subject, episodes), 1)
    if windows is None:
        return {}
    windows = Windows(*(part[thin(range(len(part)), MAX_PAIRS)] for part in windows))
    exchanged = exchange(subject, windows.frames) if exchange else None
    exchanged = exchanged or from_other_episodes(subject, windows.frames)
    if exchanged is None or len(exchanged.rows) < MIN_PAIRS:
        return {}
    z, _, seen, actions, frames = (part[exchanged.rows] for part in windows)
    expected = rollout(subject, z, actions)
    codes = {"true": seen, "repeated": encode_frames(subject, frames, use_target=True), **exchanged.z}
    values = {kind: surprise_of(expected, code).numpy() for kind, code in codes.items()}
    median = max(float(np.median(values["true"])), 1e-12)
    return {
        "source": exchanged.source,
        "num_pairs": len(frames),
        "true": median,
        **{f"{kind}_ratio": float(np.median(values[kind])) / median for kind in ("repeated", "unmoved", "moved")},
        "moved_more": float(np.mean(values["moved"] > values["unmoved"])),
        "p_value": signed_rank_p_value(values["moved"] - values["unmoved"]),
        "details": exchanged.details,
    }


def from_other_episodes(subject: Subject, frames: Tensor) -> Exchanged | None:
    """Pictures of other episodes of the same task; None where no object poses are known, or no state of the arm."""
    cache, wanted = subject.cache, frames.numpy()
    own = episode_of(cache, wanted)
    tasks = {cache.episodes[index].task for index in own}
    members = [index for index, episode in enumerate(cache.episodes) if episode.task in tasks]
    donors = sorted({*own.tolist(), *thin(members, MAX_DONOR_EPISODES)})
    pool = torch.cat([retained_frames(subject, index) for index in donors]).numpy()
    position, here = target_positions(cache, pool), target_positions(cache, wanted)
    if not np.isfinite(here).any() or not cache.robot.state_dim:
        return None
    states = subject.transform.normalize_robot_state(torch.from_numpy(cache.robot_state)).numpy()
    owner = episode_of(cache, pool)
    task_of = np.array([cache.episodes[index].task for index in owner])
    found = []
    for row, (frame, index) in enumerate(zip(wanted, own)):
        allowed = (owner != index) & (task_of == cache.episodes[index].task)
        distance = np.linalg.norm(position - here[row], axis=1)  # NaN compares false: unknown objects drop out
        arm = np.sqrt(((states[pool] - states[frame]) ** 2).mean(axis=1))
        far = np.where(allowed & (distance >= MOVED_M), arm, np.inf)
        chosen = int(far.argmin())
        near = np.where(allowed & (distance <= UNMOVED_M) & (arm >= far[chosen]), arm, np.inf)
        control = int(near.argmin())
        if max(far[chosen], near[control]) <= MAX_ARM_STD:
            found.append((row, pool[chosen], pool[control], far[chosen], near[control]))
    if not found:
        return None
    rows, moved, unmoved, moved_off, unmoved_off = map(torch.tensor, zip(*found))
    z = {
        kind: encode_frames(subject, frames[rows], use_target=True, images_from=pictures)
        for kind, pictures in (("moved", moved), ("unmoved", unmoved))
    }
    off = {"arm_off_moved_std": moved_off, "arm_off_unmoved_std": unmoved_off}
    return Exchanged(rows, z, "other episodes", {name: float(np.median(values)) for name, values in off.items()})
