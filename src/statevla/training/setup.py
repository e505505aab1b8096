"""From a configuration to what a phase trains on: cache, split, statistics, language, model, samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from statevla.checkpoints.checkpoint import (
    PHASE_SECTIONS,
    DataInfo,
    LoadedCheckpoint,
    check_language,
    check_robot,
    load_checkpoint,
    load_strict,
)
from statevla.config import Config, fit_to_robot
from statevla.data import ChunkDataset, FrameCache, JoinedSamples, TransitionDataset, open_frame_cache
from statevla.diagnostics.sequences import Subject
from statevla.errors import UserError
from statevla.machine.processes import Processes
from statevla.model.language import LanguageInfo, build_language_encoder
from statevla.model.statevla_model import StateVLA
from statevla.training.latents import LatentSamples, open_latents
from statevla.training.sources import (
    Source,
    measure_statistics,
    open_further_sources,
    open_main_source,
)
from statevla.transforms import STD_FLOOR, Statistics, Transform

SHIFT_WARNING = 1.0
"""Standard deviations between the means of two data sets from which on a warning is due."""
WEIGHTLESS = {"model.robot_token_dropout", "model.predictor.dropout", "model.policy.flow_time"} | {
    f"model.policy.{key}" for key in ("num_sampling_steps", "solver", "sampling_temperature")
}
"""Keys of the model that say how it trains and samples: another value fits the same weights."""


@dataclass(frozen=True)
class Setup:
    """What a run works with, on one process.

    Attributes:
        train, validation: sources of batches; validation is None where no episode is held out.
        train_episodes, validation_episodes: indices into `cache.episodes`.
    """

    config: Config
    phase: str
    model: StateVLA
    cache: FrameCache
    transform: Transform
    language_table: Tensor
    language: LanguageInfo
    data: DataInfo
    train: Any
    validation: Any
    train_episodes: list[int]
    validation_episodes: list[int]
    device: torch.device
    processes: Processes
    say: Callable[[str], None]

    @property
    def statistics(self) -> Statistics:
        return self.transform.statistics

    @property
    def subject(self) -> Subject:
        """The model and its data, as diagnostics take them."""
        return Subject(self.model, self.config, self.cache, self.transform, self.language_table, self.device)


def prepare(
    config: Config,
    phase: str,
    phase1_checkpoint: str | Path | None,
    device: torch.device,
    processes: Processes,
    say: Callable[[str], None],
    init_checkpoint: str | Path | None = None,
) -> Setup:
    """Open the data and build the model.

    Phase 2 takes encoder, statistics, split and language from phase 1; the other phases begin with the weights of
    `init_checkpoint`, if there is one. Statistics are then those of the new data all the same: by libero_object's,
    where the hand hardly turns, it turns by up to 26 standard deviations in the four suites.

    Raises:
        UserError: data, language encoder or a checkpoint are missing or do not fit each other.
    """
    initial = open_initial(config, phase, init_checkpoint)
    phase1 = open_phase1(config, phase, phase1_checkpoint)
    if phase1 is not None:
        # How the encoder was trained is a fact of the checkpoint, whatever this run's file says.
        training = config.training.model_copy(update={"phase1": phase1.config.training.phase1})
        config = config.model_copy(update={"training": training})
    cache = open_frame_cache(config, progress=processes.is_main)
    config, robot = fit_to_robot(config, cache.robot)
    for checkpoint in (phase1, initial):
        if checkpoint is not None:
            check_robot(robot, checkpoint.robot, f"checkpoint {checkpoint.path}")
    for sentence in robot.assumed:
        say(f"robot '{robot.name}': {sentence}")
    data = DataInfo(cache.folder.name, config.data.train_split, config.seed, config.data.demos_per_task)
    if phase1 is not None:
        # Episodes that phase 1 held out stay held out.
        data = replace(phase1.data, cache=cache.folder.name, demos_per_task=data.demos_per_task)
    encoder = build_language_encoder(config.language, config.model.language_dim)
    language = encoder.info
    main = open_main_source(config, cache, data, encoder)
    sources = [main, *open_further_sources(config, robot, data, encoder, phase == "1", processes.is_main)]
    data = replace(data, source_caches=tuple(source.cache.folder.name for source in sources[1:]))
    statistics = measure_statistics(config, robot, sources)
    if phase1 is not None:
        check_language(language, phase1.path)
        warn_of_other_data(statistics, phase1, say)
        statistics = phase1.statistics
    transform = Transform(config.model, statistics, robot, config.data.augmentation)
    torch.manual_seed(config.seed)
    model = StateVLA(config, robot)
    if phase1 is not None:
        load_strict(model.state_encoder, phase1.model.state_encoder.state_dict(), f"checkpoint {phase1.path}")
        if config.training.phase2.initial_heads == "cloned":
            take_cloned_heads(model, phase1)
    if initial is not None:
        check_language(language, initial.path)
        begin_with(model, initial, say)
    model = model.to(device)
    train, validation = _samples_of(config, phase, model, sources, transform, processes, say)
    return Setup(
        config, phase, model, cache, transform, main.language_table, language, data, train, validation,
        main.train, main.held_out, device, processes, say,
    )  # fmt: skip


def _samples_of(
    config: Config,
    phase: str,
    model: StateVLA,
    sources: Sequence[Source],
    transform: Transform,
    processes: Processes,
    say: Callable[[str], None],
) -> tuple[Any, Any]:
    """What batches are drawn from: for training, and for validation (None where nothing is held out)."""
    phases = config.training
    # Phase 2 trains no encoder that would learn from more starts.
    repeats = {"1": phases.phase1.start_repeats, "bc": phases.bc.start_repeats}.get(phase, 0)
    frozen = phase == "2" and not phases.phase2.unfreeze_last_blocks
    if frozen:
        model.freeze_encoder()
    device = next(model.parameters()).device
    train, validation = [], []
    for source in sources:
        own = _samples(config, phase, source, [*source.train, *source.reaches], transform, repeats)
        if source.reaches:
            # None where a window's frames are nearer than those of the reaches: better seen than wondered at.
            count = own.count_of(source.reaches)
            say(f"{len(source.reaches)} of the episodes are reaches, trained on too: {count} samples")
        held_out = _samples(config, phase, source, source.held_out, transform) if source.held_out else None
        if frozen:
            table = source.language_table
            states = open_latents(model.eval(), config, source.cache, transform, table, device, processes, say)
            own = LatentSamples(own, states)
            held_out = LatentSamples(held_out, states) if held_out is not None else None
        train.append(own)
        validation += [] if held_out is None else [held_out]
    for source, own in zip(sources[1:], train[1:]):
        kind = "" if source.labelled else " of play"
        say(
            f"also trained on: {source.cache.folder.name}, {len(source.cache.episodes)} episodes{kind}, {len(own)} "
            f"samples, each {source.weight:g} times"
        )
    if len(train) == 1:
        return train[0], validation[0] if validation else None
    joined = JoinedSamples(train, [source.weight for source in sources])
    return joined, JoinedSamples(validation, [1.0] * len(validation)) if validation else None


def _samples(
    config: Config, phase: str, source: Source, episodes: list[int], transform: Transform, start_repeats: int = 0
) -> Any:
    cache, table = source.cache, source.language_table
    if phase == "1":
        settings, labelled = config.training.phase1, source.labelled
        return TransitionDataset(cache, episodes, settings, transform, table, labelled, start_repeats)
    return ChunkDataset(cache, episodes, config.model.action_seq_len, transform, table, start_repeats)


def open_phase1(config: Config, phase: str, path: str | Path | None) -> LoadedCheckpoint | None:
    """The phase-1 checkpoint that phase 2 builds on, checked against the configuration; None for other phases.

    Raises:
        UserError: it is missing, given to a phase that takes none, or of another architecture.
    """
    if phase != "2":
        if path is not None:
            raise UserError(f"--phase1_checkpoint: phase {phase} takes none; leave it out or use --phase 2")
        return None
    if path is None:
        raise UserError(
            "phase 2 needs --phase1_checkpoint; run `python train.py --config ... --phase 1` first and give its "
            "checkpoints/phase1_temporal_jepa/checkpoint_best.pt"
        )
    phase1 = load_checkpoint(path)
    differing = encoder_differences(config, phase1.config)
    if differing:
        raise UserError(
            f"--phase1_checkpoint {path}: its encoder is another one; {'; '.join(differing[:4])}; "
            "use the configuration that phase 1 ran with"
        )
    return phase1


def open_initial(config: Config, phase: str, path: str | Path | None) -> LoadedCheckpoint | None:
    """The checkpoint whose weights phase 1 or `bc` begins with, checked against the configuration; None without one.

    Raises:
        UserError: it is missing, given to phase 2, or of another architecture.
    """
    if path is None:
        return None
    if phase == "2":
        raise UserError("phase 2 begins with --phase1_checkpoint; leave --init_checkpoint out")
    initial = load_checkpoint(path)
    left_out = WEIGHTLESS | {f"model.{key}" for key in open_dims(config)}
    trees = (_flatten_tree(source.model_dump(mode="json")["model"], "model.") for source in (config, initial.config))
    ours, theirs = ({key: value for key, value in tree.items() if key not in left_out} for tree in trees)
    if differing := _differences(ours, theirs):
        raise UserError(
            f"--init_checkpoint {path}: its model is another one; {'; '.join(differing[:4])}; "
            "use the configuration that it was trained with"
        )
    return initial


def begin_with(model: StateVLA, initial: LoadedCheckpoint, say: Callable[[str], None]) -> None:
    """Copy a checkpoint's weights; what only this run's losses need (an inverse model, say) stays random.

    Raises:
        UserError: a part of both has other shapes.
    """
    own, theirs = model.state_dict(), initial.model.state_dict()
    shared = {name: theirs.get(name, value) for name, value in own.items()}
    load_strict(model, shared, f"--init_checkpoint {initial.path}")
    fresh = sorted({name.rpartition(".")[0] for name in own.keys() - theirs.keys()})
    say(f"begins with the weights of {initial.path}" + (f"; random: {', '.join(fresh)}" if fresh else ""))


def take_cloned_heads(model: StateVLA, phase1: LoadedCheckpoint) -> None:
    """Begin phase 2 with the heads that phase 1 trained along.

    Raises:
        UserError: it trained none, or others.
    """
    if not phase1.config.training.phase1.behavior_cloning_weight:
        raise UserError(
            f"training.phase2.initial_heads 'cloned': {phase1.path} was trained without behavior_cloning_weight and "
            "has no heads; set it to 'new'"
        )
    source = f"training.phase2.initial_heads 'cloned', checkpoint {phase1.path}"
    for name in ("policy", "gripper"):
        if (head := getattr(model, name)) is not None:
            load_strict(head, getattr(phase1.model, name).state_dict(), source)


def open_dims(config: Config) -> set[str]:
    """Keys of `model` that are `auto`: they are the robot's, which is compared by itself."""
    return {key for key in ("action_dim", "robot_state_dim", "cameras") if not getattr(config.model, key)}


