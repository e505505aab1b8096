"""Where the robot goes next: its place at the next event, from what any demonstration records.

An event is a change of a gripper's command (a binary one, or a continuous one past half of its range). A robot without
a declared gripper has its pauses: where the motion comes to a rest. The place is that of the hand, where the robot
declares a state field of the role `hand_position`; else it is the whole state that the policy sees, and then the end of
an episode that did not fail counts as its last event, as many tasks never grasp.

Keyframes found in the actions are the targets of C2F-ARM (James & Davison 2022, arXiv 2105.14829, section 4) and PerAct
(Shridhar et al. 2022, arXiv 2209.05451), which act on them; here they are something to predict.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from statevla.config.training import JepaLossConfig
from statevla.data.cache import CachedEpisode, FrameCache
from statevla.transforms import Transform

UNIT_M = 0.1
"""Length of offset 1.0: of the order of a reach, so that the loss is of the order of the others."""
HYSTERESIS = 0.1
"""A continuous gripper changes sides this far (of its range) beyond the middle, so that noise there is no event."""
PAUSE_S, PAUSE_SPEED = 0.3, 0.1
"""A pause lasts so long, at less than this share of the episode's quick motion (its 90th percentile)."""


def wanted_keyframes(loss: JepaLossConfig) -> dict[str, int]:
    """Keyframes that a loss weighs, as a `TransitionBatch` calls them, and how many events ahead each one is."""
    weights = {"keyframe": (loss.keyframe_weight, 1), "later_keyframe": (loss.later_keyframe_weight, 2)}
    return {name: ahead for name, (weight, ahead) in weights.items() if weight}


def keyframe_targets(
    cache: FrameCache, transform: Transform, loss: JepaLossConfig, labelled: bool = True
) -> dict[str, Tensor]:
    """What a `TransitionBatch` holds of the keyframes that `loss` weighs, of every frame, by name.

    Args:
        cache, transform: as for `next_keyframes`.
        loss: which are wanted.
        labelled: whether the actions are worth imitating; if not, no keyframe is known.

    Returns:
        For each one float32 `[num_frames, RobotSpec.keyframe_dim]`, and as `…_is_known` bool `[num_frames]`.
    """
    targets = {}
    for name, ahead in wanted_keyframes(loss).items():
        offsets, is_known = next_keyframes(cache, transform, ahead)
        targets[name], targets[f"{name}_is_known"] = torch.from_numpy(offsets), torch.from_numpy(is_known & labelled)
    return targets


def next_keyframes(cache: FrameCache, transform: Transform, ahead: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Where the robot will be at the next event after (or at) every frame, or at a later one.

    Args:
        cache: the frames.
        transform: normalises states where the robot has no hand position.
        ahead: 1 for the next event, 2 for the one after that.

    Returns:
        float32 `[num_frames, RobotSpec.keyframe_dim]`, 0 where not known: from the hand to its next place (`UNIT_M`),
        or the normalised state there. And bool `[num_frames]`: whether there is such an event.
    """
    hand = cache.robot.field_with_role("hand_position")
    states = transform.normalize_robot_state(torch.from_numpy(cache.robot_state)).numpy()
    places = states if hand is None else cache.robot_states[hand.name]
    keyframes, known = np.zeros((len(places), places.shape[1]), np.float32), np.zeros(len(places), bool)
    limits = _gripper_limits(cache)
    for episode in cache.episodes:
        events = episode.start + _events(cache, episode, states, limits)
        if hand is None and episode.success is not False:
            events = np.union1d(events, [episode.stop - 1])
        frames = np.arange(episode.start, episode.stop)
        following = np.searchsorted(events, frames)  # the event that a frame itself is at counts
        following = following + ahead - 1
        has_next = following < len(events)
        frames, following = frames[has_next], following[has_next]
        there = places[events[following]]
        keyframes[frames] = there if hand is None else (there - places[frames]) / UNIT_M
        known[frames] = True
    return keyframes, known


def _gripper_limits(cache: FrameCache) -> dict[int, tuple[float, float]]:
    """Number of an action that commands a gripper → below and above which value it is on one side or the other."""
    limits = {}
    is_binary = cache.robot.is_binary
    for dim in cache.robot.gripper_dims():
        commands = cache.actions[:, dim]
        low, high = (float(commands.min()), float(commands.max())) if len(commands) else (0.0, 0.0)
        margin = 0.0 if is_binary[dim] else HYSTERESIS * (high - low)
        limits[dim] = ((low + high) / 2 - margin, (low + high) / 2 + margin)
    return limits


def _events(
    cache: FrameCache, episode: CachedEpisode, states: np.ndarray, limits: dict[int, tuple[float, float]]
) -> np.ndarray:
    """Steps of an episode at which something happens, increasing, int64."""
    own = slice(episode.start, episode.stop)
    if not limits:
        return _pauses(states[own], round(PAUSE_S * cache.robot.control_freq_hz))
    changes = [_changes(cache.actions[own, dim], *limits[dim]) for dim in limits]
    return np.unique(np.concatenate(changes))


def _changes(commands: np.ndarray, low: float, high: float) -> np.ndarray:
    """Steps at which `commands` `[T]` go from below `low` to above `high` or back; between the two nothing changes."""
    sides = np.where(commands > high, 1, np.where(commands < low, -1, 0))
    # In between, the last clear side holds (at the start, the first clear one).
    clear = np.flatnonzero(sides)
    if not len(clear):
        return np.zeros(0, np.int64)
    last_clear = np.searchsorted(clear, np.arange(len(sides)), side="right") - 1
    held = sides[clear[np.maximum(last_clear, 0)]]
    return 1 + np.flatnonzero(held[1:] != held[:-1])


def _pauses(states: np.ndarray, shortest: int) -> np.ndarray:
    """Steps at which motion comes to rest for at least `shortest` steps; `states` `[T, S]`, normalised."""
    speed = np.linalg.norm(np.diff(states, axis=0), axis=1)
    if not len(speed):
        return np.zeros(0, np.int64)
    rests = np.concatenate([[False], speed < PAUSE_SPEED * np.quantile(speed, 0.9), [False]])
    edges = np.flatnonzero(rests[1:] != rests[:-1])
    begins, ends = edges[::2], edges[1::2]
    # At the very start nothing has come to rest yet.
    return begins[(ends - begins >= max(shortest, 1)) & (begins > 0)].astype(np.int64)
