"""From a configuration to what a phase trains on: cache, split, statistics, language, model, samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from statevla.checkpoints.checkpoint import DataInfo, LoadedCheckpoint, check_language, check_robot, load_strict
from statevla.config import Config, fit_to_robot
from statevla.data import ChunkDataset, JoinedSamples, TransitionDataset, open_frame_cache
from statevla.diagnostics.sequences import Subject
from statevla.machine.processes import Processes
from statevla.model.language import LanguageInfo, build_language_encoder
from statevla.model.statevla_model import StateVLA
from statevla.robots import RobotSpec
from statevla.training.latents import LatentSamples, open_latents
from statevla.training.sources import Source, measure_statistics, open_further_sources, open_source
from statevla.training.start import begin_with, open_initial, open_phase1, warn_of_other_data, with_cameras_of
from statevla.transforms import Statistics, Transform


@dataclass(frozen=True)
class RunContext:
    """Where a run happens: its device, the processes that share its work, and who takes its messages."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    processes: Processes = field(default_factory=Processes)
    say: Callable[[str], None] = print


@dataclass(frozen=True)
class Setup:
    """What a run works with, on one process.

    Attributes:
        main: the data set of `data.path`, and how it is split.
        language: what a checkpoint notes of the text encoder.
        data: what a checkpoint notes of the data.
        train, validation: what batches are drawn from; validation is None where no episode is held out.
    """

    config: Config
    phase: str
    model: StateVLA
    transform: Transform
    main: Source
    language: LanguageInfo
    data: DataInfo
    train: Any
    validation: Any
    context: RunContext

    @property
    def statistics(self) -> Statistics:
        return self.transform.statistics

    @property
    def subject(self) -> Subject:
        """The model and its data, as diagnostics take them."""
        main = self.main
        return Subject(self.model, self.config, main.cache, self.transform, main.language_table, self.context.device)


def prepare(
    config: Config,
    phase: str,
    phase1_checkpoint: str | Path | None = None,
    init_checkpoint: str | Path | None = None,
    context: RunContext | None = None,
) -> Setup:
    """Open the data and build the model.

    Phase 2 takes encoder, statistics, split and language from phase 1, or all that and the policy from
    `init_checkpoint`. The other phases begin with its weights, if there is one, and have the statistics of the new data
    all the same: by libero_object's, where the hand hardly turns, it turns by up to 26 standard deviations in the four
    suites.

    Raises:
        UserError: data, language encoder or a checkpoint are missing or do not fit each other.
    """
    context = context or RunContext()
    initial = open_initial(config, phase, init_checkpoint)
    phase1 = open_phase1(config, phase, phase1_checkpoint, initial)
    if phase1 is not None:
        # How the encoder was trained is a fact of the checkpoint, whatever this run's file says.
        training = config.training.model_copy(update={"phase1": phase1.config.training.phase1})
        config = config.model_copy(update={"training": training})
    for flag, checkpoint in (("--phase1_checkpoint", phase1), ("--init_checkpoint", initial)):
        config = config if checkpoint is None else with_cameras_of(config, checkpoint, flag)
    config, robot, sources, language, info = _open_data(config, phase, phase1, context)
    statistics = measure_statistics(config, robot, sources)
    for checkpoint in filter(None, (phase1, initial)):
        check_robot(robot, checkpoint.robot, f"checkpoint {checkpoint.path}")
        check_language(language, checkpoint.path)
    if phase1 is not None:
        warn_of_other_data(statistics, phase1, context.say)
        statistics = phase1.statistics
    transform = Transform(config.model, statistics, robot, config.data.augmentation)
    torch.manual_seed(config.seed)
    model = StateVLA(config, robot)
    if phase1 is not None:
        load_strict(model.state_encoder, phase1.model.state_encoder.state_dict(), f"checkpoint {phase1.path}")
        model.freeze_encoder()
    if initial is not None:
        begin_with(model, initial, context.say)
    train, validation = _samples_of(config, phase, sources, model.to(context.device), transform, context)
    return Setup(config, phase, model, transform, sources[0], language, info, train, validation, context)


