"""Every backend against the float64 definition: outputs, last state and all gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import make_inputs, reference, relative_error, run_with_gradients

from statevla.errors import UserError
from statevla.model.mamba import selective_scan

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
OPTIONAL = ("D", "z", "delta_bias", "initial_state")


def assert_equal_to_reference(inputs: dict[str, torch.Tensor], softplus: bool, backend: str) -> None:
    tolerance = TOLERANCE[inputs["u"].dtype]
    wanted = reference(inputs, softplus)
    for name, found in run_with_gradients(inputs, softplus, backend).items():
        assert relative_error(found, wanted[name]) < tolerance, name


# Four channels and two states at least: of a single number, cancellation alone can cost more than the tolerance.
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 70),
    inner=st.integers(4, 50),
    states=st.integers(2, 21),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    optional=st.sets(st.sampled_from(OPTIONAL)),
    softplus=st.booleans(),
    backend=st.sampled_from(["numba", "chunked"]),
    seed=st.integers(0, 1000),
)
def test_random_shapes(batch, length, inner, states, dtype, optional, softplus, backend, seed) -> None:
    inputs = make_inputs(batch, length, inner, states, dtype, tuple(sorted(optional)), seed)
    if not softplus:  # the step size is used as it is: it must be positive
        inputs["delta"] = (0.1 * inputs["delta"].detach().abs()).requires_grad_()
        if "delta_bias" in inputs:
            inputs["delta_bias"] = inputs["delta_bias"].detach().abs().requires_grad_()
    assert_equal_to_reference(inputs, softplus, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("length", "inner", "states"), [(395, 64, 16), (12, 48, 64), (1, 16, 16), (33, 17, 5), (3, 1, 1)]
)
def test_shapes_of_the_model_and_odd_ones(length: int, inner: int, states: int, dtype: torch.dtype) -> None:
    assert_equal_to_reference(make_inputs(2, length, inner, states, dtype), True, "numba")


def test_strided_inputs_give_the_same() -> None:
    inputs = make_inputs(2, 40, 24, 6, optional=("D", "z", "delta_bias"))
    plain = run_with_gradients(inputs, True, "numba")

    def strided(tensor: torch.Tensor, kind: int) -> torch.Tensor:
        if kind == 0:  # a slice of a wider projection
            return torch.cat([torch.randn_like(tensor), tensor], -1).chunk(2, -1)[1]
        if kind == 1:  # channels first in memory
            return tensor.transpose(1, 2).contiguous().transpose(1, 2)
        return tensor.repeat_interleave(2, 1)[:, ::2]  # every second row

    for kind in range(3):
        views = {n: strided(t.detach(), kind) if t.dim() == 3 else t.detach() for n, t in inputs.items()}
        assert kind == 2 or not views["u"].is_contiguous()
        found = run_with_gradients({n: t.requires_grad_() for n, t in views.items()}, True, "numba")
        for name, wanted in plain.items():
            torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-6)


def test_mixed_dtypes_keep_their_own_gradients() -> None:
    inputs = make_inputs(2, 20, 24, 8, optional=("D", "z", "delta_bias"))
    inputs["delta"] = inputs["delta"].detach().bfloat16().requires_grad_()
    inputs["D"] = inputs["D"].detach().bfloat16().requires_grad_()
    found = run_with_gradients(inputs, True, "numba")
    wanted = reference(inputs, True)
    for name in inputs:
        assert found[name].dtype == inputs[name].dtype
        assert relative_error(found[name], wanted[name]) < 2e-2, name
    assert relative_error(found["u"], wanted["u"]) < 1e-5


def test_states_carry_over_between_calls() -> None:
    inputs = {n: t.detach() for n, t in make_inputs(2, 50, 20, 6, optional=("D", "z", "delta_bias")).items()}
    whole = selective_scan(**inputs, delta_softplus=True)

    def part(first: int, last: int, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        cut = {n: t[:, first:last] if t.dim() == 3 else t for n, t in inputs.items()}
        return selective_scan(**cut, delta_softplus=True, initial_state=state, return_last_state=True)

    head, state = part(0, 37, None)
    tail, _ = part(37, 50, state)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_gradcheck_through_the_operator(backend: str) -> None:
    inputs = {n: t.detach().double().requires_grad_() for n, t in make_inputs(2, 5, 3, 2, seed=4).items()}
    names = list(inputs)

    def function(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        named = dict(zip(names, tensors))
        return selective_scan(**named, delta_softplus=True, return_last_state=True, backend=backend)

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


def test_operator_passes_pytorchs_own_checks() -> None:
    inputs = make_inputs(2, 9, 20, 5)
    tensors = [inputs[n] for n in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")]
    arguments = (*tensors, True, True, True, "numba")
    torch.library.opcheck(torch.ops.statevla.selective_scan.default, arguments)


def test_nan_is_not_swallowed() -> None:
    for name in ("u", "delta", "A", "B", "C", "z"):
        inputs = {n: t.detach().clone() for n, t in make_inputs(1, 6, 16, 4).items()}
        inputs[name].view(-1)[0] = float("nan")
        assert selective_scan(**inputs, delta_softplus=True, backend="numba").isnan().any(), name


@pytest.mark.parametrize("backend", ["numba", "chunked", "reference"])
def test_extreme_steps_stay_finite(backend: str) -> None:
    inputs = {n: t.detach() for n, t in make_inputs(1, 40, 16, 4, optional=()).items()}
    inputs["delta"] = torch.full_like(inputs["delta"], 90.0)
    inputs["delta"][:, ::2] = -90.0
    out = selective_scan(**inputs, delta_softplus=True, backend=backend)
    wanted = selective_scan(**{n: t.double() for n, t in inputs.items()}, delta_softplus=True, backend="reference")
    assert relative_error(out, wanted) < 1e-5


def test_wrong_shapes_are_named() -> None:
    inputs = {n: t.detach() for n, t in make_inputs(2, 7, 6, 3).items()}
    with pytest.raises(UserError, match=r"expected B \[2, 7, 3\], got \[2, 3, 7\]"):
        selective_scan(**{**inputs, "B": inputs["B"].transpose(1, 2)})
    with pytest.raises(UserError, match="channel-last"):
        selective_scan(**{**inputs, "u": inputs["u"][0]})
