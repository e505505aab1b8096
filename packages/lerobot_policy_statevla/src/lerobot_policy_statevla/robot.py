"""Whose data a LeRobot data set holds: its robot, with LeRobot's features as keys."""

from __future__ import annotations

import logging
from pathlib import Path

from lerobot.utils.constants import ACTION, OBS_STATE, OBS_STR

from statevla.data.lerobot_meta import Metadata
from statevla.data.lerobot_robot import bind_robot
from statevla.errors import UserError
from statevla.robots import Camera, ImageOrientation, RobotSpec

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
    robot = _bound(root, declared, orientation, notes)
    for sentence in (*notes, *robot.assumed):
        logger.info("robot '%s': %s", robot.name, sentence)
    return robot


def _bound(
    root: str | Path, declared: RobotSpec | None, orientation: ImageOrientation | None, notes: list[str]
) -> RobotSpec:
    meta = Metadata(Path(root))
    binding = bind_robot(meta, declared, orientation, notes)
    robot = binding.robot
    if binding.action_key != ACTION:
        raise UserError(
            f"data {root}: actions are in '{binding.action_key}', LeRobot reads '{ACTION}'; rename the feature"
        )
    keys = {name: _key(*place) for name, place in binding.fields.items()}
    robot = robot.model_copy(
        update={
            "state": tuple(field.model_copy(update={"key": keys[field.name]}) for field in robot.state),
            "cameras": tuple(c.model_copy(update={"key": binding.cameras[c.name]}) for c in robot.cameras),
        }
    )
    robot = in_state(robot, meta.features.get(OBS_STATE, {}).get("names"))
    for field in robot.policy_fields:
        if not str(field.key).startswith(f"{OBS_STR}."):
            raise UserError(
                f"data {root}: state field '{field.name}' is in '{field.key}', LeRobot hands policies only "
                f"'{OBS_STR}.*'; rename the feature"
            )
    return robot


def trained_on(
    trained: RobotSpec,
    root: str | Path,
    declared: RobotSpec | None,
    orientation: ImageOrientation | None,
    source: str,
    may_rename: bool,
    same_data: bool,
) -> RobotSpec:
    """The robot of a checkpoint, with the keys and the cameras' orientations of a data set.

    A data set that does not declare its robot is taken for the checkpoint's, but for how its frames are stored: what
    was said of other frames says nothing of these. Cameras are matched by name.

    Args:
        trained: the checkpoint's.
        declared: what the user says of the data set, or None.
        orientation: how all of its frames are stored, as the user said; or None.
        source: names the checkpoint in errors.
        may_rename: whether batches may come with the checkpoint's names after all (`--rename_map`).
        same_data: whether the checkpoint was trained on this very data set, and so says how its frames are stored.

    Raises:
        UserError: the data set is of another robot, lacks a camera, or nothing says how its frames are stored where
            that cannot be taken by custom.
    """
    notes: list[str] = []
    if declared is None and same_data:
        data = _taken_for(trained, root, orientation, notes)
    else:
        data = _bound(root, declared, orientation, notes)
        if declared is None and data.assumed:
            notes = []
            data = _taken_for(_unsaid_orientation(trained), root, orientation, notes)
            stored = ", ".join(f"{camera.name} {camera.orientation.value}" for camera in data.cameras)
            notes.append(
                f"the data set declares no robot and is taken for this one, its frames as stored: {stored} "
                "(policy.robot and policy.image_orientation say otherwise)"
            )
    for sentence in notes:
        logger.info("robot '%s': %s", data.name, sentence)
    if difference := trained.difference(data):
        raise UserError(
            f"{source}: of another robot than the data set ({difference}); use data of the same robot, or say by "
            "policy.robot what the data set's numbers are"
        )
    missing = [name for name in trained.camera_names if name not in data.camera_names]
    if missing and not may_rename:
        raise UserError(
            f"{source}: it sees {', '.join(trained.camera_names)}, the data set has {', '.join(data.camera_names)}; "
            "say in a YAML file (policy.robot) by 'key' which feature each camera is"
        )
    cameras = [_as_stored(c, data.camera(c.name)) if c.name in data.camera_names else c for c in trained.cameras]
    keys = {field.name: field.key for field in data.state}
    state = tuple(field.model_copy(update={"key": keys.get(field.name, field.key)}) for field in trained.state)
    return trained.model_copy(update={"state": state, "cameras": tuple(cameras)})


def _taken_for(
    trained: RobotSpec, root: str | Path, orientation: ImageOrientation | None, notes: list[str]
) -> RobotSpec:
    """The data set's robot, if it is the checkpoint's: by its keys, else by its names."""
    seen = trained.model_copy(update={"state": trained.policy_fields})
    try:
        return _bound(root, seen, orientation, notes)
    except UserError:
        notes.clear()
        state = tuple(field.model_copy(update={"key": None}) for field in seen.state)
        cameras = tuple(camera.model_copy(update={"key": None}) for camera in seen.cameras)
        return _bound(root, seen.model_copy(update={"state": state, "cameras": cameras}), orientation, notes)


def _unsaid_orientation(robot: RobotSpec) -> RobotSpec:
    """The robot without a word on how frames are stored."""
    cameras = (Camera.model_validate(camera.model_dump(exclude={"orientation"})) for camera in robot.cameras)
    return robot.model_copy(update={"cameras": tuple(cameras)})


def _as_stored(camera: Camera, stored: Camera) -> Camera:
    return camera.model_copy(update={"key": stored.key, "orientation": stored.orientation})


def _key(key: str, part: slice) -> str:
    return key if part == slice(None) else f"{key}[{part.start}:{part.stop}]"


def in_state(robot: RobotSpec, names: object) -> RobotSpec:
    """The robot with parts of `observation.state` as keys, if its `names` are those of all that the policy sees.

    LeRobot's robots and environments send this feature alone, while a data set may hold a field twice.
    """
    if not isinstance(names, list) or tuple(names) != robot.state_names:
        return robot
    keys = {name: _key(OBS_STATE, part) for name, part in robot.state_slices().items()}
    state = tuple(field.model_copy(update={"key": keys.get(field.name, field.key)}) for field in robot.state)
    return robot.model_copy(update={"state": state})
