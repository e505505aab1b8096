"""LeRobot's statistics of a data set as StateVLA's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.utils.constants import ACTION

from statevla.config import Config
from statevla.data.keys import split_key
from statevla.data.lerobot import LeRobotReader
from statevla.errors import UserError
from statevla.robots import RobotSpec
from statevla.training.sources import relative_groups
from statevla.transforms import FieldStatistics, RelativeActions, Statistics

_FIELDS = tuple(FieldStatistics.__dataclass_fields__)
_OLDER = {"q01": "min", "q99": "max"}
"""Data sets of older versions have no quantiles."""
_MOST_RADIANS = 4 * np.pi


def statistics_of(
    root: str | Path, stats: Mapping[str, Mapping[str, Any]] | None, config: Config, robot: RobotSpec
) -> Statistics:
    """The statistics that a policy on this data set normalises by.

    Args:
        root: folder of the data set, read where actions are relative: LeRobot's statistics are of the stored actions.
        stats: LeRobot's, of `meta/stats.json`.
        robot: keys of its state fields are the data set's features.

    Raises:
        UserError: a feature has none, they contradict the robot's units, or the data set is damaged.
    """
    if not stats:
        raise UserError(f"data {root}: it has no meta/stats.json; compute it with LeRobot")
    actions = _of_parts(stats, [(ACTION, slice(None))], robot.action_dim)
    fields = [split_key(str(field.key)) for field in robot.policy_fields]
    states = _of_parts(stats, fields, robot.state_dim)
    _check_units(root, robot, states)
    groups = relative_groups(robot, config.data.relative_actions)
    relative = RelativeActions(robot, groups)
    targets = _relative_targets(root, robot, relative, config.model.action_seq_len) if relative else None
    return Statistics(actions, states, config.data.action_normalization, groups, targets)


def _of_parts(stats: Mapping[str, Mapping[str, Any]], parts: Sequence[tuple[str, slice]], dim: int) -> FieldStatistics:
    """Statistics of these parts of features, in their order; `dim` numbers in all."""
    if missing := [key for key, _ in parts if key not in stats]:
        raise UserError(f"data set: no statistics of '{missing[0]}' in meta/stats.json; compute them with LeRobot")
    rows = []
    for name in _FIELDS:
        found = [np.zeros(0)]
        for key, part in parts:
            chosen = name if name in stats[key] else _OLDER.get(name, name)
            found.append(np.asarray(stats[key][chosen], np.float64).reshape(-1)[part])
        rows.append(np.concatenate(found).reshape(dim))
    return FieldStatistics(*rows)


def _check_units(root: str | Path, robot: RobotSpec, states: FieldStatistics) -> None:
    """Raise a UserError where angles that are declared in rad cannot be: LeRobot records degrees, or percent."""
    largest = np.maximum(np.abs(states.min), np.abs(states.max))
    slices = robot.state_slices()
    for field in robot.policy_fields:
        reach = float(largest[slices[field.name]].max(initial=0.0))
        if field.units == "rad" and reach > _MOST_RADIANS:
            raise UserError(
                f"data {root}: robot '{robot.name}' declares state field '{field.name}' in rad, its numbers reach "
                f"{reach:.1f}: LeRobot recorded degrees or percent; declare its units in a YAML file, or leave "
                "policy.robot out (docs/robots.md)"
            )


def _relative_targets(root: str | Path, robot: RobotSpec, relative: RelativeActions, horizon: int) -> FieldStatistics:
    """Statistics of all steps of all chunks, relative to the state at the start of their chunk.

    Episodes that are not on this machine (`--dataset.episodes`) are left out.
    """
    rows = []
    with LeRobotReader(Path(root), without_cameras(robot)) as reader:
        for index, info in enumerate(reader.episodes):
            if not info.file.exists():
                continue
            arrays = reader.read(index, cameras=())
            actions = torch.from_numpy(arrays.actions)
            state = torch.from_numpy(robot.policy_state(arrays.robot_states, reader.source(index)))
            for ahead in range(min(horizon, len(actions))):
                moved = relative.to_relative(actions[ahead:, None], state[: len(actions) - ahead])
                rows.append(moved[:, 0].numpy())
    if not rows:
        raise UserError(f"data {root}: no episode is on this machine; relative actions need their own statistics")
    return FieldStatistics.of(np.concatenate(rows))


def without_cameras(robot: RobotSpec) -> RobotSpec:
    """The robot as its numbers are read, whatever the data set calls its cameras (`--rename_map`)."""
    return robot.model_copy(update={"cameras": ()})
