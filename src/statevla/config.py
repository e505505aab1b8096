"""The whole configuration: one validated tree, read from YAML with dotted overrides.

Unknown keys are errors that name the nearest key; every key is read by something. The defaults below are the
spec's configuration (`conf/config.yaml` spells them out); presets in `conf/` change them.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from statevla.errors import UserError
from statevla.types import ImageOrientation, RobotStateLayout

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]


def home_dir() -> Path:
    """Where data sets, caches and demo runs live: `$STATEVLA_HOME`, else `~/.cache/statevla`."""
    return Path(os.environ.get("STATEVLA_HOME") or Path.home() / ".cache" / "statevla")


def expand_path(path: str | Path) -> Path:
    """Expand `~`, `$STATEVLA_HOME` (with its default) and other environment variables."""
    text = str(path).replace("${STATEVLA_HOME}", "$STATEVLA_HOME").replace("$STATEVLA_HOME", str(home_dir()))
    return Path(os.path.expandvars(text)).expanduser()


def portable_text(text: str) -> str:
    """`text` with `$STATEVLA_HOME` in place of this machine's folder: for what other machines are to read."""
    return text.replace(str(home_dir()), "$STATEVLA_HOME")


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", validate_default=True, frozen=True, protected_namespaces=(), use_attribute_docstrings=True
    )


