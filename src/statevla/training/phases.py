"""What each phase optimises, and from which samples.

    1   temporal JEPA: the encoder learns to predict what an action does
    2   flow matching: the policy learns on states of the frozen encoder
    bc  behaviour cloning: encoder and policy together, from scratch (the baseline)

A step's loss does not depend on how its batch is cut over processes and accumulation steps, with three exceptions:
phase 1's terms over the batch (variance, covariance, SIGReg) see one micro-batch of all processes, so that accumulation
makes their batch smaller; dropout of robot tokens draws per micro-batch; and batch normalisation,
where it is on, sees a micro-batch of one process (of all processes on CUDA).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from statevla.config import PHASES, BcConfig, Config, Phase1Config, Phase2Config
from statevla.errors import UserError
from statevla.model.flow import FlowDraws
from statevla.model.statevla_model import StateVLA
from statevla.types import ChunkBatch, TransitionBatch

Batch = TransitionBatch | ChunkBatch


def phase_config(config: Config, phase: str) -> Phase1Config | Phase2Config | BcConfig:
    """The section of the configuration that is about `phase`."""
    section: Phase1Config | Phase2Config | BcConfig = getattr(config.training, PHASES[phase].section)
    return section


def check_micro_batch(config: Config, phase: str) -> None:
    """Raise a UserError if phase 1's terms over samples would see one sample alone, which has no variance."""
    phase1, pieces = config.training.phase1, config.training.gradient_accumulation_steps
    together = phase1.batch_size // pieces * (phase1.num_frames - 1)
    if phase == "1" and together < 2:
        raise UserError(
            f"training.phase1.batch_size {phase1.batch_size} in training.gradient_accumulation_steps {pieces}: "
            f"expected 2 or more predictions per micro-batch, to take their variance, got {together}; accumulate less"
        )


class PhaseLoss(nn.Module):
    """The loss of a phase as a module, so that DDP wraps exactly what is called.

    Only the phase's own parameters keep their gradients.

    Args:
        model: the whole model.
        phase: `1`, `2` or `bc`.
        gather: differentiable all-gather over processes for batch statistics, or None; used while training.
    """

    def __init__(self, model: StateVLA, phase: str, gather: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.model, self.phase, self.gather = model, phase, gather
        trained = dict(model.phase_parameters(phase))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        if phase == "2":
            model.freeze_encoder()

    def forward(
        self, batch: Batch, weight: Tensor | float = 1.0, draws: FlowDraws | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a micro-batch, and its terms.

        Args:
            batch: of this process.
            weight: share of the micro-batch in the step, times the number of processes (for DDP averages).
            draws: noise and flow times of chunks; None draws them here.

        Returns:
            The weighted total to differentiate, and every scalar term, detached and unweighted.
        """
        if isinstance(batch, TransitionBatch):
            losses = self.model.jepa_loss(batch, self.gather if self.training else None)._asdict()
        else:
            losses = self.model.action_loss(batch, draws)._asdict()
        terms = {name: value.detach().float() for name, value in losses.items()}
        return losses["total"] * weight, terms


def num_targets(batch: Batch) -> int:
    """How much a micro-batch weighs in its step: windows in phase 1, unpadded action steps otherwise."""
    return len(batch.actions) if isinstance(batch, TransitionBatch) else int((~batch.is_pad).sum())


def is_finite(batch: Batch) -> Tensor:
    """Which samples of a batch hold finite numbers only, bool `[B]`."""
    tensors: Sequence[Tensor | None] = [batch.actions, getattr(batch, "state", None)]
    if batch.observation is not None:
        tensors = [*tensors, batch.observation.robot_state, batch.observation.language, batch.observation.images]
    finite = [torch.isfinite(tensor).flatten(1).all(dim=1) for tensor in tensors if tensor is not None]
    return torch.stack(finite).all(dim=0)
