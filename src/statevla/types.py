"""The vocabulary that every part shares: observations, batches, action chunks, and the legend of dimensions.

Dimensions: `B` batch, `T` time (control steps), `N` tokens, `D` embedding, `H` chunk horizon, `A` action,
`S` robot state, `V` cameras, `E` language embedding. What the numbers of an action and of a robot state mean is
declared by the robot (`statevla.robots`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from statevla.errors import UserError

if TYPE_CHECKING:
    import torch

ReachKind = Literal["start", "outer", "any", "mixed", "missed"]
"""Which reaches to collect; what they are stands in `statevla.worlds.libero.reach`. Here because command lines, which
must not load the simulator, offer them."""
Orientation = Literal["auto", "upright", "flipped_vertically", "rotated_180", "mirrored"]
"""How frames are stored, as command lines take it; `auto` believes the data set."""
Rendering = Literal["fast", "exact"]
"""How frames are drawn; see `statevla.worlds.libero.rendering`."""


@dataclass(frozen=True)
class Observation:
    """What a robot or a world reports at one control step, raw and named.

    Attributes:
        images: camera name → uint8 `[H, W, 3]`, upright RGB.
        robot_state: name of a state field → its numbers `[n]`, un-normalised, in the units that the robot declares.
            `RobotSpec.named_state` makes it from a flat array.
        instruction: the task in words.
    """

    images: Mapping[str, np.ndarray]
    robot_state: Mapping[str, np.ndarray]
    instruction: str

    def __post_init__(self) -> None:
        for name, image in self.images.items():
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
                raise UserError(
                    f"observation image '{name}': expected uint8 [H, W, 3], got {found}; pass upright RGB frames"
                )
            if not image.size:
                raise UserError(f"observation image '{name}': it has no pixels, got {list(image.shape)}")
        if not isinstance(self.robot_state, Mapping):
            raise UserError(
                f"observation robot_state: expected a mapping of state fields, got {type(self.robot_state).__name__}; "
                "RobotSpec.named_state makes one from a flat array"
            )
        for name, values in self.robot_state.items():
            _check_numbers(name, values)
        if not isinstance(self.instruction, str):
            raise UserError(
                f"observation instruction: expected text, got {type(self.instruction).__name__}; say what to do, as in "
                "the training data"
            )


def _check_numbers(field: str, values: Any) -> None:
    try:
        finite = np.isfinite(values)
    except (TypeError, ValueError):  # texts, None, lists of unequal length
        got = " ".join(repr(values).split())[:60]
        raise UserError(
            f"observation robot_state '{field}': expected an array of numbers [n], got {got}; send what the robot "
            "measures"
        ) from None
    if not finite.all():
        raise UserError(
            f"observation robot_state '{field}': NaN or infinite at {int(np.argmin(finite))}; send what the robot "
            "measures"
        )


class _TensorFields:
    """`to`, indexing and flattening over all tensor fields of a dataclass."""

    def _map(self, function: Any) -> Any:
        return replace(
            self,  # type: ignore[type-var]
            **{f.name: function(v) for f in fields(self) if (v := getattr(self, f.name)) is not None},  # type: ignore[arg-type]
        )

    def to(self, device: torch.device | str) -> Any:
        """Move every tensor, nested ones too."""
        return self._map(lambda value: value.to(device))


@dataclass(frozen=True)
class ModelInput(_TensorFields):
    """Observations as the model takes them: the output of `transforms.py`. Leading dims `...` are `[B]` or `[B, T]`.

    Attributes:
        images: float `[..., V, 3, P, P]` in [-1, 1], upright, cameras in the order of `model.cameras`.
        robot_state: float `[..., S]`, normalised.
        language: float `[..., E]`, the embedded instruction.
    """

    images: torch.Tensor
    robot_state: torch.Tensor
    language: torch.Tensor

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return tuple(self.robot_state.shape[:-1])

    def flatten(self) -> ModelInput:
        """Merge all leading dims into one: `[B, T, ...]` → `[B·T, ...]`."""
        count = len(self.batch_shape)
        return self._map(lambda tensor: tensor.flatten(0, count - 1) if count > 1 else tensor)

    def at(self, index: Any) -> ModelInput:
        """Index the leading dims of every field alike."""
        return self._map(lambda tensor: tensor[index])


@dataclass(frozen=True)
class TransitionBatch(_TensorFields):
    """Phase 1: windows of `T` retained observations and the actions between them.

    Attributes:
        observation: leading dims `[B, T]`.
        actions: float `[B, T-1, K·A]`: the `K` = frame skip actions executed between two retained observations,
            concatenated in time order; continuous dims normalised, binary ones -1 / +1.
        keyframe: float `[B, T, K]`, where the robot will be at the next event (see `statevla.data.keyframes`), or None
            where nobody asks.
        keyframe_is_known: bool `[B, T]`, false where no event follows.
        later_keyframe, later_keyframe_is_known: the same of the event after that one.
    """

    observation: ModelInput
    actions: torch.Tensor
    keyframe: torch.Tensor | None = None
    keyframe_is_known: torch.Tensor | None = None
    later_keyframe: torch.Tensor | None = None
    later_keyframe_is_known: torch.Tensor | None = None


@dataclass(frozen=True)
class ChunkBatch(_TensorFields):
    """Phase 2 and behaviour cloning: an observation and the chunk of actions that followed.

    Attributes:
        observation: leading dims `[B]`; None when `state` stands for it.
        actions: float `[B, H, A]`; continuous dims normalised, binary ones -1 / +1.
        is_pad: bool `[B, H]`, true past the end of the episode (excluded from the loss).
        state: float `[B, Z]`, precomputed z_t of a frozen encoder, or None.
    """

    observation: ModelInput | None
    actions: torch.Tensor
    is_pad: torch.Tensor
    state: torch.Tensor | None = None


@dataclass(frozen=True)
class ActionChunk:
    """What a policy answers: `actions` float32 `[H, A]` in the robot's own units, binary dims exactly one command."""

    actions: np.ndarray
