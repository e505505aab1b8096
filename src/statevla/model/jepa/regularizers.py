"""Anti-collapse terms on the encoder's latents over windows `[B, T, Z]`.

VICReg over samples and over time (PLDM, arXiv 2502.14819), SIGReg (LeJEPA, arXiv 2511.08544) and its temporally centred
form (TC-LeWM, arXiv 2607.26924).
"""

from __future__ import annotations

import torch
from torch import Tensor

from statevla.config import LatentLossConfig
from statevla.model.jepa.loss import covariance_loss, variance_loss

NUM_KNOTS = 17
LAST_KNOT = 3.0
NUM_DIRECTIONS = 256


def latent_loss(z: Tensor, config: LatentLossConfig, target_std: float) -> Tensor:
    """Weighted sum of the terms that are switched on, a scalar; `z`: `[B, T, Z]`."""
    z = z.float()
    samples = z.flatten(0, 1)
    loss = z.new_zeros(())
    if config.variance_weight:
        loss = loss + config.variance_weight * variance_loss(samples, target_std)
    if config.covariance_weight:
        loss = loss + config.covariance_weight * covariance_loss(samples)
    if config.temporal_variance_weight:
        loss = loss + config.temporal_variance_weight * temporal_variance_loss(z, target_std)
    if config.sigreg_weight:
        loss = loss + config.sigreg_weight * sigreg(z)
    if config.tc_sigreg_weight:
        loss = loss + config.tc_sigreg_weight * sigreg(z - z.mean(dim=1, keepdim=True))
    return loss


def temporal_variance_loss(z: Tensor, target_std: float, eps: float = 1e-4) -> Tensor:
    """Hinge on the standard deviation over the frames of a window, per window and dim. `z`: `[B, T, Z]`."""
    return torch.relu(target_std - (z.var(dim=1) + eps).sqrt()).mean()


def sigreg(z: Tensor, num_directions: int = NUM_DIRECTIONS) -> Tensor:
    """Sketched isotropic Gaussian regularisation: an Epps–Pulley normality statistic on random 1-d projections.

    For every frame of the window, the empirical characteristic function of each projection over the batch is
    compared with the standard normal's, exp(-s²/2), by B ∫ |φ̂(s) − φ(s)|² exp(−s²/2) ds (trapezoid rule, 17 knots on
    [0, 3], doubled for the negative half: the integrand is even).

    Args:
        z: `[B, T, Z]`.
        num_directions: random unit vectors, new at every call, drawn from the global generator.

    Returns:
        Scalar: mean statistic over directions and frames.
    """
    directions = torch.randn(z.shape[-1], num_directions, device=z.device)
    directions = directions / directions.norm(dim=0)
    knots = torch.linspace(0.0, LAST_KNOT, NUM_KNOTS, device=z.device)
    normal = torch.exp(-knots.square() / 2)
    step = LAST_KNOT / (NUM_KNOTS - 1)
    trapezoid = torch.full_like(knots, 2 * step)
    trapezoid[[0, -1]] = step
    angles = (z @ directions).unsqueeze(-1) * knots
    distance = (angles.cos().mean(dim=0) - normal).square() + angles.sin().mean(dim=0).square()
    return z.shape[0] * (distance @ (trapezoid * normal)).mean()
