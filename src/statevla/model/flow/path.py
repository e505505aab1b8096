"""The straight (optimal transport) path between data and noise, and the loss that learns its velocity.

Lipman et al. 2023, "Flow Matching for Generative Modeling" (arXiv 2210.02747), equations 21 to 23 with sigma_min = 0,
written with time running from data (0) to noise (1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class FlowDraws(NamedTuple):
    """What training draws for every chunk: `noise` x_1 `[..., H, A]`, its flow `time` `[...]`, and the `way` `[...]` in
    which the robot's state is said (a row of `RobotSpec.way_masks`; None where there is one way alone)."""

    noise: Tensor
    time: Tensor
    way: Tensor | None = None

    def at(self, index: int | slice | tuple[slice, ...]) -> FlowDraws:
        """Index the leading dims of all alike."""
        return FlowDraws(self.noise[index], self.time[index], None if self.way is None else self.way[index])

    def to(self, device: torch.device) -> FlowDraws:
        way = None if self.way is None else self.way.to(device)
        return FlowDraws(self.noise.to(device), self.time.to(device), way)


def interpolate(x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
    """`x_t = (1 - t) x_0 + t x_1`; `t` must broadcast against `[..., H, A]`."""
    return (1 - t) * x_0 + t * x_1


def target_velocity(x_0: Tensor, x_1: Tensor) -> Tensor:
    """`dx_t / dt = x_1 - x_0`, the same at every t."""
    return x_1 - x_0


def flow_matching_loss(velocity: Tensor, x_0: Tensor, x_1: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error between the predicted and the path's velocity.

    Args:
        velocity: `[B, H, A]`, the model's v(x_t, t).
        x_0, x_1: `[B, H, A]`, action and noise.
        mask: bool `[B, H]`, true where a step counts; None counts all.
    """
    error = (velocity.float() - target_velocity(x_0, x_1).float()).square().mean(dim=-1)
    if mask is None:
        return error.mean()
    weight = mask.to(error.dtype)
    return (error * weight).sum() / weight.sum().clamp_min(1.0)
