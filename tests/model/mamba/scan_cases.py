"""Random inputs of the selective scan, and comparison with the float64 reference."""

from __future__ import annotations

import torch
from torch import Tensor

from statevla.model.mamba import selective_scan

SEQUENCES = ("u", "delta", "B", "C", "z")


def make_inputs(
    batch: int,
    length: int,
    inner: int,
    states: int,
    dtype: torch.dtype = torch.float32,
    optional: tuple[str, ...] = ("D", "z", "delta_bias", "initial_state"),
    seed: int = 0,
) -> dict[str, Tensor]:
    """All tensors of a scan as leaves; sequences in `dtype`, parameters and state in float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {
        "u": normal(batch, length, inner),
        "delta": normal(batch, length, inner) - 2,
        "A": -torch.exp(normal(inner, states)),
        "B": normal(batch, length, states),
        "C": normal(batch, length, states),
        "D": normal(inner),
        "z": normal(batch, length, inner),
        "delta_bias": 0.3 * normal(inner),
        "initial_state": normal(batch, inner, states),
    }
    kept = {name: t for name, t in tensors.items() if name in ("u", "delta", "A", "B", "C") or name in optional}
    return {name: (t.to(dtype) if name in SEQUENCES else t).requires_grad_() for name, t in kept.items()}


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Largest deviation over the largest value."""
    scale = wanted.abs().max().clamp(min=1e-12)
    return float((found.detach().double() - wanted.detach()).abs().max() / scale.detach())


def run_with_gradients(inputs: dict[str, Tensor], softplus: bool, backend: str, seed: int = 1) -> dict[str, Tensor]:
    """Output, last state and all gradients of a random functional of both."""
    out, last = selective_scan(**inputs, delta_softplus=softplus, return_last_state=True, backend=backend)
    generator = torch.Generator().manual_seed(seed)
    grad_out = torch.randn(out.shape, generator=generator).to(out.dtype)
    grad_last = torch.randn(last.shape, generator=generator).to(last.dtype)
    if out.dtype == torch.float64:  # the same functional as a run in lower precision
        grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).double()
    gradients = torch.autograd.grad((out, last), list(inputs.values()), (grad_out, grad_last))
    return {"out": out, "last_state": last, **dict(zip(inputs, gradients))}


def reference(inputs: dict[str, Tensor], softplus: bool) -> dict[str, Tensor]:
    """The same in float64, step by step."""
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in inputs.items()}
    return run_with_gradients(exact, softplus, "reference")
