"""Measures of a world model against worlds whose answer is known."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from statevla.diagnostics.sequences import LatentSequence
from statevla.diagnostics.world_model import (
    Windows,
    action_retrieval,
    copy_skill,
    derangement,
    go_no_go,
    rank_me,
    rollout,
    straightness,
    within_episode_variance,
)

DIM = 6


class Integrator:
    """A world where the next state is the state plus the action, and a model that knows it up to `noise`."""

    def __init__(self, uses_actions: bool = True) -> None:
        self.uses_actions = uses_actions

    def predict_next(self, z: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return z + action if self.uses_actions else z


def make_subject(model: Any) -> Any:
    return SimpleNamespace(model=model, device=torch.device("cpu"))


def make_sequences(count: int = 6, length: int = 30) -> list[LatentSequence]:
    generator = torch.Generator().manual_seed(0)
    sequences = []
    for episode in range(count):
        actions = torch.randn(length - 1, DIM, generator=generator)
        start = 5 * torch.randn(1, DIM, generator=generator)
        z = torch.cat([start, start + actions.cumsum(0)])
        sequences.append(LatentSequence(episode, torch.arange(length), z, z, actions))
    return sequences


@pytest.mark.parametrize("horizon", [1, 2, 4, 8])
def test_a_perfect_model_has_skill_one_and_a_copier_zero(horizon: int) -> None:
    windows = Windows.of(make_sequences(), horizon)
    assert windows is not None
    assert windows.actions.shape == (6 * (30 - horizon), horizon, DIM)
    for model, skill in ((Integrator(), 1.0), (Integrator(uses_actions=False), 0.0)):
        predicted = rollout(make_subject(model), windows.z, windows.actions)
        assert copy_skill(predicted, windows.now, windows.later) == pytest.approx(skill, abs=1e-6)
    worse = windows.now + 2 * (windows.now - windows.later)
    assert copy_skill(worse, windows.now, windows.later) < -1


def test_retrieval_finds_the_action_only_if_actions_matter() -> None:
    sequences = make_sequences()
    assert action_retrieval(make_subject(Integrator()), sequences) == 1.0
    assert action_retrieval(make_subject(Integrator(uses_actions=False)), sequences) == pytest.approx(1 / 64)
    wrong = SimpleNamespace(predict_next=lambda z, action: z + action.roll(1, dims=-1))
    assert action_retrieval(make_subject(wrong), sequences) < 0.2


def test_aderangement_leaves_nothing_in_place() -> None:
    for count in (2, 3, 50):
        order = derangement(count)
        assert sorted(order.tolist()) == list(range(count))
        assert not (order == torch.arange(count)).any()


def test_variance_fraction_tells_identity_from_motion() -> None:
    centres = 10 * torch.randn(8, DIM, generator=torch.Generator().manual_seed(1))
    still = [centre.expand(20, -1) for centre in centres]
    assert within_episode_variance(still) == pytest.approx(0.0, abs=1e-6)
    moving = torch.randn(20, DIM, generator=torch.Generator().manual_seed(2))
    assert within_episode_variance([moving.clone() for _ in range(8)]) == pytest.approx(1.0, abs=1e-5)


def test_rank_is_the_number_of_equal_directions() -> None:
    basis = torch.linalg.qr(torch.randn(100, 10, generator=torch.Generator().manual_seed(3))).Q
    assert rank_me(basis) == pytest.approx(10.0, rel=1e-4)
    assert rank_me(torch.ones(50, 10)) == pytest.approx(1.0, rel=1e-4)
    # Two directions, one twice as strong: exp of the entropy of (2/3, 1/3).
    two = basis[:, :2] * torch.tensor([2.0, 1.0])
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert rank_me(two) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_straightness_of_a_line_and_of_a_zigzag() -> None:
    line = torch.arange(10.0)[:, None] * torch.ones(1, DIM)
    zigzag = torch.tensor([0.0, 1.0] * 5)[:, None] * torch.ones(1, DIM)
    assert straightness([line]) == pytest.approx(1.0)
    assert straightness([zigzag]) == pytest.approx(-1.0)


def test_thresholds_are_applied_to_what_was_measured() -> None:
    assert go_no_go({"copy_skill_1": 0.5, "action_sensitivity_1": 1.1}) == {
        "copy_skill_1": True,
        "action_sensitivity_1": False,
    }
