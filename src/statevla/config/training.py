"""`training`: the phases and what they share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from statevla.config.section import NonNegative, Positive, Rate, Section, Weight


class TargetConfig(Section):
    """What phase 1 predicts."""

    kind: Literal["ema", "online"] = "ema"
    """`ema`: an averaged copy (BYOL's cosine schedule); `online`: the encoder itself, gradients included (only with a
    regulariser of its latents)."""
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.996
    """At the first step."""
    final_momentum: Annotated[float, Field(ge=0, le=1)] = 1.0
    """At the last step."""


class JepaLossConfig(Section):
    """Weights of the temporal JEPA loss."""

    prediction_weight: Weight = 1.0
    """Mean squared error in latent space."""
    variance_weight: Weight = 1.0
    """On predictions, as in the spec."""
    covariance_weight: Weight = 0.04
    """On predictions, as in the spec."""
    sigreg_weight: Weight = 0.0
    """On the encoder's latents: normality of random projections over samples; off in the spec."""
    inverse_dynamics_weight: Weight = 0.0
    """Recover the action block from two consecutive latents."""
    keyframe_weight: Weight = 0.0
    """Read off z where the hand will be when the gripper next opens or closes, relative to it."""
    later_keyframe_weight: Weight = 0.0
    """Likewise for the time after that: where what it goes to fetch has to go."""


class _PhaseConfig(Section):
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


class _EncoderConfig(_PhaseConfig):
    start_repeats: NonNegative = 0
    """How many times more an epoch shows samples that begin in the first 8 control steps of an episode: later the
    hand's place betrays which object is meant, and instructions need not be read. Validation shows each once."""


class Phase1Config(_EncoderConfig):
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

    @model_validator(mode="after")
    def _sound(self) -> Phase1Config:
        if self.rollout_steps >= self.num_frames:
            raise ValueError(f"rollout_steps {self.rollout_steps} needs num_frames > {self.rollout_steps}")
        if self.target.kind == "online" and not self.loss.sigreg_weight:
            raise ValueError("target.kind 'online' collapses without loss.sigreg_weight; set it, to 0.09 for one")
        return self


class Phase2Config(_PhaseConfig):
    learning_rate: Annotated[float, Field(gt=0)] = 5.0e-5
    """Peak of the schedule."""


class BcConfig(_EncoderConfig):
    """End to end without phase 1: the baseline."""


class TrainingConfig(Section):
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
    """`bf16`: autocast, weights stay float32. `auto` takes it where the processor is faster at it: a CPU without
    instructions for it emulates bf16, many times slower than float32, and Intel's without AMX gain nothing."""
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
