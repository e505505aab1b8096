"""The vector functions against NumPy in float64, lane by lane."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from statevla.model.kernels import exponential, memory
from statevla.model.kernels.call import LANES


@njit
def _apply_exp2(source, target, count):
    for i in range(0, count, LANES):
        memory.store(target, i, exponential.exp2(memory.load(source, i)))


@njit
def _apply_softplus(source, target, count):
    for i in range(0, count, LANES):
        x = memory.load(source, i)
        memory.store(target, i, exponential.softplus(x, exponential.exp_of_minus_magnitude(x)))


@njit
def _apply_softplus_slope(source, target, count):
    for i in range(0, count, LANES):
        x = memory.load(source, i)
        memory.store(target, i, exponential.softplus_slope(x, exponential.exp_of_minus_magnitude(x)))


@njit
def _apply_sigmoid(source, target, count):
    for i in range(0, count, LANES):
        memory.store(target, i, exponential.sigmoid(memory.load(source, i)))


@njit
def _apply_bf16(source, target, count):
    for i in range(0, count, LANES):
        memory.store_bf16(target, i, memory.load(source, i))


def evaluate(function, values: np.ndarray) -> np.ndarray:
    source = np.zeros(-(-len(values) // LANES) * LANES, np.float32)
    source[: len(values)] = values
    target = np.empty_like(source)
    function(source.ctypes.data, target.ctypes.data, len(source))
    return target[: len(values)]


def worst_relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.max(np.abs(found.astype(np.float64) - wanted) / np.abs(wanted)))


def test_exp2() -> None:
    x = np.linspace(-125, 125, 100_003, dtype=np.float32)
    assert worst_relative(evaluate(_apply_exp2, x), np.exp2(x.astype(np.float64))) < 2e-7
    edge = evaluate(_apply_exp2, np.array([0.0, -1e4, 1e4, np.nan, -np.inf], np.float32))
    assert edge[0] == 1.0  # exactly, or slow modes would drift
    assert edge[1] < 2e-38
    assert edge[2] > 3e38
    assert np.isnan(edge[3])
    assert edge[4] < 2e-38


def test_softplus() -> None:
    x = np.linspace(-80, 80, 100_003, dtype=np.float32)
    assert worst_relative(evaluate(_apply_softplus, x), np.logaddexp(0, x.astype(np.float64))) < 6e-6
    edge = evaluate(_apply_softplus, np.array([np.nan, -1e4, 1e4], np.float32))
    assert np.isnan(edge[0])
    assert 0.0 <= edge[1] < 2e-38
    assert edge[2] == 1e4
    near = np.linspace(-8, 80, 100_003, dtype=np.float32)
    assert worst_relative(evaluate(_apply_softplus, near), np.logaddexp(0, near.astype(np.float64))) < 1e-6


def test_sigmoid() -> None:
    for function in (_apply_sigmoid, _apply_softplus_slope):
        for low, accuracy in ((-80, 6e-6), (-8, 1e-6)):
            x = np.linspace(low, 80, 100_003, dtype=np.float32)
            assert worst_relative(evaluate(function, x), 1 / (1 + np.exp(-x.astype(np.float64)))) < accuracy
        edge = evaluate(function, np.array([np.nan, -1e4, 1e4], np.float32))
        assert np.isnan(edge[0])
        assert 0.0 <= edge[1] < 2e-38
        assert edge[2] == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_bf16_rounds_as_pytorch_does(seed: int) -> None:
    import torch

    x = np.random.default_rng(seed).normal(size=4 * LANES).astype(np.float32)
    x[:4] = [np.nan, np.inf, -np.inf, 3.4e38]
    target = np.empty(len(x), np.uint16)
    _apply_bf16(x.ctypes.data, target.ctypes.data, len(x))
    wanted = torch.from_numpy(x).bfloat16()
    found = torch.from_numpy(target.view(np.int16)).view(torch.bfloat16)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
