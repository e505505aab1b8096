"""Binary commands as a LeRobotDataset recorded them, against those that its robot declares.

A gripper of 0 and 1 under a robot that commands -1 and 1 would be read by whoever reads no episode through
`EpisodeReader`, LeRobot's trainer for one, and answered in other units than its own.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from statevla.data.episodes import check_actions
from statevla.data.lerobot_meta import STATS_PATH, Metadata
from statevla.robots import RobotSpec


def check_recorded_commands(meta: Metadata, action_key: str, robot: RobotSpec) -> None:
    """Compare the lowest and the highest action of `meta/stats.json`, where there is one, with the declaration.

    Raises:
        UserError: a binary number is neither of its two commands.
    """
    bounds = _bounds(meta, action_key, robot.action_dim)
    if bounds is not None:
        check_actions(robot, bounds, f"data {meta.root / STATS_PATH}: '{action_key}'")


def _bounds(meta: Metadata, action_key: str, dim: int) -> np.ndarray | None:
    """Lowest and highest actions, float64 `[2, A]`; None where they are not told."""
    try:
        stats: Any = json.loads((meta.root / STATS_PATH).read_text(encoding="utf-8"))
        return np.array([stats[action_key]["min"], stats[action_key]["max"]], np.float64).reshape(2, dim)
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None  # of older versions, or in other forms: every episode that is read is checked anyway
