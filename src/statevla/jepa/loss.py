"""The loss of phase 1: prediction error with variance and covariance terms against collapse.

VICReg (Bardes, Ponce & LeCun 2022, arXiv 2105.04906), equations 1 to 4, with the invariance term replaced by the
prediction error in latent space.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from statevla.config import JepaLossConfig


class JepaLosses(NamedTuple):
    """Scalars: the weighted `total`, and each term without its weight."""

    total: Tensor
    prediction: Tensor
    variance: Tensor
    covariance: Tensor


def temporal_jepa_loss(prediction: Tensor, target: Tensor, regularized: Tensor, config: JepaLossConfig) -> JepaLosses:
    """`prediction_weight · MSE + variance_weight · v + covariance_weight · c`.

    Args:
        prediction: `[..., Z]`, z'_{t+1} of the predictor.
        target: `[..., Z]`, z_{t+1} of the target encoder; no gradient flows into it.
        regularized: `[M, Z]`, the latents that variance and covariance are taken over (M > 1 samples of the global
            batch).
    """
    error = (prediction.float() - target.detach().float()).square().mean()
    variance = variance_loss(regularized.float(), config.variance_target)
    covariance = covariance_loss(regularized.float())
    total = config.prediction_weight * error + config.variance_weight * variance + config.covariance_weight * covariance
    return JepaLosses(total, error, variance, covariance)


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
