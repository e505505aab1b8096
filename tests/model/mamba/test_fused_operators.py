"""Convolution with SiLU and addition with RMSNorm: kernel against plain float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import relative_error

from statevla.model.mamba.conv import causal_conv1d_silu
from statevla.model.mamba.norm import add_rms_norm

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 70),
    inner=st.integers(4, 50),
    width=st.integers(2, 4),
    dtype=DTYPES,
    seed=st.integers(0, 1000),
)
def test_convolution(batch, length, inner, width, dtype, seed) -> None:
    torch.manual_seed(seed)
    both = torch.randn(batch, length, 2 * inner).to(dtype).requires_grad_()  # as in_proj gives it: a strided half
    weight, bias = torch.randn(inner, 1, width, requires_grad=True), torch.randn(inner, requires_grad=True)
    grad = torch.randn(batch, length, inner).to(dtype)
    out = causal_conv1d_silu(both.chunk(2, -1)[1], weight, bias, "numba")
    found = torch.autograd.grad(out, (both, weight, bias), grad)
    exact = [t.detach().double().requires_grad_() for t in (both, weight, bias)]
    wanted_out = causal_conv1d_silu(exact[0].chunk(2, -1)[1], exact[1], exact[2], "reference")
    wanted = torch.autograd.grad(wanted_out, exact, grad.double())
    assert out.dtype == dtype
    for a, b in zip((out, *found), (wanted_out, *wanted)):
        assert relative_error(a, b) < TOLERANCE[dtype]


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 150),
    dim=st.integers(2, 70),
    dtype=DTYPES,
    update_dtype=st.sampled_from([None, torch.float32, torch.bfloat16]),
    uses=st.sampled_from(["both", "normed", "total"]),
    seed=st.integers(0, 1000),
)
def test_addition_and_norm(rows, dim, dtype, update_dtype, uses, seed) -> None:
    torch.manual_seed(seed)
    inputs = {"residual": torch.randn(rows, dim), "weight": torch.randn(dim)}
    if update_dtype is not None:
        inputs["update"] = torch.randn(rows, dim).to(update_dtype)
    grads = [torch.randn(rows, dim), torch.randn(rows, dim).to(dtype)]
    picked = {"both": [0, 1], "normed": [1], "total": [0]}[uses]
    if uses == "total" and update_dtype is None:
        picked = [1]

    def run(tensors, backend, out_dtype):
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        outputs = add_rms_norm(leaves["residual"], leaves.get("update"), leaves["weight"], 1e-5, out_dtype, backend)
        chosen = [outputs[i] for i in picked]
        given_grads = [grads[i].to(outputs[i].dtype) for i in picked]
        used = [t for n, t in leaves.items() if n != "weight" or 1 in picked]
        return (*outputs, *torch.autograd.grad(chosen, used, given_grads))

    found = run(inputs, "numba", dtype)
    wanted = run({name: t.double() for name, t in inputs.items()}, "reference", torch.float64)
    assert found[0].dtype == torch.float32
    assert found[1].dtype == dtype
    for a, b in zip(found, wanted):
        tolerance = 2e-2 if torch.bfloat16 in (dtype, update_dtype) else 1e-5
        # Of two numbers' norm, a gradient may be the small difference of terms near 1: it is as exact as they are.
        assert (a.double() - b).abs().max() < tolerance * b.abs().max().clamp_min(1)


@pytest.mark.parametrize("backend", ["numba", "chunked"])
def test_convolution_is_causal(backend: str) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 40, 20), torch.randn(20, 1, 4), torch.randn(20)
    changed = x.clone()
    changed[:, 25] += 1
    difference = (
        causal_conv1d_silu(changed, weight, bias, backend) - causal_conv1d_silu(x, weight, bias, backend)
    ).abs()
    assert difference[:, :25].max() == 0
    assert (difference[:, 25:29].amax((0, 2)) > 0).all()
    assert difference[:, 29:].max() == 0


def test_operators_pass_pytorchs_own_checks() -> None:
    x = torch.randn(2, 9, 20, requires_grad=True)
    weight, bias = torch.randn(20, 1, 4, requires_grad=True), torch.randn(20, requires_grad=True)
    torch.library.opcheck(torch.ops.statevla.causal_conv1d_silu.default, (x, weight, bias))
    update, scale = torch.randn(2, 9, 20, requires_grad=True), torch.ones(20, requires_grad=True)
    torch.library.opcheck(torch.ops.statevla.add_rms_norm.default, (x, update, scale, 1e-5, torch.float32))


def test_module_equals_the_fused_norm() -> None:
    norm, x = torch.nn.RMSNorm(24, 1e-5), torch.randn(3, 5, 24)
    torch.testing.assert_close(norm(x), add_rms_norm(x, None, norm.weight, norm.eps, torch.float32)[1])
    rms = norm(x).pow(2).mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.ones(3, 5), rtol=1e-3, atol=1e-3)
