"""The data sets that a run trains on: `data.path` first, then `data.sources`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from statevla.checkpoints.checkpoint import DataInfo
from statevla.config import Config, expand_path
from statevla.data import FrameCache, compute_statistics, open_frame_cache, partial_episodes, split_episodes
from statevla.data.wordings import read_wordings, reword
from statevla.model.language import LanguageEncoder
from statevla.robots import RobotSpec
from statevla.transforms import RelativeActions, Statistics


@dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        language_table: float32 `[instructions, E]`, a row for each of `cache.instructions`.
        train, held_out: indices into `cache.episodes`; reaches are in neither.
        reaches: episodes that lack frames: trained on, but nothing to measure progress by.
        weight: how often each of its samples counts.
        labelled: whether its actions are worth imitating.
    """

    cache: FrameCache
    language_table: Tensor
    train: list[int]
    held_out: list[int]
    reaches: list[int]
    weight: float = 1.0
    labelled: bool = True


def open_source(
    config: Config,
    cache: FrameCache,
    split: DataInfo,
    encoder: LanguageEncoder,
    say: Callable[[str], None],
    weight: float = 1.0,
    labelled: bool = True,
) -> Source:
    """The data set of an open cache; what is unlabelled is trained on whole, and its words stay."""
    train_split = split.train_split if labelled else 1.0
    train, held_out = split_episodes(cache, train_split, split.split_seed, split.demos_per_task)
    reaches = partial_episodes(cache)
    if config.data.wordings is not None and labelled:
        episodes = [*train, *reaches]
        count = reword(cache, read_wordings(expand_path(config.data.wordings)), episodes)
        say(f"{count} of {len(episodes)} training episodes of {cache.folder.name} are told in other words")
    return Source(cache, encoder.encode(list(cache.instructions)), train, held_out, reaches, weight, labelled)


def open_further_sources(
    config: Config,
    robot: RobotSpec,
    split: DataInfo,
    encoder: LanguageEncoder,
    unlabelled: bool,
    progress: bool,
    say: Callable[[str], None],
) -> list[Source]:
    """The data sets of `data.sources`.

    Args:
        config: with the dimensions and cameras of `robot`.
        robot: of `data.path`.
        split: how `data.path` was split; `demos_per_task` is its own.
        unlabelled: whether to open those that are unlabelled, too.
        progress: whether to show a bar while frames are cached.
        say: takes a line about what is trained on.

    Raises:
        UserError: one is missing, damaged or of another robot.
    """
    found = []
    for source in config.data.sources:
        if not (source.labelled or unlabelled):
            continue
        changes = {"path": source.path, "format": source.format, "robot": source.robot, "orientation": "auto"}
        its_config = config.model_copy(update={"data": config.data.model_copy(update=changes)})
        cache = open_frame_cache(its_config, progress, same_as=robot)
        its_split = replace(split, demos_per_task=None)
        found.append(open_source(config, cache, its_split, encoder, say, source.weight, source.labelled))
    return found


def measure_statistics(config: Config, robot: RobotSpec, sources: Sequence[Source]) -> Statistics:
    """Statistics over the training episodes of all labelled sources, whatever their weights.

    Raises:
        UserError: there are none, or `data.relative_actions` names a group that cannot be relative.
    """
    groups = relative_groups(robot, config.data.relative_actions)
    relative, horizon = RelativeActions(robot, groups), config.model.action_seq_len
    labelled = [source for source in sources if source.labelled]
    arrays = [source.cache.training_arrays(source.train, relative, horizon) for source in labelled]
    actions, states = (np.concatenate([each[i] for each in arrays]) for i in (0, 1))
    targets = np.concatenate([each[2] for each in arrays if each[2] is not None]) if relative else None
    return compute_statistics(actions, states, config.data.action_normalization, groups, targets)


def relative_groups(robot: RobotSpec, chosen: str | list[str]) -> tuple[str, ...]:
    """The action groups that `data.relative_actions` means."""
    if chosen == "all":
        return tuple(group.name for group in robot.actions if group.state in robot.state_slices())
    return () if chosen == "none" else tuple(chosen)
