"""What phase 1 needs of whole episodes, and a batch of LeRobot does not hold: keyframes, and what was executed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lerobot_policy_statevla.statistics import without_cameras
from statevla.config import Config
from statevla.data.keyframes import keyframe_targets, wanted_keyframes
from statevla.data.lerobot import EXECUTED_KEY, LeRobotReader
from statevla.errors import UserError
from statevla.robots import RobotSpec
from statevla.transforms import Transform

_EPISODE_ID = re.compile(r"episode_(\d+)(?:\[(\d+):\d+\])?")


@dataclass(frozen=True)
class Recorded:
    """Tables over all frames of a data set; row i is the frame of LeRobot's `index` i.

    Attributes:
        keyframes: what a `TransitionBatch` holds of them, by name, `[N, ...]`; nothing where nobody asks.
        executed: float32 `[N, A]`, or None where the data set does not tell it from the actions.
    """

    keyframes: dict[str, Tensor]
    executed: Tensor | None


def record(meta: Any, robot: RobotSpec, config: Config, transform: Transform) -> Recorded | None:
    """Read a data set's numbers, without pictures; None where phase 1 needs nothing of them.

    Args:
        meta: LeRobot's metadata of the data set.
        robot: keys of its state fields are the data set's features.

    Raises:
        UserError: it is damaged, or lacks the state that a keyframe is.
    """
    loss = config.training.phase1.loss
    wanted = wanted_keyframes(loss)
    has_executed = EXECUTED_KEY in meta.features
    if not (wanted or has_executed):
        return None
    with LeRobotReader(Path(meta.root), without_cameras(robot)) as reader:
        hand = robot.field_with_role("hand_position")
        if wanted and hand is not None and reader.robot.find_field(hand.name) is None:
            raise UserError(
                f"data {meta.root}: training.phase1.loss.{next(iter(wanted))}_weight asks where the hand goes, and the "
                f"data set has no state field '{hand.name}'; set it to 0 (policy.overrides)"
            )
        numbers = _read(reader, robot, meta)
    count = int(meta.total_frames)
    keyframes = {}
    for name, own in keyframe_targets(numbers, transform, loss).items():  # type: ignore[arg-type]  # as a cache has it
        keyframes[name] = torch.zeros(count, *own.shape[1:], dtype=own.dtype)
        keyframes[name][numbers.index] = own
    executed = torch.zeros(count, robot.action_dim)
    executed[numbers.index] = torch.from_numpy(numbers.executed)
    return Recorded(keyframes, executed if has_executed else None)


@dataclass(frozen=True)
class _Stretch:
    """Rows `start` to `stop` of the numbers below: an episode, or a part of one with a task of its own."""

    start: int
    stop: int
    success: bool | None


@dataclass(frozen=True)
class _Numbers:
    """What `keyframe_targets` asks of a frame cache, and LeRobot's `index` of every row."""

    robot: RobotSpec
    episodes: list[_Stretch]
    actions: np.ndarray
    executed: np.ndarray
    robot_states: dict[str, np.ndarray]
    robot_state: np.ndarray
    index: Tensor


def _read(reader: LeRobotReader, robot: RobotSpec, meta: Any) -> _Numbers:
    """All episodes that are on this machine (`--dataset.episodes`)."""
    starts = {int(row["episode_index"]): int(row["dataset_from_index"]) for row in meta.episodes}
    stretches, index, read = [], [], []
    place = 0
    for number, info in enumerate(reader.episodes):
        if not info.file.exists():
            continue
        arrays = reader.read(number, cameras=())
        match = _EPISODE_ID.fullmatch(info.episode_id)
        assert match is not None, info.episode_id
        first = starts[int(match[1])] + int(match[2] or 0)
        stretches.append(_Stretch(place, place + info.num_steps, arrays.success))
        index.append(torch.arange(first, first + info.num_steps))
        read.append(arrays)
        place += info.num_steps
    if not read:
        raise UserError(f"data {reader.path}: no episode is on this machine; phase 1 needs whole ones")
    names = [field.name for field in reader.robot.state]
    states = {name: np.concatenate([each.robot_states[name] for each in read]) for name in names}
    return _Numbers(
        robot=reader.robot,
        episodes=stretches,
        actions=np.concatenate([each.actions for each in read]),
        executed=np.concatenate(
            [each.actions if each.executed_actions is None else each.executed_actions for each in read]
        ),
        robot_states=states,
        robot_state=robot.policy_state(states, f"data {reader.path}").astype(np.float32)
        if robot.state_dim
        else np.zeros((place, 0), np.float32),
        index=torch.cat(index),
    )
