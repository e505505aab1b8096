"""The README.md of a LeRobotDataset that we write: LeRobot's front matter for the hub, and what the numbers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from statevla.robots import RobotSpec
from statevla.robots.describe import camera_text, field_text, group_text

CARD = "README.md"
_METADATA: dict[str, Any] = {
    "task_categories": ["robotics"],
    "tags": ["LeRobot"],
    "configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}],
}
"""As LeRobot's `create_lerobot_dataset_card` writes it; a licence is for whoever recorded the data to say."""
_MOST_TASKS = 100


def dataset_card(info: Mapping[str, Any], robot: RobotSpec, tasks: Sequence[str]) -> str:
    """The card of a data set, Markdown.

    Args:
        info: of `meta/info.json`.
        robot: as the data set declares it.
        tasks: in words.
    """
    lines = ["---", *yaml.safe_dump(_METADATA, sort_keys=False).splitlines(), "---"]
    lines += [
        "",
        f"# Demonstrations of {robot.name}",
        "",
        "A [LeRobot](https://github.com/huggingface/lerobot) data set.",
    ]
    lines += ["", f"- {info['total_episodes']} episodes, {info['total_frames']} frames, {info['fps']:g} a second"]
    lines += [f"- robot: `{robot.name}`, declared in [meta/info.json](meta/info.json)"]
    lines += [f"- actions, {robot.action_dim} numbers:"]
    lines += [f"    - `{group.name}`: {group_text(group)}" for group in robot.actions]
    lines += ["- state:"] if robot.state else ["- state: none"]
    lines += [f"    - `{field.name}` in `{field.key}`: {field_text(field)}" for field in robot.state]
    lines += ["- cameras:"] if robot.cameras else ["- cameras: none"]
    lines += [f"    - `{camera.name}` in `{camera.key}`: {camera_text(camera)}" for camera in robot.cameras]
    lines += [f"- tasks, {len(tasks)}:", *(f"    - {' '.join(task.split())}" for task in tasks[:_MOST_TASKS])]
    lines += [f"    - and {len(tasks) - _MOST_TASKS} more"] if len(tasks) > _MOST_TASKS else []
    return "\n".join(lines) + "\n"
