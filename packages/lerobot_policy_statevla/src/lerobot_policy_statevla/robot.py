"""Whose data a LeRobot data set holds, and that robot's state, actions and frames out of LeRobot's batches."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.utils.constants import ACTION, OBS_STATE, OBS_STR
from torch import Tensor

from statevla.data.keys import split_key
from statevla.data.lerobot_meta import Metadata
from statevla.data.lerobot_robot import bind_robot
from statevla.errors import UserError
from statevla.robots import Camera, ImageOrientation, RobotSpec
from statevla.transforms import bytes_to_float, planes_to_upright, resize_planes

_COMMAND_TOLERANCE = 1e-3

logger = logging.getLogger(__name__)


def robot_of_dataset(
    root: str | Path, declared: RobotSpec | None = None, orientation: ImageOrientation | None = None
) -> RobotSpec:
    """The robot of a data set, as `statevla.data` finds it; keys of its state fields and cameras are the features.

    Args:
        root: folder of the data set.
        declared: by the user, or None.
        orientation: how all frames are stored, as the user said; or None.

    Raises:
        UserError: the data set does not fit the robot that it or the user declares.
    """
    notes: list[str] = []
    meta = Metadata(Path(root))
    binding = bind_robot(meta, declared, orientation, notes)
    robot = binding.robot
    for sentence in (*notes, *robot.assumed):
        logger.info("robot '%s': %s", robot.name, sentence)
    if binding.action_key != ACTION:
        raise UserError(
            f"data {root}: actions are in '{binding.action_key}', LeRobot reads '{ACTION}'; rename the feature"
        )
    keys = {name: _key(*place) for name, place in binding.fields.items()} | _parts_of_state(robot, meta)
    for field in robot.policy_fields:
        if not keys[field.name].startswith(f"{OBS_STR}."):
            raise UserError(
                f"data {root}: state field '{field.name}' is in '{keys[field.name]}', LeRobot hands policies only "
                f"'{OBS_STR}.*'; rename the feature"
            )
    return robot.model_copy(
        update={
            "state": tuple(field.model_copy(update={"key": keys[field.name]}) for field in robot.state),
            "cameras": tuple(c.model_copy(update={"key": binding.cameras[c.name]}) for c in robot.cameras),
        }
    )


def same_robot(trained: RobotSpec, data: RobotSpec, source: str) -> RobotSpec:
    """The robot of a checkpoint, with the keys and the cameras' orientations of a data set.

    Raises:
        UserError: the data set is of another robot; `source` names the checkpoint.
    """
    if difference := trained.difference(data):
        raise UserError(
            f"{source}: of another robot than the data set ({difference}); use data of the same robot, or say by "
            "policy.robot what the data set's numbers are"
        )
    keys = {field.name: field.key for field in data.state}
    state = tuple(field.model_copy(update={"key": keys.get(field.name)}) for field in trained.state)
    return trained.model_copy(update={"state": state, "cameras": data.cameras})


def _key(key: str, part: slice) -> str:
    return key if part == slice(None) else f"{key}[{part.start}:{part.stop}]"


def _parts_of_state(robot: RobotSpec, meta: Metadata) -> dict[str, str]:
    """State field → part of `observation.state`, where its names are those of all that the policy sees.

    LeRobot's robots and environments send this feature alone, while a data set may hold a field twice.
    """
    names = meta.features.get(OBS_STATE, {}).get("names")
    if not isinstance(names, list) or tuple(names) != robot.state_names:
        return {}
    return {name: _key(OBS_STATE, part) for name, part in robot.state_slices().items()}


# Batches --------------------------------------------------------------------------------------------------------------


def state_of_batch(robot: RobotSpec, batch: Mapping[str, Any]) -> Tensor:
    """The raw state that the policy sees, float32 `[..., S]`.

    Raises:
        UserError: a feature is missing or has too few numbers.
    """
    leading = _feature(batch, str(robot.cameras[0].key), robot).shape[:-3]
    parts = []
    for field in robot.policy_fields:
        key, part = split_key(str(field.key))
        # LeRobot drops the last dim of features of one number.
        values = _feature(batch, key, robot).reshape(*leading, -1)[..., part]
        if values.shape[-1] != field.size:
            raise UserError(
                f"'{key}': expected state field '{field.name}' of {field.size} numbers ({', '.join(field.dims)}) in "
                f"{field.key}, got {values.shape[-1]}; send what robot '{robot.name}' declares"
            )
        parts.append(values.float())
    device = batch[str(robot.cameras[0].key)].device
    return torch.cat(parts, dim=-1) if parts else torch.zeros(*leading, 0, device=device)


def actions_of_batch(robot: RobotSpec, batch: Mapping[str, Any]) -> Tensor:
    """Raw actions, float32 `[B, T, A]`.

    Raises:
        UserError: a binary number is neither of its commands.
    """
    actions = batch[ACTION]
    actions = actions.reshape(*actions.shape[:2], robot.action_dim).float()
    is_binary = torch.from_numpy(robot.is_binary).to(actions.device)
    commands = torch.from_numpy(np.stack(robot.binary_values())).float().to(actions.device)  # [2, G]
    chosen = actions[..., is_binary]
    if (torch.minimum(*(chosen - commands[:, None, None]).abs()) > _COMMAND_TOLERANCE).any():
        raise UserError(
            f"'{ACTION}': expected the binary numbers of robot '{robot.name}' to be {commands[0].tolist()} or "
            f"{commands[1].tolist()}, got {chosen.min():g} to {chosen.max():g}; declare them continuous (policy.robot)"
        )
    return actions


def frames_of_batch(robot: RobotSpec, batch: Mapping[str, Any], size: int) -> Tensor:
    """Frames as `statevla.transforms` has them: LeRobot's `[..., 3, H, W]` in [0, 1] → `[..., V, 3, P, P]` in [-1, 1].

    Raises:
        UserError: a camera is missing.
    """
    views = [_frames(_feature(batch, str(camera.key), robot), camera, size) for camera in robot.cameras]
    return torch.stack(views, dim=-4)


def _frames(images: Tensor, camera: Camera, size: int) -> Tensor:
    planes = planes_to_upright((images * 255).round(), camera.orientation).flatten(0, -4)
    return bytes_to_float(resize_planes(planes, size, camera.fit)).unflatten(0, images.shape[:-3])


def _feature(batch: Mapping[str, Any], key: str, robot: RobotSpec) -> Tensor:
    if key not in batch:
        present = ", ".join(sorted(name for name in batch if name.startswith(OBS_STR))) or "none"
        raise UserError(f"observation: expected '{key}' of robot '{robot.name}', got {present}; send it")
    return batch[key]
