"""Flow matching: probability path, the loss that learns its velocity, and the ODE sampler. Nothing here knows a model.

Convention: `x_0` = data (action), `x_1` = noise, `x_t = (1 - t) x_0 + t x_1`, target velocity `x_1 - x_0`;
sampling integrates from t = 1 to t = 0.

The path is the straight (optimal transport) one of Lipman et al. 2023, "Flow Matching for Generative Modeling" (arXiv
2210.02747), equations 21 to 23 with sigma_min = 0, written with time running from data (0) to noise (1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from statevla.errors import UserError

Velocity = Callable[[Tensor, float], Tensor]
"""`v(x, t)`: x any shape, t a float in [0, 1]; returns the shape of x."""


class FlowDraws(NamedTuple):
    """What training draws for every chunk: `noise` x_1 `[..., H, A]`, its flow `time` `[...]`, and the `way` `[...]` in
    which the robot's state is said (a row of `RobotSpec.way_masks`; None where there is one way alone)."""

    noise: Tensor
    time: Tensor
    way: Tensor | None = None

    def at(self, index: Any) -> FlowDraws:
        """Index the leading dims of all alike."""
        return FlowDraws._make(None if drawn is None else drawn[index] for drawn in self)

    def to(self, device: torch.device | str) -> FlowDraws:
        return FlowDraws._make(None if drawn is None else drawn.to(device) for drawn in self)


def interpolate(x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
    """`x_t = (1 - t) x_0 + t x_1`; `t` must broadcast against `[..., H, A]`."""
    return (1 - t) * x_0 + t * x_1


def target_velocity(x_0: Tensor, x_1: Tensor) -> Tensor:
    """`dx_t / dt = x_1 - x_0`, the same at every t."""
    return x_1 - x_0


def flow_matching_loss(velocity: Tensor, x_0: Tensor, x_1: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error between the predicted and the path's velocity.

    Args:
        velocity: `[B, H, A]`, the model's v(x_t, t).
        x_0, x_1: `[B, H, A]`, action and noise.
        mask: bool `[B, H]`, true where a step counts.
    """
    return masked_mean((velocity.float() - target_velocity(x_0, x_1).float()).square().mean(dim=-1), mask)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of `values` where `mask` is true; 0 where it is true nowhere."""
    weight = mask.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp_min(1.0)


def check_steps(num_steps: int) -> int:
    """The number of steps itself.

    Raises:
        UserError: fewer than one.
    """
    if num_steps < 1:
        raise UserError(f"flow solver steps: expected at least 1, got {num_steps}")
    return num_steps


def solve(velocity: Velocity, noise: Tensor, num_steps: int) -> Tensor:
    """Euler's method: integrate `dx/dt = v(x, t)` from noise (t = 1) to data (t = 0), in equal steps of one evaluation.

    Args:
        velocity: the field.
        noise: x at t = 1, any shape.
        num_steps: at least 1.

    Returns:
        x at t = 0, the shape of `noise`.

    Raises:
        UserError: fewer than one step.
    """
    dt = -1.0 / check_steps(num_steps)
    x = noise
    for i in range(num_steps):
        x = x + dt * velocity(x, 1.0 + i * dt)
    return x
