"""LeRobot's statistics of a data set as StateVLA's, kept as tensors so that they travel in a policy's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from statevla.data.lerobot import LeRobotReader
from statevla.errors import UserError
from statevla.robots import RobotSpec
from statevla.transforms import FieldStatistics, RelativeActions

FIELDS = tuple(FieldStatistics.__dataclass_fields__)
_OLDER = {"q01": "min", "q99": "max"}
"""Data sets of older versions have no quantiles."""


def stacked(stats: Mapping[str, Mapping[str, Any]] | None, parts: Sequence[tuple[str, slice]], dim: int) -> Tensor:
    """LeRobot's statistics of these parts of features, float32 `[6, D]` in the order of `FIELDS`; NaN without `stats`.

    Raises:
        UserError: a feature has no statistics.
    """
    if stats is None:
        return torch.full((len(FIELDS), dim), torch.nan)
    if missing := [key for key, _ in parts if key not in stats]:
        raise UserError(f"data set: no statistics of '{missing[0]}' in meta/stats.json; compute them with LeRobot")
    rows = []
    for name in FIELDS:
        found = [torch.zeros(0)]
        for key, part in parts:
            chosen = name if name in stats[key] else _OLDER.get(name, name)
            found.append(torch.as_tensor(stats[key][chosen], dtype=torch.float32).reshape(-1)[part])
        rows.append(torch.cat(found).reshape(dim))
    return torch.stack(rows)


def relative_target_statistics(
    root: str | Path, robot: RobotSpec, relative: RelativeActions, horizon: int
) -> FieldStatistics:
    """Statistics of all steps of all chunks of a data set, relative to the state at the start of their chunk.

    LeRobot's own are of the stored actions, and what they say cannot be converted. Episodes that are not on this
    machine (`--dataset.episodes`) are left out.

    Raises:
        UserError: the data set is damaged, or none of it is here.
    """
    rows = []
    with LeRobotReader(Path(root), robot) as reader:
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


def tensor_of(field: FieldStatistics) -> Tensor:
    """float32 `[6, D]`."""
    return torch.from_numpy(np.stack([getattr(field, name) for name in FIELDS])).float()


def unstacked(rows: Tensor) -> FieldStatistics:
    """Inverse of `tensor_of`."""
    return FieldStatistics(*rows.cpu().double().numpy())
