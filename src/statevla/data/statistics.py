"""Action and robot-state statistics over the training episodes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from statevla.errors import UserError
from statevla.transforms import ActionNormalization, FieldStatistics, Statistics
from statevla.types import RobotStateLayout

__all__ = ["FieldStatistics", "Statistics", "compute_statistics"]


def compute_statistics(
    actions: np.ndarray,
    robot_states: Mapping[RobotStateLayout, np.ndarray],
    normalization: ActionNormalization = "mean_std",
) -> Statistics:
    """Statistics of actions `[steps, A]` and of robot states `[steps, S]` per layout, over training steps only.

    Raises:
        UserError: there are no steps.
    """
    if not len(actions):
        raise UserError(
            "statistics: no training steps; the data set is empty, holds reaches only, or data.train_split is too small"
        )
    fields = {layout: FieldStatistics.of(states) for layout, states in robot_states.items()}
    return Statistics(FieldStatistics.of(actions), fields, normalization)
