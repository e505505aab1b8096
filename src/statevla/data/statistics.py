"""Action and robot-state statistics over the training episodes."""

from __future__ import annotations

import numpy as np

from statevla.errors import UserError
from statevla.transforms import ActionNormalization, FieldStatistics, Statistics

__all__ = ["FieldStatistics", "Statistics", "compute_statistics"]


def compute_statistics(
    actions: np.ndarray,
    robot_state: np.ndarray,
    normalization: ActionNormalization = "mean_std",
    relative_actions: tuple[str, ...] = (),
    targets: np.ndarray | None = None,
) -> Statistics:
    """Statistics of actions `[steps, A]` and robot states `[steps, S]`, over training steps only.

    Args:
        relative_actions: the groups whose targets are relative.
        targets: `[rows, A]`, all steps of all chunks of training episodes where a group is relative.

    Raises:
        UserError: there are no steps.
    """
    if not len(actions):
        raise UserError(
            "statistics: no training steps; the data set is empty, holds reaches only, or data.train_split is too small"
        )
    own = None if targets is None else FieldStatistics.of(targets)
    return Statistics(
        FieldStatistics.of(actions), FieldStatistics.of(robot_state), normalization, relative_actions, own
    )
