"""Euler's method from noise (t = 1) to data (t = 0)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from statevla.errors import UserError

Velocity = Callable[[Tensor, float], Tensor]
"""`v(x, t)`: x any shape, t a float in [0, 1]; returns the shape of x."""


def check_steps(num_steps: int) -> int:
    """The number of steps itself.

    Raises:
        UserError: fewer than one.
    """
    if num_steps < 1:
        raise UserError(f"flow solver steps: expected at least 1, got {num_steps}")
    return num_steps


def solve(velocity: Velocity, noise: Tensor, num_steps: int) -> Tensor:
    """Integrate `dx/dt = v(x, t)` from t = 1 to t = 0 in equal steps, each of one evaluation.

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
