"""A `MambaStack` as operations of a program."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from statevla.model.mamba.block import MambaBlock
from statevla.model.mamba.stack import GatedMLP, MambaStack
from statevla.model.program.program import PackedWeight, Program


class PackedBlock:
    """The weights of a `MambaBlock`, packed once for all programs."""

    def __init__(self, block: MambaBlock, dtype: torch.dtype) -> None:
        in_signal, in_gate = block.in_proj.weight.chunk(2)
        self.signal, self.gate = PackedWeight(in_signal, None, dtype), PackedWeight(in_gate, None, dtype)
        self.selection = PackedWeight(block.x_proj.weight, None, dtype)
        self.delta = PackedWeight(block.dt_proj.weight, None, dtype)
        self.out = PackedWeight(block.out_proj.weight, None, dtype)
        self.A = block.decay().detach()


class PackedMLP:
    """The weights of a `GatedMLP`, packed once for all programs."""

    def __init__(self, mlp: GatedMLP, dtype: torch.dtype) -> None:
        of_value, of_gate = mlp.fc1.weight.chunk(2)
        self.value, self.gate = PackedWeight(of_value, None, dtype), PackedWeight(of_gate, None, dtype)
        self.out = PackedWeight(mlp.fc2.weight, None, dtype)


class PackedStack:
    """The weights of a stack, packed once for all programs."""

    def __init__(self, stack: MambaStack, dtype: torch.dtype) -> None:
        self.stack, self.dtype = stack, dtype
        self.mixers = [PackedBlock(layer.mixer, dtype) for layer in stack.typed_layers()]
        self.mlps = [None if layer.mlp is None else PackedMLP(layer.mlp, dtype) for layer in stack.typed_layers()]

    def add(self, program: Program, residual: Tensor, batch: int, last_only: bool = False) -> Tensor:
        """Add the stack's operations.

        Args:
            residual: float32 `[B * L, D]`, the input; overwritten.
            last_only: compute the last output of each sequence alone.

        Returns:
            Float32 `[B * L, D]`, or `[B, D]` with `last_only`.
        """
        layers, length = self.stack.typed_layers(), residual.shape[0] // batch
        width, dtype = self.stack.d_model, self.dtype
        normed = program.shared("normed", batch * length, width, dtype)
        last = slice(length - 1, None, length)
        for i, (layer, mixer, mlp) in enumerate(zip(layers, self.mixers, self.mlps, strict=True)):
            is_last = last_only and i + 1 == len(layers)
            program.norm(residual, normed, layer.norm.weight, layer.norm.eps)
            self._mix(program, layer.mixer, mixer, normed, residual, batch, last if is_last else None)
            if is_last:
                residual, normed = residual[last], normed[last]
            if mlp is not None:
                _gated_mlp(program, mlp, layer.norm2, normed, residual)
        out = program.shared("out", residual.shape[0], width, torch.float32)
        program.norm(residual, out, self.stack.norm_f.weight, self.stack.norm_f.eps)
        return out

    def _mix(
        self,
        program: Program,
        block: MambaBlock,
        ready: PackedBlock,
        x: Tensor,
        residual: Tensor,
        batch: int,
        last: slice | None,
    ) -> None:
        """The mixer of normed `x` `[B * L, D]`, added to `residual`; only of the rows `last`, if given."""
        rows, inner, dtype = x.shape[0], block.d_inner, self.dtype
        kept = x if last is None else x[last]
        signal, u, delta = (program.shared(name, rows, inner, dtype) for name in ("signal", "u", "delta"))
        gate = program.shared("gate", kept.shape[0], inner, dtype)
        selection = program.shared("selection", rows, ready.selection.out_features, dtype)
        y = signal  # which nobody needs any more by then
        with program.together():
            program.matmul(x, ready.signal, signal)
            program.matmul(kept, ready.gate, gate)
        assert block.conv1d.bias is not None
        program.conv(signal, u, block.conv1d.weight, block.conv1d.bias, batch)
        program.matmul(u, ready.selection, selection)
        low_rank, B, C = selection.split([block.dt_rank, block.d_state, block.d_state], dim=1)
        program.matmul(low_rank, ready.delta, delta)
        in_scan = gate if last is None else None
        program.scan(u, delta, ready.A, B, C, block.D, in_scan, block.dt_proj.bias, y, batch)
        if last is None:
            program.matmul(y, ready.out, residual, adds=True)
            return
        gated = program.shared("gated", kept.shape[0], inner, dtype)
        program.gate(y[last], gate, gated)
        program.matmul(gated, ready.out, residual[last], adds=True)


def _gated_mlp(program: Program, ready: PackedMLP, norm: nn.Module, normed: Tensor, residual: Tensor) -> None:
    program.norm(residual, normed, norm.weight, norm.eps)  # type: ignore[arg-type]
    rows, width = residual.shape[0], ready.value.out_features
    value, gate = (program.shared(name, rows, width, normed.dtype) for name in ("mlp value", "mlp gate"))
    with program.together():
        program.matmul(normed, ready.value, value)
        program.matmul(normed, ready.gate, gate)
    program.gate(value, gate, value)
    program.matmul(value, ready.out, residual, adds=True)


class StackProgram:
    """A stack alone, for one shape of input.

    Args:
        stack: its weights are copied.
        batch, length: B and L of the inputs.
        dtype: float32 or bfloat16, of the products.
        last_only: compute the last output of each sequence alone.
    """

    def __init__(self, stack: MambaStack, batch: int, length: int, dtype: torch.dtype, last_only: bool = False) -> None:
        self._program, self._last_only = Program(), last_only
        with torch.no_grad():
            self._input = self._program.buffer(batch * length, stack.d_model)
            self._output = PackedStack(stack, dtype).add(self._program, self._input, batch, last_only)

    def __call__(self, x: Tensor) -> Tensor:
        """`[B, L, D]` → `[B, L, D]`, or `[B, D]` with `last_only`, float32."""
        self._input.copy_(x.flatten(0, 1))
        self._program.run()
        out = self._output.clone()
        return out if self._last_only else out.view_as(x)
