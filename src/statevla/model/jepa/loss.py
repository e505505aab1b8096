"""The loss of phase 1: prediction error with variance and covariance terms against collapse.

VICReg (Bardes, Ponce & LeCun 2022, arXiv 2105.04906), equations 1 to 4, with the invariance term replaced by the
prediction error in latent space. The spec takes variance and covariance over the predictions; `regularizers.py` has
what can be put on the encoder's latents instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from statevla.config import JepaLossConfig


class JepaLosses(NamedTuple):
    """Scalars: the weighted `total`; each term without its weight; `latent` is the weighted sum of its section.

    `keyframe` and `behavior_cloning` are not of this module: `StateVLA.jepa_loss` adds them.
    """

    total: Tensor
    prediction: Tensor
    variance: Tensor
    covariance: Tensor
    latent: Tensor
    inverse_dynamics: Tensor
    keyframe: Tensor
    behavior_cloning: Tensor


def temporal_jepa_loss(
    predictions: Sequence[Tensor],
    target: Tensor,
    regularized: Tensor,
    latent: Tensor,
    inverse_dynamics: Tensor,
    config: JepaLossConfig,
) -> JepaLosses:
    """`prediction_weight · MSE + variance_weight · v + covariance_weight · c + latent + inverse_dynamics_weight · i`.

    Args:
        predictions: item r is `[B, T-1-r, Z]`: z predicted r + 1 retained steps ahead, from every frame that has a
            target so far ahead.
        target: `[B, T-1, Z]`, z of frames 1 … T-1.
        regularized: `[M, Z]`, predictions that variance and covariance are taken over (M > 1 of the global batch).
        latent: scalar, the weighted regularisers on the encoder's latents.
        inverse_dynamics: scalar, error of the recovered actions.
    """
    errors = [(p.float() - target[:, r:].float()).square().mean() for r, p in enumerate(predictions)]
    error = torch.stack(errors).mean()
    variance = variance_loss(regularized.float(), config.variance_target)
    covariance = covariance_loss(regularized.float())
    total = (
        config.prediction_weight * error
        + config.variance_weight * variance
        + config.covariance_weight * covariance
        + latent
        + config.inverse_dynamics_weight * inverse_dynamics
    )
    elsewhere = total.new_zeros(())
    return JepaLosses(total, error, variance, covariance, latent, inverse_dynamics, elsewhere, elsewhere)


def variance_loss(z: Tensor, target_std: float, eps: float = 1e-4) -> Tensor:
    """Hinge on the standard deviation of every dim over the batch (VICReg, equations 1 and 2). `z`: `[M, Z]`."""
    std = (z.var(dim=0) + eps).sqrt()
    return torch.relu(target_std - std).mean()


def covariance_loss(z: Tensor) -> Tensor:
    """Sum of the squared off-diagonal covariances over Z (VICReg, equations 3 and 4). `z`: `[M, Z]`."""
    count, dim = z.shape
    centred = z - z.mean(dim=0)
    covariance = centred.T @ centred / (count - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / dim
