"""From a request to an observation: which key is which camera, which way up its picture is, what the state means.

A request is recognised by its keys, never by how many numbers it holds. Everything in it is checked against what the
policy's robot declares.

A picture's way up. Upright is what a person would see. A raw robosuite frame is upside down (OpenGL's origin):
upright flipped vertically. openpi's LIBERO script turns the raw frame by 180 degrees, both axes, before it sends it.
The two vertical flips cancel out and the horizontal one stays: what arrives is upright but *mirrored*, left and
right exchanged, as in every data set made that way. Undoing the steps in reverse order gives upright again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from statevla.errors import UserError
from statevla.robots import ImageOrientation, RobotSpec
from statevla.serving.openpi import FORMATS, PROMPT, RequestFormat, flattened
from statevla.transforms import to_upright
from statevla.types import Observation
from statevla_client import protocol

ORIENTATIONS = tuple(orientation.value for orientation in ImageOrientation)

MIN_IMAGE_PX, MAX_IMAGE_PX = 8, 4096
MAX_INSTRUCTION_CHARS = 1024
MAX_EPISODE = 2**32 - 1
_HARMLESS_KEY = re.compile(r"(?:images/|robot_state/|observation/)?[\w.-]{1,40}", re.ASCII)
_COMMON_KEYS = {protocol.MODE, protocol.RESET, protocol.EPISODE, protocol.EXECUTED_ACTIONS}
MAX_EXECUTED = 256


@dataclass(frozen=True)
class Request:
    """A request that fits the robot; `observation` is None where none was sent.

    `executed_actions` `[n, A]` are those since the client's last look, where it says so (mode `chunk`); `ignored` are
    keys that mean nothing here, cleaned for a log.
    """

    mode: str
    observation: Observation | None
    reset: bool
    episode: int | None
    executed_actions: np.ndarray | None = None
    ignored: str = ""

    @property
    def only_resets(self) -> bool:
        return self.reset and self.observation is None


def read_request(message: Mapping[str, Any], robot: RobotSpec, default_prompt: str | None = None) -> Request:
    """Check a decoded message and name its parts.

    Args:
        message: as `statevla_client.protocol` describes it.
        robot: of the policy, with the policy's cameras.
        default_prompt: the task in words where the client sends none.

    Raises:
        UserError: it does not fit the robot; one line with expected, got and the fix, safe to send to the client.
    """
    mode = message.get(protocol.MODE, protocol.CHUNK)
    if not isinstance(mode, str) or mode not in (protocol.CHUNK, protocol.ACT):
        raise UserError("mode: expected 'chunk' or 'act', got something else; leave it out for whole chunks")
    reset = message.get(protocol.RESET, False)
    if not isinstance(reset, bool):
        raise UserError(f"reset: expected true or false, got {type(reset).__name__}")
    episode = message.get(protocol.EPISODE)
    if episode is not None and (type(episode) is not int or not 0 <= episode <= MAX_EPISODE):
        raise UserError(f"episode: expected an integer from 0 to {MAX_EPISODE}, got something else")
    if episode is not None and not reset:
        raise UserError("episode: expected together with reset=true, got it alone; send both when an episode begins")
    told = {key: value for key, value in message.items() if key not in _COMMON_KEYS}
    observation, ignored = _read_observation(told, robot, default_prompt) if told else (None, "")
    if observation is None and mode == protocol.CHUNK and not reset:
        raise UserError(f"request: expected an observation, got no keys; send {_expected_keys(robot)}")
    executed = _read_executed(message.get(protocol.EXECUTED_ACTIONS), mode, robot)
    return Request(mode, observation, reset, episode, executed, ignored)


def _read_executed(value: Any, mode: str, robot: RobotSpec) -> np.ndarray | None:
    key = protocol.EXECUTED_ACTIONS
    if value is None:
        return None
    if mode == protocol.ACT:
        raise UserError(f"{key}: expected in mode 'chunk' only; in mode 'act' the server knows them, leave it out")
    is_numeric = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    if not is_numeric or value.ndim != 2 or value.shape[1] != robot.action_dim or len(value) > MAX_EXECUTED:
        got = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"{key}: expected floats [n, {robot.action_dim}] with n up to {MAX_EXECUTED}, got {got}")
    with np.errstate(over="ignore"):
        executed = value.astype(np.float32)
    if not np.isfinite(executed).all():
        raise UserError(f"{key}: expected finite numbers, got NaN or infinity; send the actions as executed")
    return executed


def _read_observation(told: Mapping[str, Any], robot: RobotSpec, default_prompt: str | None) -> tuple[Observation, str]:
    """The observation, and the keys that were left out."""
    flat = flattened(told)
    foreign = next((known for known in FORMATS if known.is_spoken(flat)), None)
    if foreign is not None:
        return _read_foreign(flat, foreign, robot, default_prompt), _unknown(told, foreign)
    keys = tuple(told)
    fields = [key for key in keys if key.startswith(protocol.STATE_PREFIX)]
    pictures = [key for key in keys if key.startswith(protocol.IMAGE_PREFIX)]
    known = {*fields, *pictures, protocol.ROBOT_STATE, protocol.IMAGE_ORIENTATION, protocol.INSTRUCTION}
    has_state = bool(fields) or protocol.ROBOT_STATE in told or not robot.state_dim
    instruction = told.get(protocol.INSTRUCTION, default_prompt)
    if not has_state or instruction is None or not set(keys) <= known:
        others = "; or ".join(f"{other.name} {', '.join(other.keys)}" for other in FORMATS if not other.misfit(robot))
        or_others = f", or {others}" if others else ""
        raise UserError(f"request keys: expected {_expected_keys(robot)}{or_others}; got {_names(keys)}")
    images = {key: key.removeprefix(protocol.IMAGE_PREFIX) for key in pictures}
    orientation = _read_orientation(told.get(protocol.IMAGE_ORIENTATION, "upright"))
    observation = Observation(
        _read_images(told, images, orientation, robot),
        _read_own_state(told, fields, robot),
        _read_instruction(instruction, protocol.INSTRUCTION),
    )
    return observation, ""


def _read_foreign(
    flat: Mapping[str, Any], chosen: RequestFormat, robot: RobotSpec, default_prompt: str | None
) -> Observation:
    own = chosen.robot_like(robot)
    if own is None:
        raise UserError(
            f"{chosen.name}: {chosen.misfit(robot)}; send StateVLA's own keys ({_expected_keys(robot)}), or serve a "
            f"policy of robot '{chosen.robots[0].name}'"
        )
    cameras = chosen.cameras(robot)
    if missing := [name for name in robot.camera_names if name not in cameras.values()]:
        raise UserError(
            f"{chosen.name}: expected cameras {', '.join(robot.camera_names)}, it has none for '{missing[0]}'; send "
            f"StateVLA's own keys ({_expected_keys(robot)})"
        )
    if unsent := [key for key in cameras if key not in flat]:
        raise UserError(f"{chosen.name}: expected {', '.join(cameras)}, got no {unsent[0]}; send this picture too")
    pictures = {key: _channels_last(flat[key], key) if chosen.is_channels_first else flat[key] for key in cameras}
    images = _read_images(pictures, cameras, chosen.orientation, robot)
    parts = []
    for key, size in chosen.state.items():
        meaning = own.describe_state() if len(chosen.state) == 1 else key.rpartition("/")[2]
        value = np.reshape(flat[key], 1) if size == 1 and isinstance(flat[key], np.generic) else flat[key]
        parts.append(_read_numbers(value, key, {size: meaning}))
    state = own.named_state(np.concatenate(parts), chosen.name)
    if PROMPT not in flat and default_prompt is None:
        raise UserError(
            f"{PROMPT}: expected the task in words, got none; send it, or start the server with --default-prompt"
        )
    return Observation(images, state, _read_instruction(flat.get(PROMPT, default_prompt), PROMPT))


def _unknown(told: Mapping[str, Any], chosen: RequestFormat) -> str:
    """The keys of a request that its vocabulary has not; empty for none."""
    known = {*chosen.keys, *(key.partition("/")[0] for key in chosen.keys if key not in told)}
    unknown = [key for key in told if key not in known]
    return _names(unknown) if unknown else ""


def _channels_last(value: Any, key: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.ndim != 3 or value.shape[0] != 3:
        got = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"{key}: expected uint8 [3, H, W], got {got}; send the frame channels first, as openpi does")
    return value.transpose(1, 2, 0)


def _expected_keys(robot: RobotSpec) -> str:
    images = [protocol.IMAGE_PREFIX + camera for camera in robot.camera_names]
    state = [f"{protocol.ROBOT_STATE} as {robot.describe_state()}"] if robot.state_dim else []
    return ", ".join([*images, *state, protocol.INSTRUCTION])


def _read_orientation(value: Any) -> str:
    if not isinstance(value, str) or value not in ORIENTATIONS:
        raise UserError(f"image_orientation: expected one of {', '.join(ORIENTATIONS)}, got something else")
    return value


def _read_images(
    message: Mapping[str, Any], images: Mapping[str, str], orientation: str, robot: RobotSpec
) -> dict[str, np.ndarray]:
    """The pictures of the robot's cameras, upright; `images` is key → camera, others than the robot's are left out."""
    present = set(images.values())
    if missing := [camera for camera in robot.camera_names if camera not in present]:
        raise UserError(
            f"cameras: expected {', '.join(robot.camera_names)}, got {_names(sorted(present))}; "
            f"send {protocol.IMAGE_PREFIX}{missing[0]}"
        )
    return {
        camera: _read_image(message[key], key, orientation)
        for key, camera in images.items()
        if camera in robot.camera_names
    }


def _read_image(value: Any, key: str, orientation: str) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise UserError(f"{key}: expected a uint8 array [H, W, 3], got {type(value).__name__}; send the frame itself")
    fits = value.dtype == np.uint8 and value.ndim == 3 and value.shape[-1] == 3
    if not fits or not all(MIN_IMAGE_PX <= side <= MAX_IMAGE_PX for side in value.shape[:2]):
        raise UserError(
            f"{key}: expected uint8 [H, W, 3] with sides of {MIN_IMAGE_PX} to {MAX_IMAGE_PX} pixels, got {value.dtype} "
            f"{list(value.shape)}; send an RGB frame, channels last, not scaled to floats"
        )
    # An own, writable copy: what came over the wire is a read-only view of the message.
    return np.array(to_upright(value, ImageOrientation(orientation)))


def _read_own_state(message: Mapping[str, Any], fields: list[str], robot: RobotSpec) -> dict[str, np.ndarray]:
    """The state that the policy sees, by name or flat; what it does not see may be sent and is left out."""
    if not fields and protocol.ROBOT_STATE not in message:
        return {}
    if not fields:
        return _read_flat_state(message[protocol.ROBOT_STATE], protocol.ROBOT_STATE, robot)
    if protocol.ROBOT_STATE in message:
        raise UserError(
            f"{protocol.ROBOT_STATE}: expected flat or by field, got both; leave {protocol.ROBOT_STATE} or "
            f"{protocol.STATE_PREFIX}... out"
        )
    state = {}
    for field in robot.with_ways(key.removeprefix(protocol.STATE_PREFIX) for key in fields).policy_fields:
        key = protocol.STATE_PREFIX + field.name
        if key not in message:
            raise UserError(
                f"{key}: expected {field.size} numbers ({', '.join(field.dims)}), got none but {_names(fields)}; robot "
                f"'{robot.name}' has {robot.describe_state()}, send all of them"
            )
        state[field.name] = _read_numbers(message[key], key, {field.size: ", ".join(field.dims)})
    return state


def _read_flat_state(value: Any, key: str, robot: RobotSpec) -> dict[str, np.ndarray]:
    meanings = {size: by.describe_state() for size, by in robot.flat_states().items()}
    return robot.named_state(_read_numbers(value, key, meanings), key)


def _read_numbers(value: Any, key: str, meanings: Mapping[int, str]) -> np.ndarray:
    """Finite float32, as many as one of `meanings` says what they are."""
    expected = ", or ".join(f"{count} numbers ({meaning})" for count, meaning in meanings.items())
    if isinstance(value, list) and all(type(number) in (int, float) for number in value):
        value = np.array(value, np.float64)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
        got = value.dtype.name if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"{key}: expected {expected} as an array, got {got}")
    if value.ndim != 1 or len(value) not in meanings:
        raise UserError(f"{key}: expected {expected}, got shape {list(value.shape)}; send these, in this order")
    with np.errstate(over="ignore"):
        numbers = value.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise UserError(f"{key}: expected finite numbers, got NaN or infinity; check the robot's driver")
    return numbers


def _read_instruction(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{key}: expected the task in words, got none; say what to do, as in the training data")
    if len(value) > MAX_INSTRUCTION_CHARS:
        raise UserError(f"{key}: expected at most {MAX_INSTRUCTION_CHARS} characters, got {len(value)}; shorten it")
    # Control characters would reach the terminal that shows the server's log.
    if not (text := " ".join(value.split())).isprintable():
        raise UserError(f"{key}: expected printable text, got control characters; send plain words")
    return text


def _names(keys: Any, limit: int = 8) -> str:
    """Keys that a client sent, cut and cleaned for an error message."""
    shown = [key if _HARMLESS_KEY.fullmatch(key) else "?" for key in list(keys)[:limit]]
    return ", ".join(shown) + (" ..." if len(keys) > limit else "") if shown else "none"