def encoder_differences(config: Config, trained: Config) -> list[str]:
    """Keys that the encoder depends on and that differ, as `key: this run's value, the checkpoint's value`."""

    def kept(source: Config) -> dict[str, Any]:
        tree = source.model_dump(mode="json")["model"]
        left_out = {"policy", "action_seq_len"} | open_dims(config)
        return _flatten_tree({k: v for k, v in tree.items() if k not in left_out}, "model.")

    return _differences(kept(config), kept(trained))


def warn_of_other_data(statistics: Statistics, phase1: LoadedCheckpoint, say: Callable[[str], None]) -> None:
    """Check the data's statistics against the checkpoint's.

    Raises:
        UserError: other dimensions or another normalisation.
    """
    trained = phase1.statistics
    if statistics.action_normalization != trained.action_normalization:
        raise UserError(
            f"data.action_normalization: {statistics.action_normalization} here, {trained.action_normalization} in "
            f"{phase1.path}; use the same"
        )
    if set(statistics.relative_actions) != set(trained.relative_actions):
        here, there = (", ".join(own.relative_actions) or "none" for own in (statistics, trained))
        raise UserError(f"data.relative_actions: {here} here, {there} in {phase1.path}; use the same")
    robot = phase1.robot
    for what, names, own, theirs in (
        ("actions", robot.action_names, statistics.actions, trained.actions),
        ("robot states", robot.state_names, statistics.robot_state, trained.robot_state),
    ):
        shift = np.abs(own.mean - theirs.mean) / np.maximum(theirs.std, STD_FLOOR)
        if len(shift) and shift.max() > SHIFT_WARNING:
            say(
                f"warning: {what} differ from phase 1's data ({names[shift.argmax()]} by {shift.max():.1f} standard "
                "deviations); they are normalised with phase 1's statistics"
            )


