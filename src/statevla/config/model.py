"""`model`: the network."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from statevla.config.section import NonNegative, Positive, Section


def _none_if_auto(none: Any) -> BeforeValidator:
    def read(value: Any) -> Any:
        if value == none:
            raise ValueError("expected at least one, or auto: what the robot has")
        return none if value == "auto" else value

    return BeforeValidator(read)


# `auto` is kept as "none yet", so that whoever reads a dimension reads a number; no model is built before the robot of
# the data has filled it in (`statevla.config.fit_to_robot`).
_write_auto = PlainSerializer(lambda value: value or "auto")
_Dim = Annotated[NonNegative, _none_if_auto(0), _write_auto]
_Cameras = Annotated[list[str], _none_if_auto([]), _write_auto]


class PatchStem(Section):
    """Non-overlapping patches, one convolution per camera (ViT)."""

    kind: Literal["patch"] = "patch"
    patch_size: Positive = 16
    """Side of a patch (pixels)."""

    def num_tokens(self, image_size: int) -> int:
        return (image_size // self.patch_size) ** 2

    def stride(self) -> int:
        return self.patch_size


class ConvStem(Section):
    """A stack of strided convolutions per camera: few, strong tokens at small cost."""

    kind: Literal["conv"] = "conv"
    channels: list[Positive] = [32, 64, 128, 192]
    """Output channels of each convolution; the last is model.embed_dim."""
    strides: list[Positive] = [4, 2, 2, 2]
    """Stride of each convolution."""
    film: bool = False
    """The instruction scales and shifts the channels after every normalisation."""
    keypoints: NonNegative = 0
    """Places per camera, found by spatial soft-argmax, that are added to CLS; 0 = none."""

    @model_validator(mode="after")
    def _same_length(self) -> ConvStem:
        if len(self.channels) != len(self.strides) or not self.channels:
            raise ValueError(
                f"channels and strides need the same length, got {len(self.channels)} and {len(self.strides)}"
            )
        if self.keypoints and len(self.channels) < 2:
            raise ValueError("keypoints are looked for between two convolutions; channels has one")
        return self

    def num_tokens(self, image_size: int) -> int:
        return (image_size // self.stride()) ** 2

    def stride(self) -> int:
        product = 1
        for stride in self.strides:
            product *= stride
        return product


class MambaConfig(Section):
    """Mamba-1 blocks (Gu & Dao 2023)."""

    d_state: Positive = 16
    """State size N of the encoder's scan."""
    scan_backend: str = "auto"
    """`auto`, or a name that `python -m statevla.model.mamba` lists; `$STATEVLA_SCAN_BACKEND` serves where this says
    auto."""


class ConditionConfig(Section):
    """What the policy sees beside z; all off in the spec."""

    robot_state: bool = False
    """The normalised robot state."""
    language: bool = False
    """The instruction embedding."""


class PolicyConfig(Section):
    """Flow-matching policy and its sampler."""

    condition: ConditionConfig = ConditionConfig()

    depth: Positive = 3
    """Mamba layers of the policy."""
    d_state: Positive = 64
    """State size N of the policy's scan."""
    mlp_hidden_dim: NonNegative = 256
    """Hidden size of the gated MLP after every policy block; 0 leaves it out."""
    num_sampling_steps: Positive = 4
    """Euler steps from noise to action."""
    sampling_temperature: Annotated[float, Field(ge=0)] = 1.0
    """Scale of the noise that the flow starts from. 1 draws chunks as demonstrations vary; 0 starts at its mean, and an
    observation has one chunk."""


class ModelConfig(Section):
    embed_dim: Positive = 256
    """Width D of tokens and blocks."""
    encoder_depth: Positive = 12
    """Mamba layers of the encoder."""
    state_dim: Positive = 256
    """Width Z of the state z."""
    action_dim: _Dim = 7
    """Numbers in an action; `auto` takes the robot's, any other number is checked against it."""
    action_seq_len: Positive = 10
    """Chunk horizon H, in control steps."""
    robot_state_dim: _Dim = 9
    """Numbers in the robot state; `auto` takes the robot's, any other number is checked against it."""
    cameras: _Cameras = ["agentview", "eye_in_hand"]
    """Names of the cameras, in the order of their tokens; `auto` takes all that the robot has."""
    image_size: Positive = 224
    """Side of the square frames that the model sees (pixels)."""
    language_dim: Positive = 512
    """Width E of the instruction embedding."""
    robot_token_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Chance in training that the encoder sees a mask for the robot state; 1 hides it always (its slot stays)."""
    state_projection: Literal["layernorm", "batchnorm"] = "layernorm"
    """`layernorm`: Linear + LayerNorm, as in the spec; `batchnorm`: an MLP with BatchNorm; z keeps its scale."""
    stem: Annotated[PatchStem | ConvStem, Field(discriminator="kind")] = PatchStem()
    mamba: MambaConfig = MambaConfig()
    policy: PolicyConfig = PolicyConfig()

    @model_validator(mode="before")
    @classmethod
    def _stem_is_patch_by_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("stem"), dict) and "kind" not in values["stem"]:
            return {**values, "stem": {"kind": "patch", **values["stem"]}}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras must differ, got {self.cameras}")
        if self.image_size % self.stem.stride():
            raise ValueError(f"image_size {self.image_size} is no multiple of the stem's stride {self.stem.stride()}")
        return self

    @property
    def tokens_per_camera(self) -> int:
        return self.stem.num_tokens(self.image_size)

    @property
    def num_tokens(self) -> int:
        """Language, robot, all cameras, CLS."""
        return 1 + 1 + len(self.cameras) * self.tokens_per_camera + 1
