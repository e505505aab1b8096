"""What the model sees, defined once for training, simulator and server.

Frames: turn upright → make square → resize (antialiased) → round to uint8 → float in [-1, 1], channels first. The
rounding is part of the definition: the frame cache stores frames after it, so a live frame must go through it too.
Actions: continuous numbers normalised, binary ones -1 / +1. Robot state: mean and standard deviation.
Targets: what the policy answers. They are actions, except that groups may be relative to the robot's state at the start
of the chunk (openpi's and LeRobot's relative actions); statistics are then those of the relative numbers.
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
from statevla.robots import ImageFit, ImageOrientation, RobotSpec
from statevla.types import ModelInput, Observation

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
        try:
            arrays = {key: np.asarray(tree[key], np.float64) for key in keys}
        except (TypeError, ValueError):
            raise UserError(f"statistics {source}: expected lists of numbers; use the checkpoint's own file") from None
        if {array.shape for array in arrays.values()} != {(arrays["mean"].size,)}:
            raise UserError(f"statistics {source}: its arrays differ in length; use the checkpoint's own file")
        found = cls(**arrays)
        found._check_possible(source)
        return found

    def _check_possible(self, source: str) -> None:
        """Raise a UserError unless numbers can have these statistics."""
        for key, array in vars(self).items():
            if not np.isfinite(array).all():
                raise UserError(f"statistics {source}: {key} has NaN or infinite values; use the checkpoint's own file")
        for what, low, high in (
            ("a negative std", 0.0 * self.std, self.std),
            ("a min above its max", self.min, self.max),
            ("a q01 above its q99", self.q01, self.q99),
        ):
            if (low > high).any():
                dim = int((low > high).argmax())
                raise UserError(f"statistics {source}: {what} at position {dim}; use the checkpoint's own file")


@dataclass(frozen=True)
class Statistics:
    """What a checkpoint must carry to read robot states and write actions: measured on the training episodes.

    Attributes:
        actions: of the `A` numbers of an action, in the robot's units.
        robot_state: of the `S` numbers of the state that the policy sees.
        action_normalization: how actions were normalised in training.
        relative_actions: names of the action groups whose targets are relative to the state.
        targets: of the `A` numbers of a target, over all steps of all chunks; None where no group is relative: they are
            then the actions themselves.
    """

    actions: FieldStatistics
    robot_state: FieldStatistics
    action_normalization: ActionNormalization = "mean_std"
    relative_actions: tuple[str, ...] = ()
    targets: FieldStatistics | None = None

    def to_dict(self) -> dict[str, Any]:
        """A tree of plain numbers and strings, for JSON."""
        return {
            "actions": self.actions.to_dict(),
            "robot_state": self.robot_state.to_dict(),
            "action_normalization": self.action_normalization,
            "relative_actions": list(self.relative_actions),
            "targets": None if self.targets is None else self.targets.to_dict(),
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], source: str = "file") -> Statistics:
        """Inverse of `to_dict`; `source` names the file in the UserError that a malformed tree raises."""
        try:
            actions, state, normalization = tree["actions"], tree["robot_state"], tree["action_normalization"]
            relative, targets = tuple(str(name) for name in tree["relative_actions"]), tree["targets"]
        except (KeyError, TypeError) as error:
            raise UserError(f"statistics {source}: malformed ({error!r}); use the checkpoint's own file") from None
        if normalization not in get_args(ActionNormalization):
            raise UserError(
                f"statistics {source}: action_normalization '{normalization}', expected mean_std or quantile"
            )
        return cls(
            FieldStatistics.from_dict(actions, f"{source}: actions"),
            FieldStatistics.from_dict(state, f"{source}: robot_state"),
            normalization,
            relative,
            None if targets is None else FieldStatistics.from_dict(targets, f"{source}: targets"),
        )


_FLIPPED: Mapping[ImageOrientation, tuple[int, ...]] = {
    ImageOrientation.UPRIGHT: (),
    ImageOrientation.FLIPPED_VERTICALLY: (-2,),
    ImageOrientation.ROTATED_180: (-2, -1),
    ImageOrientation.MIRRORED: (-1,),
}
"""How pictures `[..., H, W]` are stored → axes to flip so that they stand upright."""


def to_upright(frames: np.ndarray, orientation: ImageOrientation) -> np.ndarray:
    """Turn stored frames `[..., H, W, 3]` upright; a view, nothing is copied."""
    return np.flip(frames, tuple(axis - 1 for axis in _FLIPPED[orientation]))


def from_upright(frames: np.ndarray, orientation: ImageOrientation) -> np.ndarray:
    """Turn upright frames into stored ones: every orientation is its own inverse."""
    return to_upright(frames, orientation)


def planes_to_upright(planes: torch.Tensor, orientation: ImageOrientation) -> torch.Tensor:
    """`to_upright` of a tensor `[..., H, W]`."""
    return planes.flip(_FLIPPED[orientation])


def square_planes(planes: torch.Tensor, fit: ImageFit) -> torch.Tensor:
    """Make `[..., H, W]` square: black bars (`pad`), the middle (`crop`), or as they are (`stretch`)."""
    height, width = planes.shape[-2:]
    if height == width or fit == "stretch":
        return planes
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return planes[..., top : top + side, left : left + side]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return functional.pad(planes, (left, side - width - left, top, side - height - top))


def resize_planes(planes: torch.Tensor, size: int, fit: ImageFit = "pad") -> torch.Tensor:
    """Resize `[N, 3, H, W]` to `[N, 3, size, size]`: bilinear, antialiased, rounded; same size: unchanged.

    Values are those of bytes, 0 to 255, of any dtype. What is not square is made so first, as `fit` says.
    """
    planes = square_planes(planes, fit)
    if planes.shape[-2:] == (size, size):
        return planes
    # One frame at a time: the sum's order, and so the rounding, must not depend on how many frames there are.
    resized = [
        functional.interpolate(
            plane[None].float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False
        )
        for plane in planes
    ]
    whole = torch.cat(resized) if resized else torch.zeros((0, 3, size, size), device=planes.device)
    return whole.round_().clamp_(0, 255).to(planes.dtype)


def resize_frames(frames: np.ndarray, size: int, fit: ImageFit = "pad") -> np.ndarray:
    """`resize_planes` of uint8 `[N, H, W, 3]` → uint8 `[N, size, size, 3]`."""
    planes = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    return resize_planes(planes, size, fit).permute(0, 2, 3, 1).contiguous().numpy()


def bytes_to_float(values: torch.Tensor) -> torch.Tensor:
    """Byte values 0 to 255, as floats, to what the model takes: -1 to 1."""
    return values / 127.5 - 1.0


def pixel_table() -> torch.Tensor:
    """What each of the 256 byte values becomes: float32 `[256]` from -1 to 1."""
    return bytes_to_float(torch.arange(256, dtype=torch.float32))


class RelativeActions:
    """Absolute targets ↔ targets relative to the robot's state at the start of a chunk.

    Args:
        robot: declares which state field measures which action group.
        groups: names of the groups to convert.

    Raises:
        UserError: a group does not exist, is not absolute, or has no state field that the policy sees.
    """

    def __init__(self, robot: RobotSpec, groups: Sequence[str]) -> None:
        actions, states = robot.action_slices(), robot.state_slices()
        measured_by = np.full(robot.action_dim, -1, np.int64)
        for name in groups:
            group = next((known for known in robot.actions if known.name == name), None)
            if group is None:
                raise UserError(
                    f"data.relative_actions: robot '{robot.name}' has no action group '{name}', it has "
                    f"{', '.join(actions)}; choose among these, or none"
                )
            if group.state not in states:
                raise UserError(
                    f"data.relative_actions: action group '{name}' of robot '{robot.name}' names no state field that "
                    "the policy sees; add 'state: <field>' to the group, or leave it out"
                )
            measured_by[actions[name]] = np.arange(robot.state_dim)[states[group.state]]
        self._dims = torch.from_numpy(np.flatnonzero(measured_by >= 0))
        self._measured_by = torch.from_numpy(measured_by[measured_by >= 0])

    def __bool__(self) -> bool:
        return len(self._dims) > 0

    def to_relative(self, chunks: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Actions `[..., H, A]` and the raw state `[..., S]` at their start → targets `[..., H, A]`."""
        return self._shift(chunks, state, -1.0)

    def to_absolute(self, targets: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Inverse of `to_relative`."""
        return self._shift(targets, state, 1.0)

    def _shift(self, chunks: torch.Tensor, state: torch.Tensor, sign: float) -> torch.Tensor:
        shifted = chunks.clone()
        dims, measured_by = self._dims.to(chunks.device), self._measured_by.to(chunks.device)
        shifted[..., dims] += sign * state[..., None, measured_by].to(chunks.dtype)
        return shifted


class Transform:
    """Raw observations and actions to the model's inputs, and the model's answers back.

    Args:
        model_config: of the model that is served, with the robot's dimensions.
        statistics: of its training data.
        robot: whose observations and actions these are; its cameras are the model's.
        augmentation: what training data are changed by.

    Raises:
        UserError: the statistics do not fit the robot.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        statistics: Statistics,
        robot: RobotSpec,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        for what, field, dim in (
            ("actions", statistics.actions, robot.action_dim),
            ("robot_state", statistics.robot_state, robot.state_dim),
            ("targets", statistics.targets or statistics.actions, robot.action_dim),
        ):
            if len(field.mean) != dim:
                raise UserError(
                    f"statistics: {what} have {len(field.mean)} numbers, robot '{robot.name}' has {dim}; use those of "
                    "the same data"
                )
        self.model_config = model_config
        self.statistics = statistics
        self.robot = robot
        self.augmentation = augmentation or AugmentationConfig()
        self.relative = RelativeActions(robot, statistics.relative_actions)
        normalization = statistics.action_normalization
        self._action_shift, self._action_scale = _shift_and_scale(statistics.actions, normalization, robot)
        targets = statistics.targets or statistics.actions
        self._target_shift, self._target_scale = _shift_and_scale(targets, normalization, robot)
        state = statistics.robot_state
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

    def frame_to_model_size(self, frame: np.ndarray, fit: ImageFit = "pad") -> np.ndarray:
        """An upright camera frame uint8 `[H, W, 3]` as the frame cache would hold it, `[P, P, 3]`."""
        return resize_frames(frame[None], self.model_config.image_size, fit)[0]

    def raw_state(self, observations: Sequence[Observation]) -> torch.Tensor:
        """The un-normalised states that the policy sees, float32 `[B, S]`.

        Raises:
            UserError: a state field is missing or has another size.
        """
        mean = self.statistics.robot_state.mean  # of a way that is not sent: zero, once it is normalised
        states = [self.robot.policy_state(each.robot_state, "observation", mean) for each in observations]
        with np.errstate(over="ignore"):
            return torch.from_numpy(np.stack(states).astype(np.float32))

    def observation_to_model_input(self, observations: Sequence[Observation], language: torch.Tensor) -> ModelInput:
        """A batch of raw observations as the model takes it.

        Args:
            observations: `B` of them.
            language: float `[B, E]`, their embedded instructions.

        Raises:
            UserError: a camera or a state field is missing, or has another size than the robot declares.
        """
        if len(observations) != len(language):
            raise UserError(
                f"expected one language embedding per observation, got {len(language)} for {len(observations)}"
            )
        frames = np.stack([self._frames_of(observation) for observation in observations])
        return ModelInput(
            images=self.images_to_float(torch.from_numpy(frames)),
            robot_state=self.normalize_robot_state(self.raw_state(observations)),
            language=language,
        )

    def normalize_robot_state(self, states: torch.Tensor) -> torch.Tensor:
        """Raw `[..., S]` → float32 `[..., S]`, zero mean and unit standard deviation over the training episodes."""
        return (states.float() - self._state_shift.to(states.device)) / self._state_scale.to(states.device)

    def normalize_actions(self, actions: torch.Tensor) -> torch.Tensor:
        """Executed actions, raw `[..., A]` → float32 `[..., A]`; binary numbers become -1 and +1."""
        return (actions.float() - self._action_shift.to(actions.device)) / self._action_scale.to(actions.device)

    def chunks_to_targets(self, chunks: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Chunks of actions as the policy is to answer them.

        Args:
            chunks: raw `[..., H, A]`.
            state: raw `[..., S]`, at the start of each chunk.

        Returns:
            float32 `[..., H, A]`: relative where that was chosen, normalised; binary numbers -1 and +1.
        """
        moved = self.relative.to_relative(chunks.float(), state) if self.relative else chunks.float()
        return (moved - self._target_shift.to(chunks.device)) / self._target_scale.to(chunks.device)

    def targets_to_chunks(self, targets: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Inverse of `chunks_to_targets`: what the policy answered, in the robot's units."""
        raw = targets.float() * self._target_scale.to(targets.device) + self._target_shift.to(targets.device)
        return self.relative.to_absolute(raw, state) if self.relative else raw

    def _frames_of(self, observation: Observation) -> np.ndarray:
        for camera in self.robot.cameras:
            if camera.name not in observation.images:
                present = ", ".join(sorted(observation.images)) or "none"
                raise UserError(
                    f"observation: no camera '{camera.name}', it has {present}; robot '{self.robot.name}' sends "
                    f"{', '.join(self.robot.camera_names)}"
                )
        return np.stack([self.frame_to_model_size(observation.images[c.name], c.fit) for c in self.robot.cameras])


def _shift_and_scale(
    actions: FieldStatistics, normalization: ActionNormalization, robot: RobotSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift and scale of every number of an action; those that take binary commands to -1 and +1."""
    if normalization == "mean_std":
        shift, scale = actions.mean.copy(), actions.std.copy()
    elif normalization == "quantile":
        shift, scale = (actions.q01 + actions.q99) / 2, (actions.q99 - actions.q01) / 2
    else:
        raise UserError(f"data.action_normalization '{normalization}': expected mean_std or quantile")
    scale = np.maximum(scale, STD_FLOOR)
    off, on = robot.binary_values()
    shift[robot.is_binary], scale[robot.is_binary] = (off + on) / 2, (on - off) / 2
    return torch.tensor(shift, dtype=torch.float32), torch.tensor(scale, dtype=torch.float32)


def normalize_instruction(text: str) -> str:
    """Strip an instruction and collapse its white space, in data sets, simulator and server alike.

    Raises:
        UserError: nothing is left.
    """
    normal = " ".join(text.split())
    if not normal:
        raise UserError("instruction: it is empty; say what to do, as in the training data")
    return normal
