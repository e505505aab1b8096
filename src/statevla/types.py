"""The vocabulary that every part shares: observations, batches, action chunks, and the legend of dimensions.

Dimensions: `B` batch, `T` time (control steps), `N` tokens, `D` embedding, `H` chunk horizon, `A` action (7),
`S` robot state (8 or 9), `V` cameras, `E` language embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from statevla.errors import UserError

if TYPE_CHECKING:
    import torch

ACTION_DIM = 7
CONTINUOUS_DIM = 6
CONTROL_FREQ_HZ = 20.0
ReachKind = Literal["start", "outer", "any", "mixed", "missed"]
"""Which reaches to collect; what they are stands in `statevla.worlds.libero.reach`. Here because command lines, which must not
load the simulator, offer them."""
Rendering = Literal["fast", "exact"]
"""How frames are drawn; see `statevla.worlds.libero.rendering`."""


class Gripper(IntEnum):
    """Gripper command, the last dimension of an action (robosuite's convention)."""

    OPEN = -1
    CLOSE = 1


class RobotStateLayout(str, Enum):
    """Which numbers a robot state holds, in which order."""

    JOINT_GRIPPER = "joint_gripper"
    """7 joint positions (rad), then the 2 finger positions (m): 9 numbers, the spec's layout."""
    EE_GRIPPER = "ee_gripper"
    """End effector position (m, 3), axis-angle (rad, 3), 2 finger positions (m): 8 numbers (LeRobot, openpi)."""

    @property
    def dim(self) -> int:
        return 9 if self is RobotStateLayout.JOINT_GRIPPER else 8


class ImageOrientation(str, Enum):
    """How a source stores its frames; the policy always sees them upright."""

    UPRIGHT = "upright"
    FLIPPED_VERTICALLY = "flipped_vertically"
    """OpenGL's origin: LIBERO's official HDF5 files and raw robosuite frames."""
    ROTATED_180 = "rotated_180"
    """Both axes flipped."""
    MIRRORED = "mirrored"
    """Left and right exchanged: raw robosuite frames rotated by 180 degrees, as in `lerobot/libero`, openpi's LIBERO
    script and most published VLA data sets (the two vertical flips cancel out)."""


@dataclass(frozen=True)
class Observation:
    """What a robot or simulator reports at one control step, raw and named.

    Attributes:
        images: camera name → uint8 `[H, W, 3]`, upright RGB.
        robot_state: float `[S]`, un-normalised, in the units of `robot_state_layout`.
        robot_state_layout: the layout of `robot_state`.
        instruction: the task in words.
    """

    images: Mapping[str, np.ndarray]
    robot_state: np.ndarray
    robot_state_layout: RobotStateLayout
    instruction: str

    def __post_init__(self) -> None:
        for name, image in self.images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise UserError(
                    f"observation image '{name}': expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}; "
                    "pass upright RGB frames"
                )
        layout = self.robot_state_layout
        if self.robot_state.shape != (layout.dim,):
            raise UserError(
                f"observation robot_state: layout '{layout.value}' has {layout.dim} numbers, got shape "
                f"{list(self.robot_state.shape)}; name the layout that your robot reports"
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
            concatenated in time order; 6 continuous dims normalised, gripper -1 / +1.
        chunks: float `[B, T, H, A]`, the actions that a policy should answer from each frame on, or None where
            behaviour cloning is off.
        chunk_is_pad: bool `[B, T, H]`, true where a step of `chunks` does not count.
        keyframe: float `[B, T, 3]`, from the hand to where it will be when the gripper next opens or closes (units of
            0.1 m), or None where nobody asks.
        keyframe_is_known: bool `[B, T]`, false where no such change follows.
    """

    observation: ModelInput
    actions: torch.Tensor
    chunks: torch.Tensor | None = None
    chunk_is_pad: torch.Tensor | None = None
    keyframe: torch.Tensor | None = None
    keyframe_is_known: torch.Tensor | None = None


@dataclass(frozen=True)
class ChunkBatch(_TensorFields):
    """Phase 2 and behaviour cloning: an observation and the chunk of actions that followed.

    Attributes:
        observation: leading dims `[B]`; None when `state` stands for it.
        actions: float `[B, H, A]`; 6 continuous dims normalised, gripper -1 / +1.
        is_pad: bool `[B, H]`, true past the end of the episode (excluded from the loss).
        state: float `[B, Z]`, precomputed z_t of a frozen encoder, or None.
    """

    observation: ModelInput | None
    actions: torch.Tensor
    is_pad: torch.Tensor
    state: torch.Tensor | None = None


@dataclass(frozen=True)
class ActionChunk:
    """What a policy answers: `actions` float32 `[H, A]` in the robot's own units, gripper exactly -1 or +1."""

    actions: np.ndarray