def resume_differences(config: Config, saved: Config, saved_phase: str, phase: str) -> list[str]:
    """Why a saved run is not the one to continue: `key is … here and … in the checkpoint`, or nothing.

    How long to train, how often to save and log, threads and places may change; what the weights depend on may not.
    """
    free = {"output_dir", "device", "num_threads", "data", "language"}
    section = PHASE_SECTIONS[phase]
    free_training = {"validate_every_steps", "max_validation_batches", "checkpoint_every_steps", "checkpoint_every_s"}
    free_training |= {"log_every_steps", "wandb", "compile", *(set(PHASE_SECTIONS.values()) - {section})}

    def kept(source: Config) -> dict[str, Any]:
        tree = {key: value for key, value in source.model_dump(mode="json").items() if key not in free}
        tree["training"] = {key: value for key, value in tree["training"].items() if key not in free_training}
        length = {"num_epochs", "max_steps"}
        tree["training"][section] = {k: v for k, v in tree["training"][section].items() if k not in length}
        tree["data"] = source.data.model_dump(
            include={"train_split", "demos_per_task", "augmentation", "action_normalization", "relative_actions"}
        )
        return tree

    ours = _flatten_tree(kept(config)) | {"phase": phase}
    theirs = _flatten_tree(kept(saved)) | {"phase": saved_phase}
    return _differences(ours, theirs)


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return [
        f"{key} is {ours.get(key)} here and {theirs.get(key)} in the checkpoint"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]


def _flatten_tree(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys; scan backends are left out, they compute the same."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten_tree(value, f"{prefix}{key}.")
        elif key != "scan_backend":
            flat[prefix + key] = value
    return flat
