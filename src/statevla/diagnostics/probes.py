"""What can be read out of z: ridge and MLP probes on held-out episodes, beside baselines that need no world model.

A probe is trained on training episodes and scored on held-out ones, by R² = 1 − SSE / SST. The baselines say what the
number is worth: the robot state alone, the episode's mean z (which episode is it?), and an encoder with random weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from statevla.data import CachedEpisode, FrameCache
from statevla.data.keyframes import UNIT_M, next_keyframes
from statevla.diagnostics.sequences import Subject, encode_frames, episode_of, retained_frames
from statevla.model.statevla_model import StateVLA
from statevla.robots import RobotSpec

RIDGE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Relative to the number of samples, on standardised features."""
MLP_NAMES = {"ridge": "mlp", "robot_state": "robot_state_mlp", "random_encoder": "random_encoder_mlp"}
"""What the MLP on the same features as a ridge regression is called."""
MLP_HIDDEN_DIM, MLP_STEPS, MLP_BATCH = 256, 400, 512
MAX_EPISODES, MAX_FRAMES = 40, 4_000
EPISODES_PER_INSTRUCTION = 4
"""Of data with so many tasks that a fixed number of episodes would show some of them once or never."""
MIN_STD = 1e-4
"""A target that moves less (0.1 mm) says nothing."""
SEED = 0

Targets = dict[str, np.ndarray]


def run_probes(
    subject: Subject,
    train: Sequence[int],
    held_out: Sequence[int],
    max_episodes: int = MAX_EPISODES,
    mlp: bool = True,
) -> dict[str, dict[str, float]]:
    """R² of each probe for each target.

    Args:
        train, held_out: episodes to fit and to score on.
        max_episodes: of each side, taken evenly; of data with many tasks, four for each instruction.
        mlp: also fit two-layer MLPs: to z, and to the two baselines that a straight line could wrong.

    Returns:
        target → {ridge, robot_state, episode_mean, random_encoder} by ridge regression, and with `mlp` {mlp,
        robot_state_mlp, random_encoder_mlp}; empty where either side has no episode.
    """
    most = max(max_episodes, EPISODES_PER_INSTRUCTION * len(subject.cache.instructions))
    train, held_out = thin(train, most), thin(held_out, most)
    if not train or not held_out:
        return {}
    sides = [_frames(subject, episodes) for episodes in (train, held_out)]
    frames = torch.cat(sides)
    groups, is_test = episode_of(subject.cache, frames.numpy()), np.arange(len(frames)) >= len(sides[0])
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        random = replace(subject, model=StateVLA(subject.config, subject.model.robot).to(subject.device).eval())
    z = encode_frames(subject, frames).numpy()
    episodes, place = np.unique(groups, return_inverse=True)
    features = {  # what targets are read out of, `[M, F]` each
        "ridge": z,
        "robot_state": subject.cache.robot_state[frames.numpy()].astype(np.float64),
        "episode_mean": np.stack([z[groups == episode].mean(0) for episode in episodes])[place],
        "random_encoder": encode_frames(random, frames).numpy(),
    }
    results: dict[str, dict[str, float]] = {}
    for name, target in probe_targets(subject, frames.numpy()).items():
        is_known = np.isfinite(target).all(1)
        fit, test = is_known & ~is_test, is_known & is_test
        if not fit.any() or not test.any() or target[test].std(0).max() < MIN_STD:
            continue
        results[name] = {}
        for kind, x in features.items():
            results[name][kind] = score_ridge(x[fit], target[fit], x[test], target[test], groups[fit])
            if mlp and kind in MLP_NAMES:
                results[name][MLP_NAMES[kind]] = r_squared(fit_mlp(x[fit], target[fit], x[test]), target[test])
    return results


def beats_baselines(scores: Mapping[str, float]) -> bool:
    """Whether the better probe of z says more than every baseline, `scores` as in `run_probes`."""
    own = [scores[kind] for kind in ("ridge", "mlp") if kind in scores]
    return max(own) > max(score for kind, score in scores.items() if kind not in ("ridge", "mlp"))


def probe_targets(subject: Subject, frames: np.ndarray) -> Targets:
    """What probes should recover at these frames, name → float64 `[M, dim]`; NaN where an episode does not tell.

    Positions in metres, gripper width in the robot's units, progress from 0 to 1. `..._xy` are the same without the
    height, which is easily known and lifts the R² of a state that does not know places; `next_keyframe` is where the
    hand will be at the next event, from the hand. Where the robot declares no hand position, `next_keyframe_state` is
    its whole state then, normalised.
    """
    cache = subject.cache
    targets: Targets = {}
    hand = hand_positions(cache)
    if hand is not None:
        targets["end_effector"] = hand[frames].astype(np.float64)
        targets["end_effector_xy"] = targets["end_effector"][:, :2]
    if cache.robot.keyframe_dim:
        keyframes, is_known = next_keyframes(cache, subject.transform)
        name, unit = ("next_keyframe_state", 1.0) if hand is None else ("next_keyframe", UNIT_M)
        targets[name] = np.where(is_known[frames, None], keyframes[frames] * unit, np.nan)
    grippers = [field for field in cache.robot.state if field.role == "gripper_opening"]
    for field in grippers:
        # The distance of its two fingers, or whatever the field measures instead.
        opening = cache.robot_states[field.name][frames].astype(np.float64)
        name = "gripper_width" if len(grippers) == 1 else f"gripper_width_{field.name}"
        targets[name] = opening[:, :1] - opening[:, 1:] if field.size == 2 else opening
    position = target_positions(cache, frames)
    if np.isfinite(position).any():
        targets["target_object"] = position
        if hand is not None:
            targets["object_from_hand"] = position - targets["end_effector"]
            targets["object_from_hand_xy"] = targets["object_from_hand"][:, :2]
    owner = episode_of(cache, frames)
    starts, steps = np.array([(episode.start, episode.num_steps) for episode in cache.episodes])[owner].T
    targets["progress"] = ((frames - starts) / np.maximum(steps - 1, 1))[:, None]
    return targets


