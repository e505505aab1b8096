"""Offline evaluation of a checkpoint: actions, world model and probes on held-out episodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from statevla.checkpoints.checkpoint import LoadedCheckpoint, check_language, check_robot, load_checkpoint
from statevla.checkpoints.provenance import git_commit, versions
from statevla.data import open_frame_cache, open_reader, split_episodes
from statevla.diagnostics.actions import ChunkSamples, action_metrics, sample_chunks
from statevla.diagnostics.goals import measure_goal_places, measure_goals
from statevla.diagnostics.object_surprise import NO_PAIRS, NO_POSES, Exchange, measure_object_surprise
from statevla.diagnostics.plots import draw_all
from statevla.diagnostics.probes import MAX_EPISODES, beats_baselines, missing_roles, run_probes, thin
from statevla.diagnostics.sequences import Subject
from statevla.diagnostics.world_model import go_no_go, measure_world_model
from statevla.errors import UserError
from statevla.machine.device import resolve_device
from statevla.machine.sealed import seal
from statevla.machine.storage import write_json
from statevla.model.language import build_language_encoder
from statevla.transforms import Transform
from statevla.types import Orientation

QUICK_EPISODES = 12


@dataclass(frozen=True)
class Evaluation:
    """Results as a plain tree (JSON), and the chunks behind the action metrics (None without a trained policy)."""

    results: dict[str, Any]
    samples: ChunkSamples | None


def evaluate(
    checkpoint: str | Path,
    data: str | None = None,
    split: str = "validation",
    max_samples: int = 2_000,
    num_seeds: int = 4,
    steps: int | None = None,
    probes: bool = True,
    device: str = "auto",
    orientation: Orientation = "auto",
) -> Evaluation:
    """Evaluate a checkpoint on its own held-out episodes.

    Args:
        checkpoint: as `load_checkpoint` takes it.
        data: another data set; None takes the one it was trained on.
        split: `validation`, `train` or `all`.
        max_samples: frames to sample chunks for.
        num_seeds: chunks per frame.
        steps: solver steps; None takes the configuration's.
        probes: also fit probes on the training episodes.
        device: as in the configuration.
        orientation: how the frames of `data` are stored; `auto` believes the data set.

    Raises:
        UserError: checkpoint or data are missing or do not fit each other.
    """
    opened = open_subject(checkpoint, data, device, orientation)
    episodes = opened.episodes(split)
    results = opened.header(split, episodes)
    samples = None
    if results["phase"] != "1":
        samples = sample_chunks(opened.subject, episodes, max_samples, num_seeds, steps)
        results["actions"] = action_metrics(samples, opened.subject)
    # Behaviour cloning trains no predictor: there is no world model to measure.
    has_world_model = results["phase"] != "bc"
    results |= measure_state(opened.subject, opened.train, opened.held_out, episodes, has_world_model, probes)
    return Evaluation(results, samples)


@dataclass(frozen=True)
class OpenedSubject:
    """A checkpoint with its data: `train` and `held_out` are the episodes of its own split."""

    loaded: LoadedCheckpoint
    subject: Subject
    train: list[int]
    held_out: list[int]

    def episodes(self, split: str) -> list[int]:
        """Those of `validation`, `train` or `all`; a UserError if there are none."""
        chosen = {"validation": self.held_out, "train": self.train, "all": sorted([*self.train, *self.held_out])}[split]
        if not chosen:
            raise UserError(f"evaluation of {self.loaded.path}: no {split} episodes; give --split train")
        return chosen

    def header(self, split: str, episodes: Sequence[int]) -> dict[str, Any]:
        """What was evaluated, with which versions."""
        return {
            "checkpoint": str(self.loaded.path),
            "phase": str(self.loaded.metrics.get("phase", "2")),
            "step": self.loaded.metrics.get("step"),
            "split": split,
            "num_episodes": len(episodes),
            "data": str(self.subject.cache.folder.name),
            "robot": self.loaded.robot.to_dict(),
            "versions": versions(),
            "git_commit": git_commit(),
            "training_metrics": self.loaded.metrics,
        }


def open_subject(
    checkpoint: str | Path, data: str | None, device: str, orientation: Orientation = "auto"
) -> OpenedSubject:
    """Open a checkpoint and its data, or the data set at `data` with frames stored like that, split as in training.

    Raises:
        UserError: one of them is missing, or they do not fit each other, as those of different robots.
    """
    loaded = load_checkpoint(checkpoint, resolve_device(device))
    config, split = loaded.config, loaded.data
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    if data is not None:
        # What was said of the training's frames says nothing of others.
        changed = config.data.model_copy(update={"path": data, "orientation": orientation})
        config = config.model_copy(update={"data": changed})
    settings = config.data
    with open_reader(settings.path, settings.format, settings.orientation, settings.robot) as reader:
        check_robot(reader.robot, loaded.robot, f"checkpoint {loaded.path}")  # before a cache is built in vain
    cache = open_frame_cache(config)
    encoder = build_language_encoder(config.language, config.model.language_dim)
    table = encoder.encode(list(cache.instructions))
    check_language(encoder.info, loaded.path)
    transform = Transform(config.model, loaded.statistics, loaded.robot)
    subject = Subject(loaded.model, config, cache, transform, table, next(loaded.model.parameters()).device)
    limit = split.demos_per_task if data is None else None
    return OpenedSubject(loaded, subject, *split_episodes(cache, split.train_split, split.split_seed, limit))


def measure_state(
    subject: Subject,
    train: Sequence[int],
    held_out: Sequence[int],
    episodes: Sequence[int],
    world_model: bool = True,
    probes: bool = True,
    thorough: bool = True,
    exchange: Exchange | None = None,
) -> dict[str, Any]:
    """What z knows: `world_model`, `goals` (with a keyframe head) and `go_no_go` on `episodes`; `probes` and
    `object_surprise` across the split; `goal_places` on all there are, reaches with them.

    Args:
        train, held_out: probes are fitted to the one and scored on the other.
        world_model: there is a trained predictor.
        probes: also fit probes, and move objects.
        thorough: False leaves out the MLPs and takes few episodes: seconds instead of a minute.
        exchange: as `measure_object_surprise` takes it.

    Returns:
        A tree for JSON; `notes` has a line for what was skipped.
    """
    notes: list[str] = []
    results: dict[str, Any] = {"notes": notes}
    go: dict[str, bool] = {}
    missing = missing_roles(subject.robot)
    if "hand_position" in missing and (probes or subject.model.state_encoder.keyframe is not None):
        notes.append(missing["hand_position"])
    if world_model:
        results["world_model"] = measure_world_model(subject, episodes)
        if goals := measure_goals(subject, episodes):
            results["goals"] = goals
            # Reaches too, though they are trained on: a place shows with some episodes in it only.
            places = thin(range(len(subject.cache.episodes)), 2_000 if thorough else 500)
            results["goal_places"] = measure_goal_places(subject, places)
        go = go_no_go(results["world_model"])
    if probes:
        limit = MAX_EPISODES if thorough else QUICK_EPISODES
        results["probes"] = run_probes(subject, train, held_out, limit, mlp=thorough)
        if scores := results["probes"].get("object_from_hand"):
            go["object_from_hand"] = beats_baselines(scores)
        if "gripper_opening" in missing:
            notes.append(missing["gripper_opening"])
        if not results["probes"]:
            notes.append("probes: skipped, they need episodes on both sides of the split")
        elif "target_object" not in results["probes"]:
            notes.append(NO_POSES)
        elif world_model:
            results["object_surprise"] = measure_object_surprise(subject, thin(episodes, limit), exchange)
            notes += [] if results["object_surprise"] else [NO_PAIRS]
    if go:
        results["go_no_go"] = go
    return results


def write_results(results: dict[str, Any], samples: ChunkSamples | None, file: Path) -> list[Path]:
    """Write an evaluation's results, or a part of them, as JSON, and pictures beside it; returns the pictures.

    Raises:
        UserError: they cannot be written.
    """
    # JSON has no NaN and no infinity: null.
    write_json(file, seal(json.loads(json.dumps(results), parse_constant=lambda _: None)))
    return draw_all(results, samples, file.parent)
