"""What the model sees, defined once for training, simulator and server.

Frames: turn upright → resize (antialiased) → round to uint8 → float in [-1, 1], channels first. The rounding is part
of the definition: the frame cache stores frames after it, so a live frame must go through it too.
Actions: six continuous dims normalised, the gripper kept at -1 / +1. Robot state: mean and standard deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.nn import functional

from statevla.config import AugmentationConfig, ModelConfig
from statevla.errors import UserError
from statevla.types import ImageOrientation, ModelInput, Observation, RobotStateLayout

ActionNormalization = Literal["mean_std", "quantile"]
STD_FLOOR = 1e-3
"""Smallest standard deviation (and quantile half-range) to divide by: a dim that never moves stays near zero."""


@dataclass(frozen=True)
class FieldStatistics:
    """Per-dimension statistics of an array, float64 `[D]` each; quantiles are the 1st and 99th percentile."""

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q99: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> FieldStatistics:
        """Statistics over all rows of `values`, `[count, D]`."""
        values = np.asarray(values, np.float64)
        q01, q99 = np.quantile(values, (0.01, 0.99), axis=0)
        return cls(values.mean(0), values.std(0), values.min(0), values.max(0), q01, q99)

    def to_dict(self) -> dict[str, list[float]]:
        return {key: value.tolist() for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], source: str) -> FieldStatistics:
        keys = tuple(cls.__dataclass_fields__)
        if not isinstance(tree, Mapping) or set(tree) != set(keys):
            raise UserError(f"statistics {source}: expected the keys {', '.join(keys)}; use the checkpoint's own file")
        arrays = {key: np.asarray(tree[key], np.float64) for key in keys}
        if len({array.shape for array in arrays.values()}) != 1:
            raise UserError(f"statistics {source}: its arrays differ in length; use the checkpoint's own file")
        return cls(**arrays)


@dataclass(frozen=True)
class Statistics:
    """What a checkpoint must carry to read robot states and write actions: measured on the training episodes.

    Attributes:
        actions: of the `A` action dims, in the robot's units.
        robot_states: per layout that the data set holds.
        action_normalization: how actions were normalised in training.
    """

    actions: FieldStatistics
    robot_states: Mapping[RobotStateLayout, FieldStatistics]
    action_normalization: ActionNormalization = "mean_std"

    def to_dict(self) -> dict[str, Any]:
        """A tree of plain numbers and strings, for JSON."""
        return {
            "actions": self.actions.to_dict(),
            "robot_states": {layout.value: field.to_dict() for layout, field in self.robot_states.items()},
            "action_normalization": self.action_normalization,
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], source: str = "file") -> Statistics:
        """Inverse of `to_dict`; `source` names the file in the UserError that a malformed tree raises."""
        try:
            actions, states, normalization = tree["actions"], tree["robot_states"], tree["action_normalization"]
            by_layout = {RobotStateLayout(name): field for name, field in states.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"statistics {source}: malformed ({error!r}); use the checkpoint's own file") from None
        if normalization not in get_args(ActionNormalization):
            raise UserError(
                f"statistics {source}: action_normalization '{normalization}', expected mean_std or quantile"
            )
        return cls(
            FieldStatistics.from_dict(actions, f"{source}: actions"),
            {
                layout: FieldStatistics.from_dict(field, f"{source}: {layout.value}")
                for layout, field in by_layout.items()
            },
            normalization,
        )


def to_upright(frames: np.ndarray, orientation: ImageOrientation) -> np.ndarray:
    """Turn stored frames `[..., H, W, 3]` upright; a view, nothing is copied."""
    if orientation is ImageOrientation.FLIPPED_VERTICALLY:
        return frames[..., ::-1, :, :]
    if orientation is ImageOrientation.ROTATED_180:
        return frames[..., ::-1, ::-1, :]
    if orientation is ImageOrientation.MIRRORED:
        return frames[..., :, ::-1, :]
    return frames


def from_upright(frames: np.ndarray, orientation: ImageOrientation) -> np.ndarray:
    """Turn upright frames into stored ones: every orientation is its own inverse."""
    return to_upright(frames, orientation)


def resize_frames(frames: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 `[N, H, W, 3]` to uint8 `[N, size, size, 3]`: bilinear, antialiased, rounded; same size: unchanged.

    Frames that are not square are stretched; robot cameras of the supported data sets are square.
    """
    if frames.shape[1:3] == (size, size):
        return np.ascontiguousarray(frames)
    planes = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    # One frame at a time: the sum's order, and so the rounding, must not depend on how many frames there are.
    resized = [
        functional.interpolate(plane[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        for plane in planes
    ]
    whole = torch.cat(resized) if resized else planes.new_zeros((0, 3, size, size))
    return whole.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def pixel_table() -> torch.Tensor:
    """What each of the 256 byte values becomes: float32 `[256]` from -1 to 1."""
    return torch.arange(256, dtype=torch.float32) / 127.5 - 1.0


class Transform:
    """Raw observations and actions to the model's inputs, and the model's actions back.

    Args:
        model_config: cameras, image size, robot-state layout, action dim.
        statistics: of the training episodes.
        normalization: of the continuous action dims; the statistics' own by default.
        augmentation: random shift, brightness and contrast; used only where a caller asks to augment.

    Raises:
        UserError: the statistics do not fit the model (layout absent, other action dim).
    """

    def __init__(
        self,
        model_config: ModelConfig,
        statistics: Statistics,
        normalization: ActionNormalization | None = None,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        layout = model_config.robot_state_layout
        if layout not in statistics.robot_states:
            present = ", ".join(known.value for known in statistics.robot_states) or "none"
            raise UserError(
                f"model.robot_state_layout is '{layout.value}' but the data set has {present}; "
                f"set model.robot_state_layout (and robot_state_dim) to one that it has"
            )
        action_dim = len(statistics.actions.mean)
        if action_dim != model_config.action_dim:
            raise UserError(
                f"model.action_dim is {model_config.action_dim} but the data set's actions have {action_dim} numbers; "
                f"set model.action_dim={action_dim}"
            )
        self.model_config = model_config
        self.statistics = statistics
        self.normalization: ActionNormalization = normalization or statistics.action_normalization
        self.augmentation = augmentation or AugmentationConfig()
        self._action_shift, self._action_scale = _shift_and_scale(statistics.actions, self.normalization, action_dim)
        state = statistics.robot_states[layout]
        self._state_shift = torch.tensor(state.mean, dtype=torch.float32)
        self._state_scale = torch.tensor(np.maximum(state.std, STD_FLOOR), dtype=torch.float32)
        self._table = pixel_table()

    @property
    def augments(self) -> bool:
        """Whether augmentation changes anything."""
        chosen = self.augmentation
        return bool(chosen.random_shift_px or chosen.brightness or chosen.contrast)

    def images_to_float(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 `[..., P, P, 3]` → float32 `[..., 3, P, P]` in [-1, 1], on the device of `images`."""
        if images.dtype != torch.uint8 or images.shape[-1] != 3:
            raise UserError(
                f"images: expected uint8 [..., H, W, 3], got {images.dtype} {list(images.shape)}; pass RGB frames"
            )
        return self._table.to(images.device)[images.movedim(-1, -3).int()]

    def frame_to_model_size(self, frame: np.ndarray) -> np.ndarray:
        """An upright camera frame uint8 `[H, W, 3]` as the frame cache would hold it, `[P, P, 3]`."""
        return resize_frames(frame[None], self.model_config.image_size)[0]

    def observation_to_model_input(self, observations: Sequence[Observation], language: torch.Tensor) -> ModelInput:
        """A batch of raw observations as the model takes it.

        Args:
            observations: `B` of them.
            language: float `[B, E]`, their embedded instructions.

        Raises:
            UserError: a camera is missing, or the robot state has another layout than the model was trained on.
        """
        if len(observations) != len(language):
            raise UserError(
                f"expected one language embedding per observation, got {len(language)} for {len(observations)}"
            )
        states = np.stack([self._robot_state_of(observation) for observation in observations])
        frames = np.stack([self._frames_of(observation) for observation in observations])
        return ModelInput(
            images=self.images_to_float(torch.from_numpy(frames)),
            robot_state=self.normalize_robot_state(torch.from_numpy(states)),
            language=language,
        )

    def normalize_robot_state(self, states: torch.Tensor) -> torch.Tensor:
        """Raw `[..., S]` → float32 `[..., S]`, zero mean and unit standard deviation over the training episodes."""
        return (states.float() - self._state_shift.to(states.device)) / self._state_scale.to(states.device)

    def normalize_actions(self, actions: torch.Tensor) -> torch.Tensor:
        """Raw `[..., A]` → float32 `[..., A]`; the gripper (last) is left as it is."""
        return (actions.float() - self._action_shift.to(actions.device)) / self._action_scale.to(actions.device)

    def denormalize_actions(self, actions: torch.Tensor) -> torch.Tensor:
        """Inverse of `normalize_actions`."""
        return actions.float() * self._action_scale.to(actions.device) + self._action_shift.to(actions.device)

    def _robot_state_of(self, observation: Observation) -> np.ndarray:
        expected, got = self.model_config.robot_state_layout, observation.robot_state_layout
        if got is not expected:
            raise UserError(
                f"observation: robot_state has layout '{got.value}', this model was trained on '{expected.value}' "
                f"({expected.dim} numbers); send that layout"
            )
        return np.asarray(observation.robot_state, np.float32)

    def _frames_of(self, observation: Observation) -> np.ndarray:
        for camera in self.model_config.cameras:
            if camera not in observation.images:
                present = ", ".join(sorted(observation.images)) or "none"
                raise UserError(
                    f"observation: no camera '{camera}', it has {present}; send the cameras of model.cameras"
                )
        return np.stack([self.frame_to_model_size(observation.images[camera]) for camera in self.model_config.cameras])


def _shift_and_scale(
    actions: FieldStatistics, normalization: ActionNormalization, action_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift and scale of every action dim; the gripper, last, gets 0 and 1."""
    if normalization == "mean_std":
        shift, scale = actions.mean, actions.std
    elif normalization == "quantile":
        shift, scale = (actions.q01 + actions.q99) / 2, (actions.q99 - actions.q01) / 2
    else:
        raise UserError(f"data.action_normalization '{normalization}': expected mean_std or quantile")
    gripper = np.arange(action_dim) == action_dim - 1
    shift, scale = np.where(gripper, 0.0, shift), np.where(gripper, 1.0, np.maximum(scale, STD_FLOOR))
    return torch.tensor(shift, dtype=torch.float32), torch.tensor(scale, dtype=torch.float32)