class PatchStem(_Section):
    """Non-overlapping patches, one convolution per camera (ViT)."""

    kind: Literal["patch"] = "patch"
    patch_size: Positive = 16
    """Side of a patch (pixels)."""

    def num_tokens(self, image_size: int) -> int:
        return (image_size // self.patch_size) ** 2

    def stride(self) -> int:
        return self.patch_size


class ConvStem(_Section):
    """A stack of strided convolutions per camera: few, strong tokens at small cost."""

    kind: Literal["conv"] = "conv"
    channels: list[Positive] = [32, 64, 128, 192]
    """Output channels of each convolution; the last is model.embed_dim."""
    strides: list[Positive] = [4, 2, 2, 2]
    """Stride of each convolution."""

    @model_validator(mode="after")
    def _same_length(self) -> ConvStem:
        if len(self.channels) != len(self.strides) or not self.channels:
            raise ValueError(
                f"channels and strides need the same length, got {len(self.channels)} and {len(self.strides)}"
            )
        return self

    def num_tokens(self, image_size: int) -> int:
        return (image_size // self.stride()) ** 2

    def stride(self) -> int:
        product = 1
        for stride in self.strides:
            product *= stride
        return product


class MambaConfig(_Section):
    """Mamba-1 blocks of the encoder (Gu & Dao 2023)."""

    d_state: Positive = 16
    """State size N of the scan."""
    d_conv: Annotated[int, Field(ge=2, le=4)] = 4
    """Taps of the causal convolution."""
    expand: Positive = 2
    """Inner width over D."""
    dt_rank: Positive | Literal["auto"] = "auto"
    """Rank of the step size projection; `auto` is ceil(D / 16)."""
    mlp_hidden_dim: NonNegative = 0
    """Hidden size of a gated MLP after every block; 0 leaves it out, as in the spec."""
    scan_backend: str = "auto"
    """`auto`, or a name that `python -m statevla.mamba` lists; `$STATEVLA_SCAN_BACKEND` serves where this says auto."""


class ConditionConfig(_Section):
    """What the policy sees beside z; all off in the spec."""

    robot_state: bool = False
    """The normalised robot state."""
    language: bool = False
    """The instruction embedding."""
    token_grid: NonNegative = 0
    """Encoder outputs of every camera, average-pooled to `token_grid x token_grid` tokens; 0 = none."""


class PolicyConfig(_Section):
    """Flow-matching policy and its sampler."""

    objective: Literal["flow", "l1"] = "flow"
    """`l1` regresses the chunk in one pass instead (the baseline)."""
    flow_time: Literal["uniform", "beta"] = "uniform"
    """`beta`: t ~ Beta(1.5, 1), more often near noise (pi0, arXiv 2410.24164, appendix B)."""
    condition: ConditionConfig = ConditionConfig()

    depth: Positive = 3
    """Mamba layers of the policy."""
    d_state: Positive = 64
    """State size N of the policy's scan."""
    mlp_hidden_dim: NonNegative = 256
    """Hidden size of the gated MLP after every policy block; 0 leaves it out."""
    num_sampling_steps: Positive = 4
    """Solver steps from noise to action."""
    solver: Literal["euler", "heun", "midpoint"] = "euler"
    """ODE solver; heun and midpoint evaluate twice per step."""


class PredictorConfig(_Section):
    """How the temporal predictor of phase 1 takes the action in."""

    conditioning: Literal["concat", "adaln"] = "concat"
    """`concat`: beside z, as in the spec; `adaln`: residual blocks that the action scales, shifts and gates."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Chance in training that a hidden number is left out."""


class ModelConfig(_Section):
    embed_dim: Positive = 256
    """Width D of tokens and blocks."""
    encoder_depth: Positive = 12
    """Mamba layers of the encoder."""
    state_dim: Positive = 256
    """Width Z of the state z."""
    action_dim: Annotated[int, Field(ge=2)] = 7
    """Continuous dims, then one gripper dim."""
    action_seq_len: Positive = 10
    """Chunk horizon H, in control steps."""
    robot_state_dim: Positive = 9
    """Numbers in the robot state; must fit its layout."""
    robot_state_layout: RobotStateLayout = RobotStateLayout.JOINT_GRIPPER
    """`joint_gripper`: 7 joints, 2 fingers; `ee_gripper`: end effector position, axis-angle, 2 fingers."""
    cameras: Annotated[list[str], Field(min_length=1)] = ["agentview", "eye_in_hand"]
    """Names of the cameras, in the order of their tokens."""
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
    predictor: PredictorConfig = PredictorConfig()
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
        if self.robot_state_dim != self.robot_state_layout.dim:
            raise ValueError(
                f"robot_state_dim {self.robot_state_dim} does not fit robot_state_layout "
                f"'{self.robot_state_layout.value}' ({self.robot_state_layout.dim} numbers)"
            )
        return self

    @property
    def tokens_per_camera(self) -> int:
        return self.stem.num_tokens(self.image_size)

    @property
    def num_tokens(self) -> int:
        """Language, robot, all cameras, CLS."""
        return 1 + 1 + len(self.cameras) * self.tokens_per_camera + 1


class LanguageConfig(_Section):
    encoder: str = "minilm"
    """`minilm` (packaged, offline), `hf:<name or folder>` (CLIP, SigLIP or any text model), or a file of precomputed
    embeddings (`.safetensors`, `.npz`: instruction → vector)."""
    zero_pad: bool = False
    """Pad shorter embeddings with zeros to `model.language_dim` (inner products stay the same)."""


class AugmentationConfig(_Section):
    """Only in training; one draw per window, the same for all its frames."""

    random_shift_px: NonNegative = 0
    """Largest shift of the frames, each way (pixels); edges are repeated."""
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of brightness."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of contrast."""


class DataConfig(_Section):
    path: str = "$STATEVLA_HOME/datasets/libero_object"
    """A file or folder of LIBERO HDF5 files, or the folder of a LeRobotDataset v3."""
    play_path: str | None = None
    """Another data set, whose episodes phase 1 also trains on: unlabelled play (`statevla collect --play`). Actions and
    states are normalised as those of `path`; nothing is imitated, nothing held out; format and orientation `auto`."""
    format: Literal["auto", "libero", "lerobot"] = "auto"
    """`auto` looks at the files."""
    orientation: ImageOrientation | Literal["auto"] = "auto"
    """How the frames are stored; `auto` believes what the file declares, else the format's custom."""
    train_split: Rate = 0.9
    """Share of the episodes of every task that is trained on; the others validate."""
    cache_dir: str = "$STATEVLA_HOME/frame_cache"
    """Where frames at the model's resolution are kept, memory-mapped."""
    num_workers: NonNegative = 0
    """Threads that prepare batches ahead; 0 prepares them between steps."""
    action_normalization: Literal["mean_std", "quantile"] = "mean_std"
    """Of the continuous dims: zero mean and unit deviation, or 1 % and 99 % quantiles to -1 and 1."""
    augmentation: AugmentationConfig = AugmentationConfig()


class TargetConfig(_Section):
    """What phase 1 predicts."""

    kind: Literal["ema", "online"] = "ema"
    """`ema`: an averaged copy (BYOL's cosine schedule); `online`: the encoder itself, gradients included (only with a
    latent regulariser)."""
    scope: Literal["encoder", "path"] = "encoder"
    """`encoder`: only the Mamba encoder has an averaged copy, as in the spec; `path`: tokenizer and projection too."""
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.996
    """At the first step."""
    final_momentum: Annotated[float, Field(ge=0, le=1)] = 1.0
    """At the last step."""


class LatentLossConfig(_Section):
    """Regularisers on the encoder's latents rather than on predictions; all off in the spec."""

    variance_weight: Weight = 0.0
    """Hinge on the standard deviation over samples."""
    covariance_weight: Weight = 0.0
    """Squared off-diagonal covariances."""
    temporal_variance_weight: Weight = 0.0
    """Hinge on the standard deviation over time inside a window."""
    sigreg_weight: Weight = 0.0
    """Normality of random projections over samples."""
    tc_sigreg_weight: Weight = 0.0
    """SIGReg on z minus its window's mean."""

    def any_on(self) -> bool:
        return any(weight > 0 for weight in self.model_dump().values())


class JepaLossConfig(_Section):
    """Weights of the temporal JEPA loss."""

    prediction_weight: Weight = 1.0
    """Mean squared error in latent space."""
    variance_weight: Weight = 1.0
    """On predictions, as in the spec."""
    covariance_weight: Weight = 0.04
    """On predictions, as in the spec."""
    variance_target: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation below which the variance hinges push (VICReg's gamma)."""
    latent: LatentLossConfig = LatentLossConfig()
    inverse_dynamics_weight: Weight = 0.0
    """Recover the action block from two consecutive latents."""


class _PhaseConfig(_Section):
    num_epochs: Positive = 1000
    """Passes over the training episodes."""
    max_steps: Positive | None = None
    """Ends training after so many optimizer steps, before `num_epochs` if that comes first."""
    learning_rate: Annotated[float, Field(gt=0)] = 1.0e-4
    """Peak of the schedule."""
    batch_size: Positive = 32
    """Samples per optimizer step over all processes and accumulation steps."""
    warmup_steps: NonNegative = 500
    """Steps over which the learning rate rises linearly; then it falls as a cosine."""


class Phase1Config(_PhaseConfig):
    temporal_predictor_hidden_dim: Positive = 512
    """Hidden width of the temporal predictor."""
    frame_skip: Positive = 1
    """Control steps between two retained frames; the predictor's action is the block of actions in between."""
    num_frames: Annotated[int, Field(ge=2)] = 2
    """Retained frames per window."""
    rollout_steps: Positive = 1
    """Predictions are fed back and scored up to so many retained steps ahead."""
    target: TargetConfig = TargetConfig()
    loss: JepaLossConfig = JepaLossConfig()
    behavior_cloning_weight: Weight = 0.0
    """Of the policy heads' loss, trained along on z with gradients into the encoder; phase 2 starts with new heads."""

    @model_validator(mode="after")
    def _sound(self) -> Phase1Config:
        if self.rollout_steps >= self.num_frames:
            raise ValueError(f"rollout_steps {self.rollout_steps} needs num_frames > {self.rollout_steps}")
        if self.target.kind == "online" and not self.loss.latent.any_on():
            raise ValueError("target.kind 'online' collapses without a regulariser in loss.latent; switch one on")
        return self


class Phase2Config(_PhaseConfig):
    learning_rate: Annotated[float, Field(gt=0)] = 5.0e-5
    """Peak of the schedule."""
    num_latent_views: Positive = 1
    """Augmented views per frame in the cache of latents (1 = the plain frame only)."""
    unfreeze_last_blocks: NonNegative = 0
    """Last Mamba layers of the encoder that are trained along, with its norms and projection; every batch is then
    encoded anew, nothing comes from the cache of latents, and the temporal predictor stays as phase 1 left it."""
    unfreeze_lr_scale: Rate = 0.1
    """Their learning rate over that of the policy."""

    @model_validator(mode="after")
    def _no_views_of_what_changes(self) -> Phase2Config:
        if self.unfreeze_last_blocks and self.num_latent_views > 1:
            raise ValueError(
                f"unfreeze_last_blocks {self.unfreeze_last_blocks} encodes and augments every batch anew, so "
                f"num_latent_views {self.num_latent_views} would do nothing; set num_latent_views to 1"
            )
        return self


class BcConfig(_PhaseConfig):
    """End to end without phase 1: the baseline."""


class TrainingConfig(_Section):
    phase1: Phase1Config = Phase1Config()
    phase2: Phase2Config = Phase2Config()
    bc: BcConfig = BcConfig()
    weight_decay: Weight = 0.01
    """AdamW; matrices only."""
    betas: tuple[Rate, Rate] = (0.9, 0.95)
    """AdamW."""
    grad_clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the whole gradient."""
    gradient_accumulation_steps: Positive = 1
    """Micro-batches per optimizer step. The losses are those of one large batch, but for phase 1's terms over samples
    (variance, covariance, SIGReg), which see one micro-batch at a time."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`bf16`: autocast, weights stay float32. `auto` takes it where the processor multiplies bf16: on a CPU without
    such instructions it is emulated, and many times slower than float32."""
    policy_ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Exponential average of the trained weights, used for validation and deployment in phase 2 and bc; 0 = off."""
    compile: bool = False
    """torch.compile the phase's forward."""
    validate_every_steps: Positive = 500
    """Optimizer steps between validations; "best" is chosen by them."""
    max_validation_batches: Positive = 50
    """Batches of a validation, at most."""
    checkpoint_every_steps: Positive = 500
    """Optimizer steps between saves."""
    checkpoint_every_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds between saves; whichever comes first."""
    log_every_steps: Positive = 10
    """Optimizer steps between lines of the log."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases, beside JSONL and TensorBoard."""


class Config(_Section):
    model: ModelConfig = ModelConfig()
    language: LanguageConfig = LanguageConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    output_dir: str = "checkpoints"
    """Runs go to `<output_dir>/phase1_temporal_jepa`, `phase2_flow_matching` and `behaviour_cloning`."""
    seed: NonNegative = 0
    """Of initialisation, order, augmentation and noise."""
    device: str = "auto"
    """`auto` takes CUDA, else MPS, else the CPU."""
    num_threads: NonNegative = 0
    """CPU threads of PyTorch and the scan; 0 leaves PyTorch's choice."""

    @model_validator(mode="after")
    def _stem_and_language(self) -> Config:
        stem = self.model.stem
        if isinstance(stem, ConvStem) and stem.channels[-1] != self.model.embed_dim:
            raise ValueError(
                f"model.stem.channels must end with model.embed_dim {self.model.embed_dim}, got {stem.channels}"
            )
        return self

    @model_validator(mode="after")
    def _blocks_to_unfreeze(self) -> Config:
        wanted, depth = self.training.phase2.unfreeze_last_blocks, self.model.encoder_depth
        if wanted > depth:
            raise ValueError(
                f"training.phase2.unfreeze_last_blocks {wanted}: the encoder has {depth} (model.encoder_depth)"
            )
        return self


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, apply dotted overrides, validate.

    Args:
        path: YAML file; keys that it leaves out keep their defaults.
        overrides: `a.b.c=value`, values in YAML syntax (`training.phase1.batch_size=8`).

    Raises:
        UserError: no such file, bad YAML, unknown key (the nearest one is named), or a value out of range.
    """
    file = Path(path)
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"config {file}: no such file; presets are in conf/ (conf/config.yaml, conf/compact.yaml)"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"config {file}: not readable as YAML ({' '.join(str(error).split())})") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(f"config {file}: expected a mapping of sections at the top, got {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    return config_from_dict(tree, source=str(file))


def config_from_dict(tree: Mapping[str, Any], source: str) -> Config:
    """Validate a plain tree (from YAML or a checkpoint's `config.json`); `source` names it in errors."""
    try:
        return Config.model_validate(dict(tree))
    except ValidationError as error:
        raise UserError(f"config {source}: {_first_problem(error)}") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}': expected key=value, as in training.phase1.batch_size=8")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override '{override}': the value is not valid YAML; quote it") from None
    node = tree
    *parents, leaf = key.split(".")
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"override '{override}': '{parent}' is a value, not a section")
        node = child
    node[leaf] = value


def _first_problem(error: ValidationError) -> str:
    """One line for the first problem, with the dotted key, what was expected and found, and the nearest key."""
    problems = error.errors()
    # An unknown key says more than what follows from it.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = [str(part) for part in problem["loc"] if part not in ("patch", "conv")]
    key = ".".join(location)
    rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        near = _nearest_key(location)
        return f"unknown key '{key}'; did you mean '{near}'?{rest}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key + ': ' if key else ''}{message}{rest}"
    return f"{key}: {message[0].lower()}{message[1:]}, got {problem['input']!r}{rest}"


def _nearest_key(location: list[str]) -> str:
    """The closest sibling if one is close, else the closest key of the whole tree."""
    parent, leaf = ".".join(location[:-1]), location[-1]
    siblings = {key.rpartition(".")[2]: key for key in all_keys() if key.rpartition(".")[0] == parent}
    if close := difflib.get_close_matches(leaf, siblings, n=1):
        return siblings[close[0]]
    return difflib.get_close_matches(".".join(location), list(all_keys()), n=1, cutoff=0.0)[0]


def all_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterable[str]:
    """Every dotted key of the tree, sections included."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for candidate in _sections_in(field.annotation):
            yield from all_keys(candidate, f"{prefix}{name}.")


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in getattr(annotation, "__args__", ()) for found in _sections_in(argument)]
