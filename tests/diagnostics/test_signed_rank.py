"""The signed-rank test against tables, by counting all signs, and against SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import wilcoxon

from statevla.diagnostics.signed_rank import signed_rank_p_value


def test_known_values() -> None:
    # All n differences on one side: one assignment of signs out of 2^n.
    assert signed_rank_p_value(np.arange(1.0, 6.0)) == pytest.approx(1 / 32, abs=1e-15)
    assert signed_rank_p_value(-np.arange(1.0, 6.0)) == 1.0
    # As many subsets of the ranks 1 to 5 sum to 9 or more as to 6 or less: 1 + 1 + 1 + 2 + 2 + 3 + 3.
    assert signed_rank_p_value(np.array([-1.0, -2.0, -3.0, 4.0, 5.0])) == pytest.approx(13 / 32, abs=1e-15)
    # Darwin's cross- and self-fertilised maize: T- = 24 of 15 pairs (Hollander & Wolfe), p = 0.0206.
    maize = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48.0])
    assert signed_rank_p_value(maize) == pytest.approx(0.0206, abs=5e-5)


@pytest.mark.parametrize("differences", [[1.0, 1.0, -1.0, 2.0, 3.0, -3.0], [0.0, 2.0, 2.0, 2.0, -2.0]])
def test_ties_by_counting_all_signs(differences: list[float]) -> None:
    values = np.array([d for d in differences if d])
    ranks = np.array([np.mean([i + 1 for i, v in enumerate(sorted(abs(values))) if v == abs(d)]) for d in values])
    observed = ranks[values > 0].sum()
    sums = [ranks[np.array(signs)].sum() for signs in itertools.product([False, True], repeat=len(values))]
    assert signed_rank_p_value(np.array(differences)) == pytest.approx(np.mean(np.array(sums) >= observed), abs=1e-12)


# SciPy counts exactly only without ties; to one decimal there are many.
@pytest.mark.parametrize(
    ("count", "shift", "decimals", "method"),
    [(7, 0.3, 12, "exact"), (50, 0.2, 12, "exact"), (51, 0.1, 12, "asymptotic"), (400, -0.05, 1, "asymptotic")],
)
def test_as_scipy_says(count: int, shift: float, decimals: int, method: str) -> None:
    values = np.random.default_rng(count).normal(shift, 1.0, count).round(decimals)
    expected = wilcoxon(values, alternative="greater", method=method).pvalue
    assert signed_rank_p_value(values) == pytest.approx(expected, rel=1e-9)


def test_nothing_differs() -> None:
    assert signed_rank_p_value(np.zeros(20)) == 1.0
