"""The way out from under what overhangs an object."""

from __future__ import annotations

import numpy as np

from statevla.worlds.libero.overhang import way_in, way_out


def _block(low: tuple[float, float, float], high: tuple[float, float, float]) -> np.ndarray:
    axes = [np.arange(a, b + 1e-9, 0.01) for a, b in zip(low, high)]
    return np.stack(np.meshgrid(*axes), -1).reshape(-1, 3)


BOWL = _block((-0.05, -0.05, 0.0), (0.05, 0.05, 0.05))


def test_the_way_leads_out_at_the_nearer_side() -> None:
    drawer = _block((0.02, -0.2, 0.15), (0.3, 0.2, 0.2))  # over the last 3 cm of the bowl
    way = way_out(BOWL, drawer)
    assert way[0] < -0.04
    assert abs(way[1]) < 0.01
    gap = drawer[:, 0].min() - (BOWL[:, 0].max() + way[0])
    assert 0.02 < gap < 0.04


def test_what_stands_beside_or_lower_is_no_overhang() -> None:
    beside = _block((0.07, -0.2, 0.0), (0.2, 0.2, 0.3))
    below = _block((-0.2, -0.2, -0.05), (0.2, 0.2, 0.0))
    for obstacles in (beside, below, np.zeros((0, 3))):
        np.testing.assert_array_equal(way_out(BOWL, obstacles), np.zeros(2))


def test_under_a_roof_there_is_no_way_out() -> None:
    np.testing.assert_array_equal(way_out(BOWL, _block((-0.5, -0.5, 0.2), (0.5, 0.5, 0.2))), np.zeros(2))


def test_an_object_comes_down_where_least_is_over_it() -> None:
    walls = np.concatenate([_block((-0.1, -0.09, 0.0), (0.1, -0.08, 0.1)), _block((-0.1, 0.08, 0.0), (0.1, 0.09, 0.1))])
    handle = _block((-0.02, 0.04, 0.2), (0.02, 0.2, 0.22))
    way = way_in(BOWL, walls, handle)
    assert abs(way[0]) > 0.03  # beside the handle
    assert -0.02 <= way[1] <= 0.0  # and off it, as far as the walls let it
    np.testing.assert_array_equal(way_in(BOWL, walls, np.zeros((0, 3))), np.zeros(2))
    np.testing.assert_array_equal(way_in(BOWL, walls, handle + np.array([0.0, 0.1, 0.0])), np.zeros(2))
