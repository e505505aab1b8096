"""Wilcoxon's signed-rank test: are paired values larger than their partners?"""

from __future__ import annotations

import math

import numpy as np

MAX_EXACT = 50
"""Pairs up to which every assignment of signs is counted; beyond, the normal distribution is close enough."""


def signed_rank_p_value(differences: np.ndarray) -> float:
    """One-sided p value against "as often below 0 as above, and as far" (Wilcoxon 1945).

    Args:
        differences: float `[N]`, of the pairs; zeros say nothing and are left out, ties share their mean rank.

    Returns:
        How likely a sum of the positive differences' ranks as large as theirs is by chance; 1 without differences.
    """
    differences = np.asarray(differences, np.float64)
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    _, inverse, counts = np.unique(np.abs(differences), return_inverse=True, return_counts=True)
    # Twice the mean rank of each group of equals: an integer.
    doubled = (2 * np.cumsum(counts) - counts + 1)[inverse]
    observed = int(doubled[differences > 0].sum())
    if len(differences) <= MAX_EXACT:
        return _exact_tail(doubled, observed)
    # Over all signs, the doubled sum has half the total as its mean and a quarter of the squares as its variance.
    excess = (observed - doubled.sum() / 2) / math.sqrt(float(np.sum(doubled.astype(np.float64) ** 2)) / 4)
    return 0.5 * math.erfc(excess / math.sqrt(2))


def _exact_tail(weights: np.ndarray, observed: int) -> float:
    """The share of all subsets of `weights` whose sum is at least `observed`."""
    share = np.zeros(int(weights.sum()) + 1)
    share[0] = 1.0
    for weight in weights:
        share[weight:] = share[weight:] / 2 + share[:-weight] / 2
        share[:weight] /= 2
    return float(share[observed:].sum())
