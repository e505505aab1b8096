"""From a request to an observation: which key is which camera, which way up its picture is, what the state means.

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

from statevla.config import ModelConfig
from statevla.errors import UserError
from statevla.serving import protocol
from statevla.transforms import to_upright
from statevla.types import ImageOrientation, Observation, RobotStateLayout

ORIENTATIONS = tuple(orientation.value for orientation in ImageOrientation)

MIN_IMAGE_PX, MAX_IMAGE_PX = 8, 4096
MAX_INSTRUCTION_CHARS = 1024
MAX_EPISODE = 2**32 - 1
_HARMLESS_KEY = re.compile(r"(?:images/|observation/)?[\w.-]{1,40}", re.ASCII)
_COMMON_KEYS = {protocol.MODE, protocol.RESET, protocol.EPISODE, protocol.EXECUTED_ACTIONS}
MAX_EXECUTED = 256


@dataclass(frozen=True)
class RequestFormat:
    """One client's vocabulary.

    Attributes:
        name: for messages.
        images: key → name of the camera that it holds.
        state_key, layout: where the robot state is, and what its numbers are.
        instruction_key: where the task in words is.
        orientation: the way up of its pictures, one of `ORIENTATIONS`.
    """

    name: str
    images: Mapping[str, str]
    state_key: str
    layout: RobotStateLayout
    instruction_key: str
    orientation: str


OPENPI_LIBERO = RequestFormat(
    name="openpi",
    images={"observation/image": "agentview", "observation/wrist_image": "eye_in_hand"},
    state_key="observation/state",
    layout=RobotStateLayout.EE_GRIPPER,
    instruction_key="prompt",
    orientation="mirrored",
)
"""What Physical-Intelligence/openpi, examples/libero/main.py sends."""


@dataclass(frozen=True)
class Request:
    """A request that fits the model; `observation` is None where none was sent.

    `executed_actions` `[n, A]` are those since the client's last look, where it says so (mode `chunk`).
    """

    mode: str
    observation: Observation | None
    reset: bool
    episode: int | None
    executed_actions: np.ndarray | None = None

    @property
    def only_resets(self) -> bool:
        return self.reset and self.observation is None


def read_request(message: Mapping[str, Any], model: ModelConfig) -> Request:
    """Check a decoded message and name its parts.

    Raises:
        UserError: it does not fit the model; one line with expected, got and the fix, safe to send to the client.
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
    keys = tuple(key for key in message if key not in _COMMON_KEYS)
    observation = _read_observation(message, keys, model) if keys else None
    if observation is None and mode == protocol.CHUNK and not reset:
        raise UserError(f"request: expected an observation, got no keys; send {_expected_keys(model)}")
    return Request(
        mode, observation, reset, episode, _read_executed(message.get(protocol.EXECUTED_ACTIONS), mode, model)
    )


def _read_executed(value: Any, mode: str, model: ModelConfig) -> np.ndarray | None:
    key = protocol.EXECUTED_ACTIONS
    if value is None:
        return None
    if mode == protocol.ACT:
        raise UserError(f"{key}: expected in mode 'chunk' only; in mode 'act' the server knows them, leave it out")
    is_numeric = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    if not is_numeric or value.ndim != 2 or value.shape[1] != model.action_dim or len(value) > MAX_EXECUTED:
        got = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"{key}: expected floats [n, {model.action_dim}] with n up to {MAX_EXECUTED}, got {got}")
    with np.errstate(over="ignore"):
        executed = value.astype(np.float32)
    if not np.isfinite(executed).all():
        raise UserError(f"{key}: expected finite numbers, got NaN or infinity; send the actions as executed")
    return executed


def _read_observation(message: Mapping[str, Any], keys: tuple[str, ...], model: ModelConfig) -> Observation:
    chosen = _format_of(message, keys, model)
    layout = chosen.layout
    if layout is not model.robot_state_layout:
        fix = (
            "openpi's LIBERO keys carry no joint positions; send StateVLA's own keys with "
            f"robot_state_layout='{model.robot_state_layout.value}', or serve a policy trained on '{layout.value}'"
            if chosen is OPENPI_LIBERO
            else "send that layout"
        )
        raise UserError(
            f"{chosen.state_key}: expected layout '{model.robot_state_layout.value}' ({model.robot_state_dim} "
            f"numbers), got '{layout.value}' ({layout.dim}); {fix}"
        )
    present = set(chosen.images.values())
    if missing := [camera for camera in model.cameras if camera not in present]:
        raise UserError(
            f"cameras: expected {', '.join(model.cameras)}, got {_names(sorted(present))}; "
            f"send {protocol.IMAGE_PREFIX}{missing[0]}"
        )
    images = {
        camera: _read_image(message[key], key, chosen.orientation)
        for key, camera in chosen.images.items()
        if camera in model.cameras
    }
    state = _read_state(message[chosen.state_key], chosen.state_key, layout)
    return Observation(images, state, layout, _read_instruction(message[chosen.instruction_key], chosen))