def hand_positions(cache: FrameCache) -> np.ndarray | None:
    """Where the hand is at every frame, float32 `[num_frames, 3]` (m); None where the robot declares no such field."""
    field = cache.robot.field_with_role("hand_position")
    return None if field is None else cache.robot_states[field.name]


def missing_roles(robot: RobotSpec) -> dict[str, str]:
    """Role that diagnostics look for and no state field of `robot` has → what is left out for it, in a sentence."""
    costs = {
        "hand_position": "nothing is measured of where the hand is and where it is going",
        "gripper_opening": "there is no probe of the gripper's width",
    }
    return {
        role: f"robot '{robot.name}' declares no state field of the role {role}: {cost} (docs/robots.md)"
        for role, cost in costs.items()
        if robot.field_with_role(role) is None
    }


def target_positions(cache: FrameCache, frames: np.ndarray) -> np.ndarray:
    """Position of the object that the instruction is about, float64 `[M, 3]` (m); NaN where it is not known."""
    position = np.full((len(frames), 3), np.nan)
    if cache.object_poses is None:
        return position
    owner = episode_of(cache, frames)
    for index in np.unique(owner):
        column = target_object(cache.episodes[index], cache.instructions[cache.episodes[index].instruction])
        if column is not None:
            rows = owner == index
            position[rows] = cache.object_poses[frames[rows]][:, 7 * column : 7 * column + 3]
    return position


def target_object(episode: CachedEpisode, instruction: str) -> int | None:
    """Which of an episode's objects the instruction is about: the one whose name it mentions first, or None.

    Names are the simulator's (`salad_dressing_1`). An object mentioned in full goes before one mentioned in part.
    """
    words = re.findall(r"[a-z0-9]+", instruction.lower())
    ranks = []
    for number, name in enumerate(episode.object_names):
        parts: list[str] = re.findall(r"[a-z]+", name.lower())
        if found := [words.index(part) for part in parts if part in words]:
            ranks.append((-len(found) / len(parts), min(found), number))
    return min(ranks)[-1] if ranks else None


def r_squared(predicted: np.ndarray, truth: np.ndarray) -> float:
    """1 − SSE / SST, summed over dims; SST about the mean of `truth`. Both `[M, dim]`."""
    sse = float(((predicted - truth) ** 2).sum())
    return 1.0 - sse / max(float(((truth - truth.mean(0)) ** 2).sum()), 1e-12)


def fit_ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> Mapping[str, np.ndarray]:
    """Closed-form ridge regression on standardised features: `x` `[M, F]`, `y` `[M, dim]`; see `apply_ridge`."""
    shift, scale = x.mean(0), np.maximum(x.std(0), 1e-6)
    features, centre = (x - shift) / scale, y.mean(0)
    gram = features.T @ features + penalty * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, features.T @ (y - centre))
    return {"shift": shift, "scale": scale, "weights": weights, "centre": centre}


def apply_ridge(fit: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Predictions `[M, dim]`."""
    return (x - fit["shift"]) / fit["scale"] @ fit["weights"] + fit["centre"]


def fit_mlp(x: np.ndarray, y: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """Predictions for `x_test` of a two-layer MLP (fixed steps and seed) fitted to `x` `[M, F]`, `y` `[M, dim]`."""
    shift, scale = x.mean(0), np.maximum(x.std(0), 1e-6)
    centre, spread = y.mean(0), np.maximum(y.std(0), 1e-9)

    def features(values: np.ndarray) -> Tensor:
        return torch.from_numpy(((values - shift) / scale).astype(np.float32))

    inputs, outputs = features(x), torch.from_numpy(((y - centre) / spread).astype(np.float32))
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = nn.Sequential(nn.Linear(x.shape[1], MLP_HIDDEN_DIM), nn.GELU(), nn.Linear(MLP_HIDDEN_DIM, y.shape[1]))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
        for _ in range(MLP_STEPS):
            rows = torch.randint(len(inputs), (min(MLP_BATCH, len(inputs)),))
            optimizer.zero_grad()
            (model(inputs[rows]) - outputs[rows]).square().mean().backward()
            optimizer.step()
    with torch.no_grad():
        return model(features(x_test)).numpy().astype(np.float64) * spread + centre


def score_ridge(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, groups: np.ndarray) -> float:
    """R² on the test side; the penalty is chosen on a fifth of the training episodes."""
    x, x_test = x.astype(np.float64), x_test.astype(np.float64)
    inner = np.isin(groups, np.unique(groups)[::5])
    penalty = 1.0
    if inner.any() and not inner.all():

        def trial(penalty: float) -> float:
            return r_squared(apply_ridge(fit_ridge(x[~inner], y[~inner], penalty), x[inner]), y[inner])

        penalty = max(RIDGE_PENALTIES, key=trial)
    return r_squared(apply_ridge(fit_ridge(x, y, penalty), x_test), y_test)


def thin(episodes: Sequence[int], count: int) -> list[int]:
    """At most `count` of them, evenly spread."""
    if len(episodes) <= count:
        return list(episodes)
    return [episodes[i] for i in np.linspace(0, len(episodes) - 1, count).round().astype(int)]


def _frames(subject: Subject, episodes: Sequence[int]) -> Tensor:
    frames = torch.cat([retained_frames(subject, episode) for episode in episodes])
    return frames[:: -(-len(frames) // MAX_FRAMES)]
