"""Fixed-step ODE solvers from noise (t = 1) to data (t = 0)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from statevla.errors import UserError

Velocity = Callable[[Tensor, float], Tensor]
"""`v(x, t)`: x any shape, t a float in [0, 1]; returns the shape of x."""


def euler_step(velocity: Velocity, x: Tensor, t: float, dt: float) -> Tensor:
    """First order: one evaluation."""
    return x + dt * velocity(x, t)


def midpoint_step(velocity: Velocity, x: Tensor, t: float, dt: float) -> Tensor:
    """Second order: two evaluations (explicit midpoint)."""
    half = x + 0.5 * dt * velocity(x, t)
    return x + dt * velocity(half, t + 0.5 * dt)


def heun_step(velocity: Velocity, x: Tensor, t: float, dt: float) -> Tensor:
    """Second order: two evaluations (explicit trapezoid)."""
    slope = velocity(x, t)
    return x + 0.5 * dt * (slope + velocity(x + dt * slope, t + dt))


SOLVERS = {"euler": euler_step, "midpoint": midpoint_step, "heun": heun_step}


def solve(velocity: Velocity, noise: Tensor, num_steps: int, method: str = "euler") -> Tensor:
    """Integrate `dx/dt = v(x, t)` from t = 1 to t = 0 in equal steps.

    Args:
        velocity: the field.
        noise: x at t = 1, any shape.
        num_steps: at least 1.
        method: a key of `SOLVERS`.

    Returns:
        x at t = 0, the shape of `noise`.

    Raises:
        UserError: unknown method, or fewer than one step.
    """
    if method not in SOLVERS:
        raise UserError(f"flow solver '{method}': expected one of {', '.join(SOLVERS)}")
    if num_steps < 1:
        raise UserError(f"flow solver steps: expected at least 1, got {num_steps}")
    step = SOLVERS[method]
    dt = -1.0 / num_steps
    x = noise
    for i in range(num_steps):
        x = step(velocity, x, 1.0 + i * dt, dt)
    return x