def _format_of(message: Mapping[str, Any], keys: tuple[str, ...], model: ModelConfig) -> RequestFormat:
    """The vocabulary that fits the keys exactly."""
    openpi = {*OPENPI_LIBERO.images, OPENPI_LIBERO.state_key, OPENPI_LIBERO.instruction_key}
    cameras = [key.removeprefix(protocol.IMAGE_PREFIX) for key in keys if key.startswith(protocol.IMAGE_PREFIX)]
    required = {protocol.ROBOT_STATE, protocol.ROBOT_STATE_LAYOUT, protocol.INSTRUCTION}
    own = {*required, protocol.IMAGE_ORIENTATION, *(protocol.IMAGE_PREFIX + camera for camera in cameras)}
    if openpi == set(keys):
        return OPENPI_LIBERO
    if required <= set(keys) <= own:
        return RequestFormat(
            name="statevla",
            images={protocol.IMAGE_PREFIX + camera: camera for camera in cameras},
            state_key=protocol.ROBOT_STATE,
            layout=_read_layout(message[protocol.ROBOT_STATE_LAYOUT]),
            instruction_key=protocol.INSTRUCTION,
            orientation=_read_orientation(message.get(protocol.IMAGE_ORIENTATION, "upright")),
        )
    raise UserError(
        f"request keys: expected {_expected_keys(model)}, or openpi's {', '.join(sorted(openpi))}; got {_names(keys)}"
    )


def _expected_keys(model: ModelConfig) -> str:
    images = ", ".join(protocol.IMAGE_PREFIX + camera for camera in model.cameras)
    return f"{images}, {protocol.ROBOT_STATE}, {protocol.ROBOT_STATE_LAYOUT}, {protocol.INSTRUCTION}"


def _read_layout(value: Any) -> RobotStateLayout:
    names = [layout.value for layout in RobotStateLayout]
    if not isinstance(value, str) or value not in names:
        raise UserError(f"robot_state_layout: expected one of {', '.join(names)}, got something else")
    return RobotStateLayout(value)


def _read_orientation(value: Any) -> str:
    if not isinstance(value, str) or value not in ORIENTATIONS:
        raise UserError(f"image_orientation: expected one of {', '.join(ORIENTATIONS)}, got something else")
    return value


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


def _read_state(value: Any, key: str, layout: RobotStateLayout) -> np.ndarray:
    if isinstance(value, list) and all(type(number) in (int, float) for number in value):
        value = np.array(value, np.float64)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
        got = value.dtype.name if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"{key}: expected {layout.dim} numbers as an array, got {got}")
    if value.shape != (layout.dim,):
        raise UserError(
            f"{key}: expected {layout.dim} numbers (layout '{layout.value}'), got shape {list(value.shape)}; "
            "name the layout that your robot reports"
        )
    with np.errstate(over="ignore"):
        state = value.astype(np.float32)
    if not np.isfinite(state).all():
        raise UserError(f"{key}: expected finite numbers, got NaN or infinity; check the robot's driver")
    return state


def _read_instruction(value: Any, chosen: RequestFormat) -> str:
    key = chosen.instruction_key
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{key}: expected the task in words, got none; say what to do, as in the training data")
    if len(value) > MAX_INSTRUCTION_CHARS:
        raise UserError(f"{key}: expected at most {MAX_INSTRUCTION_CHARS} characters, got {len(value)}; shorten it")
    return value


def _names(keys: Any, limit: int = 8) -> str:
    """Keys that a client sent, cut and cleaned for an error message."""
    shown = [key if _HARMLESS_KEY.fullmatch(key) else "?" for key in list(keys)[:limit]]
    return ", ".join(shown) + (" ..." if len(keys) > limit else "") if shown else "none"
