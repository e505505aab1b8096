"""The arrays of a frame cache beside its frames: of one episode, and joined over all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from statevla.data.cache import ACTIONS, EXECUTED, FRAME_CRCS, IS_SEEN, OBJECTS, STATE_PREFIX, CachedEpisode
from statevla.data.episodes import EpisodeArrays, EpisodeInfo

_NAMES, _SUCCESS, _SIDES = "object_names", "success", "frame_sides"


def arrays_of_episode(arrays: EpisodeArrays) -> dict[str, np.ndarray]:
    """What is kept of an episode, without its frames."""
    named = {ACTIONS: arrays.actions, EXECUTED: arrays.executed_actions, OBJECTS: arrays.object_poses}
    named |= {STATE_PREFIX + field: states for field, states in arrays.robot_states.items()}
    present = {name: array.astype(np.float32) for name, array in named.items() if array is not None}
    if arrays.is_seen is not None:
        present[IS_SEEN] = arrays.is_seen
    # NumPy has no None: -1 stands for a success that nobody noted.
    success = -1 if arrays.success is None else int(arrays.success)
    sides = [max(frames.shape[1:3]) for frames in arrays.images.values()]
    return present | {
        _NAMES: np.array(arrays.object_names, dtype=np.str_),
        _SUCCESS: np.array(success, np.int8),
        _SIDES: np.array(sides, np.int64),
    }


def join_arrays(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of all episodes, one after the other; a state field only where every episode has it."""
    lengths = [len(part[ACTIONS]) for part in parts]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in (ACTIONS, FRAME_CRCS)}
    for name in {name for part in parts for name in part if name.startswith(STATE_PREFIX)}:
        if all(name in part for part in parts):
            arrays[name] = np.concatenate([part[name] for part in parts])
    if any(EXECUTED in part for part in parts):
        arrays[EXECUTED] = np.concatenate([part.get(EXECUTED, part[ACTIONS]) for part in parts])
    if any(IS_SEEN in part for part in parts):
        seen = [part.get(IS_SEEN, np.ones(length, bool)) for part, length in zip(parts, lengths)]
        arrays[IS_SEEN] = np.concatenate(seen)
    if any(OBJECTS in part for part in parts):
        arrays[OBJECTS] = _padded([part.get(OBJECTS) for part in parts], lengths)
    return arrays


def describe_episodes(
    infos: Sequence[EpisodeInfo], parts: Sequence[dict[str, np.ndarray]], starts: Sequence[int]
) -> tuple[list[CachedEpisode], list[str]]:
    """The episodes, whose frames begin at `starts`, and their different instructions."""
    instructions = sorted({info.instruction for info in infos})
    episodes = [
        CachedEpisode(
            episode_id=info.episode_id,
            task=info.task,
            instruction=instructions.index(info.instruction),
            start=start,
            num_steps=info.num_steps,
            object_names=tuple(part[_NAMES].tolist()),
            success=None if part[_SUCCESS] < 0 else bool(part[_SUCCESS]),
        )
        for info, start, part in zip(infos, starts, parts)
    ]
    return episodes, instructions


def common_frame_size(parts: Sequence[dict[str, np.ndarray]]) -> int | None:
    """Longer side of the frames before they were resized (pixels); None where they differ."""
    sides = {int(side) for part in parts for side in part[_SIDES]}
    return sides.pop() if len(sides) == 1 else None


def _padded(poses: Sequence[np.ndarray | None], lengths: Sequence[int]) -> np.ndarray:
    """Join object poses of different widths; NaN where an episode has none."""
    width = max(part.shape[1] for part in poses if part is not None)
    joined = np.full((sum(lengths), width), np.nan, np.float32)
    start = 0
    for part, length in zip(poses, lengths):
        if part is not None:
            joined[start : start + length, : part.shape[1]] = part
        start += length
    return joined