def _open_data(
    config: Config, phase: str, phase1: LoadedCheckpoint | None, context: RunContext
) -> tuple[Config, RobotSpec, list[Source], LanguageInfo, DataInfo]:
    """Open `data.path` and `data.sources`; episodes that phase 1 held out stay held out.

    Returns:
        The configuration with the robot's dimensions and cameras, the robot, and what a checkpoint notes of all.
    """
    show_progress = context.processes.is_main
    cache = open_frame_cache(config, progress=show_progress)
    config, robot = fit_to_robot(config, cache.robot)
    for sentence in robot.assumed:
        context.say(f"robot '{robot.name}': {sentence}")
    info = DataInfo(cache.folder.name, config.data.train_split, config.seed, config.data.demos_per_task)
    if phase1 is not None:
        info = replace(phase1.data, cache=info.cache, demos_per_task=info.demos_per_task)
    info = replace(info, frame_size=cache.frame_size)
    encoder = build_language_encoder(config.language, config.model.language_dim)
    main = open_source(config, cache, info, encoder, context.say)
    further = open_further_sources(config, robot, info, encoder, phase == "1", show_progress, context.say)
    info = replace(info, source_caches=tuple(source.cache.folder.name for source in further))
    return config, robot, [main, *further], encoder.info, info


def _samples_of(
    config: Config, phase: str, sources: Sequence[Source], model: StateVLA, transform: Transform, context: RunContext
) -> tuple[Any, Any]:
    """What batches are drawn from: for training, and for validation (None where nothing is held out)."""
    train, validation = [], []
    for source in sources:
        own, held_out = _samples_of_source(config, phase, source, transform, context.say)
        if phase == "2":
            subject = Subject(model.eval(), config, source.cache, transform, source.language_table, context.device)
            states = open_latents(subject, context.processes, context.say)
            own = LatentSamples(own, states)
            held_out = LatentSamples(held_out, states) if held_out is not None else None
        train.append(own)
        validation += [] if held_out is None else [held_out]
    for source, own in zip(sources[1:], train[1:]):
        kind = "" if source.labelled else " of play"
        context.say(
            f"also trained on: {source.cache.folder.name}, {len(source.cache.episodes)} episodes{kind}, {len(own)} "
            f"samples, each {source.weight:g} times"
        )
    if len(train) == 1:
        return train[0], validation[0] if validation else None
    joined = JoinedSamples(train, [source.weight for source in sources])
    return joined, JoinedSamples(validation, [1.0] * len(validation)) if validation else None


def _samples_of_source(
    config: Config, phase: str, source: Source, transform: Transform, say: Callable[[str], None]
) -> tuple[Any, Any]:
    """Samples of a source's training episodes and reaches, and of those held out (None if there are none)."""
    phases = config.training
    # Phase 2 trains no encoder that would learn from more starts.
    repeats = {"1": phases.phase1.start_repeats, "bc": phases.bc.start_repeats}.get(phase, 0)

    def samples(episodes: Sequence[int], start_repeats: int = 0) -> TransitionDataset | ChunkDataset:
        cache, table = source.cache, source.language_table
        if phase == "1":
            return TransitionDataset(cache, episodes, phases.phase1, transform, table, source.labelled, start_repeats)
        return ChunkDataset(cache, episodes, config.model.action_seq_len, transform, table, start_repeats)

    train = samples([*source.train, *source.reaches], repeats)
    if source.reaches:
        # None where a window's frames are nearer than those of the reaches: better seen than wondered at.
        count = train.count_of(source.reaches)
        say(f"{len(source.reaches)} of the episodes are reaches, trained on too: {count} samples")
    return train, samples(source.held_out) if source.held_out else None
