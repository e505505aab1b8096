"""The solver against closed-form solutions, and its measured order of convergence."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from statevla.errors import UserError
from statevla.model.flow import flow_matching_loss, interpolate, solve, target_velocity


def test_order_of_convergence() -> None:
    """dx/dt = (1 + t) x has x(0) = x(1) exp(-3/2)."""
    noise = torch.tensor([1.0, -2.0], dtype=torch.float64)
    exact = noise * math.exp(-1.5)
    errors = [(solve(lambda x, t: (1 + t) * x, noise, steps) - exact).abs().max().item() for steps in (32, 64, 128)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([1, 1], abs=0.15)


@pytest.mark.parametrize("steps", [1, 3])
def test_straight_path_is_exact(steps: int) -> None:
    """Along one straight path the velocity is constant: any number of steps ends at the data."""
    x_0, x_1 = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(solve(lambda x, t: target_velocity(x_0, x_1), x_1, steps), x_0)


def test_solver_meets_the_path() -> None:
    """The solver's clock and the path's agree: it is called at t with x_t of that very t."""
    x_0, x_1 = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        torch.testing.assert_close(x, interpolate(x_0, x_1, torch.tensor(t, dtype=torch.float64)))
        return target_velocity(x_0, x_1)

    solve(velocity, x_1, 5)


def test_bad_arguments() -> None:
    with pytest.raises(UserError, match="at least 1, got 0"):
        solve(lambda x, t: x, torch.zeros(1), 0)


def test_loss_counts_only_unmasked_steps() -> None:
    x_0, x_1 = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    velocity = x_1 - x_0
    velocity[:, 2:] += 100.0
    mask = torch.tensor([[True, True, False, False]] * 2)
    assert flow_matching_loss(velocity, x_0, x_1, mask) == 0
    assert flow_matching_loss(velocity, x_0, x_1, torch.ones_like(mask)) > 1000
    assert flow_matching_loss(velocity, x_0, x_1, torch.zeros_like(mask)) == 0
