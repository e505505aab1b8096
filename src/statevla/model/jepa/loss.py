"""The terms of phase 1's loss (`StateVLA.jepa_loss` weighs and adds them).

Prediction error in latent space with terms against collapse: variance and covariance of VICReg (Bardes, Ponce & LeCun
2022, arXiv 2105.04906) over the predictions, as in the spec; SIGReg (LeJEPA, arXiv 2511.08544) over the encoder's
latents; inverse dynamics and keyframes, which keep in z what acting needs. Every term is computed in float32, also
under autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import NamedTuple

import torch
from torch import Tensor

from statevla.config import JepaLossConfig

TARGET_STD = 1.0
"""Standard deviation below which the variance term pushes (VICReg's gamma)."""
NUM_KNOTS = 17
LAST_KNOT = 3.0
NUM_DIRECTIONS = 256


class JepaLosses(NamedTuple):
    """Scalars: the weighted `total`, and each term without its weight; 0 where it is switched off."""

    total: Tensor
    prediction: Tensor
    variance: Tensor
    covariance: Tensor
    sigreg: Tensor
    inverse_dynamics: Tensor
    keyframe: Tensor
    later_keyframe: Tensor


def weighted(config: JepaLossConfig, **terms: Tensor) -> JepaLosses:
    """The terms, by their names, and their weighted sum."""
    total = (
        config.prediction_weight * terms["prediction"]
        + config.variance_weight * terms["variance"]
        + config.covariance_weight * terms["covariance"]
        + config.sigreg_weight * terms["sigreg"]
        + config.inverse_dynamics_weight * terms["inverse_dynamics"]
        + config.keyframe_weight * terms["keyframe"]
        + config.later_keyframe_weight * terms["later_keyframe"]
    )
    return JepaLosses(total=total, **terms)


def in_float32(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Without autocast, whose low-precision products would drown covariances and characteristic functions."""

    @wraps(loss)
    def full(*tensors: Tensor, **options: int) -> Tensor:
        with torch.autocast(tensors[0].device.type, enabled=False):
            return loss(*(tensor.float() for tensor in tensors), **options)

    return full


def prediction_loss(predictions: Sequence[Tensor], target: Tensor) -> Tensor:
    """Mean squared error of predictions, averaged over how far ahead they look.

    Args:
        predictions: item r is `[B, T-1-r, Z]`: z predicted r + 1 retained steps ahead, from every frame that has a
            target so far ahead.
        target: `[B, T-1, Z]`, z of frames 1 … T-1.
    """
    return torch.stack([mean_squared_error(each, target[:, r:]) for r, each in enumerate(predictions)]).mean()


@in_float32
def mean_squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Over all numbers of two tensors of one shape."""
    return (predicted - target).square().mean()


@in_float32
def keyframe_loss(predicted: Tensor, offset: Tensor, is_known: Tensor) -> Tensor:
    """Mean squared error of a keyframe. Unknown ones count as zero: so micro-batches weigh alike.

    Args:
        predicted, offset: `[..., K]`, as `statevla.data.keyframes` has them.
        is_known: bool `[...]`.
    """
    return ((predicted - offset).square().mean(-1) * is_known).mean()


@in_float32
def variance_loss(z: Tensor, eps: float = 1e-4) -> Tensor:
    """Hinge on the standard deviation of every dim over the batch (VICReg, equations 1 and 2). `z`: `[M, Z]`."""
    return torch.relu(TARGET_STD - (z.var(dim=0) + eps).sqrt()).mean()


@in_float32
def covariance_loss(z: Tensor) -> Tensor:
    """Sum of the squared off-diagonal covariances over Z (VICReg, equations 3 and 4). `z`: `[M, Z]`."""
    count, dim = z.shape
    centred = z - z.mean(dim=0)
    covariance = centred.T @ centred / (count - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / dim


@in_float32
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
