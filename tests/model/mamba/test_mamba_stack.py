"""Block and stack: parameters, initialisation, causality, stepping, compilation, inference weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scan_cases import relative_error
from torch import nn

from statevla.config import TrainingConfig
from statevla.errors import UserError
from statevla.model.mamba import MambaBlock, MambaStack
from statevla.training.optimization import build_optimizer


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def functional(y: torch.Tensor) -> torch.Tensor:
    """A scalar with gradients everywhere (of a normalised output, the sum of squares is constant)."""
    return (y * torch.linspace(-1, 2, y[0].numel()).view(y.shape[1:])).sum()


def small_stack(**changes) -> MambaStack:
    torch.manual_seed(0)
    arguments = {"d_model": 24, "num_layers": 2, "d_state": 6, **changes}
    stack = MambaStack(**arguments)
    with torch.no_grad():  # steps large enough for the state to matter
        for layer in stack.layers:
            layer.mixer.dt_proj.bias.add_(3)
            layer.mixer.out_proj.weight.mul_(5)
    return stack


def test_parameter_counts_of_the_spec() -> None:
    encoder = MambaStack(256, 12, d_state=16)
    assert count(encoder.layers) == 5_256_192
    assert count(encoder) == 5_256_448
    policy = MambaStack(256, 3, d_state=64, mlp_hidden_dim=256)
    assert count(policy.layers) == 2_125_824


def test_official_parameter_names() -> None:
    names = {name for name, _ in MambaBlock(16).named_parameters()}
    assert names == {
        "A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight",
        "dt_proj.weight", "dt_proj.bias", "out_proj.weight",
    }  # fmt: skip


def test_initialisation() -> None:
    torch.manual_seed(0)
    block = MambaBlock(256, d_state=5, num_layers=4)
    torch.testing.assert_close(block.A_log.exp(), torch.arange(1.0, 6.0).repeat(512, 1))
    assert (block.D == 1).all()
    step = F.softplus(block.dt_proj.bias)
    assert step.min() >= 0.99e-3
    assert step.max() <= 0.101
    assert abs(step.log().mean() - math.log(1e-2)) < 0.2  # log-uniform: the middle is the geometric mean
    assert block.dt_proj.weight.abs().max() <= 0.25  # dt_rank 16
    bound = 1 / math.sqrt(512) / 2  # nn.Linear's bound over sqrt(4)
    assert 0.95 * bound < block.out_proj.weight.abs().max() <= bound
    parameters = dict(block.named_parameters())
    optimizer = build_optimizer(parameters, 1e-3, TrainingConfig(weight_decay=0.3))
    decaying = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    matrices = {name for name, p in parameters.items() if p.ndim > 1}
    assert {name for name, p in parameters.items() if id(p) in decaying} == matrices - {"A_log"}
    assert {"A_log", "D", "dt_proj.bias"} <= parameters.keys()


def test_equals_an_independent_block() -> None:
    """Against a direct transcription of the published equations in float64."""
    torch.manual_seed(0)
    block = MambaBlock(12, d_state=4, d_conv=3).double()
    x = torch.randn(2, 9, 12).double()
    signal, gate = (x @ block.in_proj.weight.T).chunk(2, -1)
    u = torch.zeros_like(signal)
    for t in range(9):
        for k in range(3):
            if t - k >= 0:
                u[:, t] += block.conv1d.weight[:, 0, 2 - k] * signal[:, t - k]
    u = F.silu(u + block.conv1d.bias)
    low, B, C = (u @ block.x_proj.weight.T).split([1, 4, 4], -1)
    delta = F.softplus(low @ block.dt_proj.weight.T + block.dt_proj.bias)
    h, rows = torch.zeros(2, 24, 4).double(), []
    for t in range(9):
        h = torch.exp(-delta[:, t, :, None] * block.A_log.exp()) * h
        h = h + delta[:, t, :, None] * B[:, t, None] * u[:, t, :, None]
        rows.append((h @ C[:, t, :, None])[..., 0] + block.D * u[:, t])
    wanted = (torch.stack(rows, 1) * F.silu(gate)) @ block.out_proj.weight.T
    torch.testing.assert_close(block(x), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", ["auto", "chunked"])
def test_causality_with_a_positive_control(backend: str) -> None:
    stack = small_stack(backend=backend)
    x = torch.randn(1, 50, 24)
    changed = x.clone()
    changed[:, 20] += 0.5
    with torch.no_grad():
        difference = (stack(changed) - stack(x)).abs().amax((0, 2))
    assert difference[:20].max() == 0
    assert (difference[20:] > 0).all()
    assert difference[20:24].max() > 1e-3


@pytest.mark.parametrize("mlp_hidden_dim", [0, 16])
@pytest.mark.parametrize("d_conv", [2, 3, 4])
def test_stepping_equals_the_parallel_form(d_conv: int, mlp_hidden_dim: int) -> None:
    stack = small_stack(d_conv=d_conv, mlp_hidden_dim=mlp_hidden_dim)
    x = torch.randn(3, 11, 24)
    with torch.no_grad():
        wanted, cache, outputs = stack(x), stack.allocate_cache(3), []
        for t in range(11):
            out, cache = stack.step(x[:, t], cache)
            outputs.append(out)
    torch.testing.assert_close(torch.stack(outputs, 1), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mlp_hidden_dim", [0, 16])
@pytest.mark.parametrize("length", [1, 37])
def test_last_output_alone(length: int, mlp_hidden_dim: int) -> None:
    stack = small_stack(mlp_hidden_dim=mlp_hidden_dim)
    x = torch.randn(2, length, 24)
    whole, alone = stack(x)[:, -1], stack(x, last_only=True)
    torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-6)
    parameters = list(stack.parameters())
    wanted = torch.autograd.grad(functional(whole), parameters)
    for found, expected in zip(torch.autograd.grad(functional(alone), parameters), wanted):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_residual_stream_stays_in_float32_under_autocast() -> None:
    stack, x = small_stack(), torch.randn(2, 30, 24, requires_grad=True)
    wanted = stack(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = stack(x)
    assert found.dtype == torch.float32
    error = relative_error(found, wanted)
    assert 1e-6 < error < 2e-2  # lower precision was really used, and is accurate
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_backends_agree_on_gradients_of_the_stack() -> None:
    x = torch.randn(2, 40, 24)
    gradients = {}
    for backend in ("numba", "reference"):
        stack = small_stack(backend=backend, mlp_hidden_dim=8)
        functional(stack(x)).backward()
        gradients[backend] = {name: p.grad for name, p in stack.named_parameters()}
    for name, wanted in gradients["reference"].items():
        assert relative_error(gradients["numba"][name], wanted) < 1e-4, name


@pytest.mark.parametrize("backend", ["numba", "chunked"])
def test_compiles_as_one_graph(backend: str) -> None:
    stack = small_stack(backend=backend)
    x = torch.randn(2, 9, 24)
    wanted = stack(x)
    parameters = list(stack.parameters())
    expected = torch.autograd.grad(functional(wanted), parameters)
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    found = compiled(x)
    torch.testing.assert_close(found, wanted)
    for a, b in zip(torch.autograd.grad(functional(found), parameters), expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_exports_with_a_dynamic_length() -> None:
    stack = small_stack().eval()
    x = torch.randn(2, 40, 24)
    length = torch.export.Dim("length", min=2, max=512)
    program = torch.export.export(stack, (x,), dynamic_shapes={"x": {1: length}})
    for steps in (40, 17):
        torch.testing.assert_close(program.module()(x[:, :steps]), stack(x[:, :steps]))


def test_a_convolution_of_five_taps_is_refused() -> None:
    with pytest.raises(UserError, match="d_conv: expected 2, 3 or 4, got 5"):
        MambaBlock(16, d_conv=5)
