"""Adapters around a block's projections (LoRA) are heard, in `forward`, in `step` and when acting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from statevla.config import Config
from statevla.model.mamba.block import MambaBlock
from statevla.model.statevla_model import StateVLA
from statevla.robots import LIBERO

PROJECTIONS = ("in_proj", "x_proj", "dt_proj", "out_proj")


class Adapter(nn.Module):
    """LoRA as PEFT wraps a linear layer: its weight and bias are the layer's, its output is not."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features))
        self.up = nn.Parameter(torch.randn(base.out_features, rank))

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        linear = nn.Linear(self.base.in_features, self.base.out_features, self.base.bias is not None)
        linear.weight.copy_(self.base.weight + self.up @ self.down)
        if linear.bias is not None:
            linear.bias.copy_(self.base.bias)
        return linear


@pytest.mark.parametrize("name", PROJECTIONS)
def test_block(name: str) -> None:
    torch.manual_seed(0)
    block = MambaBlock(16, d_state=4)
    x = 3 * torch.randn(2, 5, 16)
    before = block(x)
    adapter = Adapter(getattr(block, name))
    setattr(block, name, adapter)
    whole, last = block(x), block(x, last_only=True)
    assert (whole - before).abs().max() > 1e-3 * before.abs().max()
    whole.square().sum().backward()
    assert adapter.up.grad is not None
    assert adapter.up.grad.abs().max() > 0
    cache, steps = block.allocate_cache(2), []
    with torch.no_grad():
        for t in range(5):
            y, cache = block.step(x[:, t], cache)
            steps.append(y)
    setattr(block, name, adapter.merged())
    expected = block(x)
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last, expected[:, -1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.stack(steps, dim=1), expected, atol=1e-4, rtol=1e-4)


def test_acting_does_not_read_past_an_adapter(tiny_config: Config) -> None:
    model = StateVLA(tiny_config, LIBERO).prepare_for_inference("fp32")
    was_prepared = model.is_prepared
    assert model.policy is not None
    layer = next(module for module in model.policy.modules() if isinstance(module, MambaBlock))
    layer.in_proj = Adapter(layer.in_proj)
    assert was_prepared
    assert not model.prepare_for_inference("fp32").is_prepared
