"""Offline evaluation of a checkpoint: actions, world model and probes on held-out episodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from statevla.data import open_frame_cache, split_episodes
from statevla.device import resolve_device
from statevla.diagnostics.actions import ChunkSamples, action_metrics, sample_chunks
from statevla.diagnostics.probes import run_probes
from statevla.diagnostics.sequences import Subject
from statevla.diagnostics.world_model import go_no_go, measure_world_model
from statevla.errors import UserError
from statevla.training.checkpoint import LoadedCheckpoint, load_checkpoint
from statevla.training.provenance import git_commit, versions
from statevla.training.setup import check_language, embed_instructions
from statevla.transforms import Transform


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

    Raises:
        UserError: checkpoint or data are missing or do not fit each other.
    """
    loaded = load_checkpoint(checkpoint, resolve_device(device))
    if loaded.config.num_threads:
        torch.set_num_threads(loaded.config.num_threads)
    subject = _subject(loaded, data)
    train, held_out = split_episodes(subject.cache, loaded.data.train_split, loaded.data.split_seed)
    episodes = {"validation": held_out, "train": train, "all": sorted([*train, *held_out])}[split]
    if not episodes:
        raise UserError(f"evaluation of {loaded.path}: no {split} episodes; give --split train")
    phase = str(loaded.metrics.get("phase", "2"))
    results: dict[str, Any] = {
        "checkpoint": str(loaded.path),
        "phase": phase,
        "step": loaded.metrics.get("step"),
        "split": split,
        "num_episodes": len(episodes),
        "data": str(subject.cache.folder.name),
        "versions": versions(),
        "git_commit": git_commit(),
        "training_metrics": loaded.metrics,
    }
    samples = None
    if phase != "1":
        samples = sample_chunks(subject, episodes, max_samples, num_seeds, steps)
        results["actions"] = action_metrics(samples, subject)
    if phase != "bc":
        # Behaviour cloning trains no predictor: there is no world model to measure.
        results["world_model"] = measure_world_model(subject, episodes)
        results["go_no_go"] = go_no_go(results["world_model"])
    if probes:
        results["probes"] = run_probes(subject, train, held_out)
    return Evaluation(results, samples)


def _subject(loaded: LoadedCheckpoint, data: str | None) -> Subject:
    config = loaded.config
    if data is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"path": data})})
    cache = open_frame_cache(config)
    table, language = embed_instructions(config, cache)
    check_language(language, loaded)
    device = next(loaded.model.parameters()).device
    return Subject(loaded.model, config, cache, Transform(config.model, loaded.statistics), table, device)
