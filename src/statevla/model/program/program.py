"""A forward pass as one call: a list of operations on buffers of its own, run by a compiled kernel.

A batch-1 query is some two hundred small operations; called one by one from Python they cost 10 to 40 µs each, more
than their arithmetic. Here shapes, addresses and packed weights are fixed once, for a batch size.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from statevla.model.kernels import load_kernels
from statevla.model.kernels.call import address, channel_groups, packed, tensor_slots
from statevla.model.kernels.threads import num_threads, run_kernel

load_kernels("program_kernel")
from statevla.model.kernels import (  # noqa: E402 (compiled by load_kernels)
    conv_kernel,
    matmul_kernel,
    program_kernel,
    scan_layout,
)
from statevla.model.kernels.matmul_kernel import GELU, NO_ACTIVATION, SILU, WIDTH  # noqa: E402
from statevla.model.kernels.simd import HAS_BF16, LANES  # noqa: E402
from statevla.model.kernels.staging import BFLOAT16, FLOAT32, HEADER, NEXT_TASK, NUM_TASKS, VECTOR_BYTES  # noqa: E402

ACTIVATIONS = {"none": NO_ACTIVATION, "silu": SILU, "gelu": GELU}
DTYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
SLOTS = 80
"""Of an operation's parameter block: the widest, a scan's, needs 69."""
TASKS_PER_THREAD = 3
"""To balance threads of which one may be put aside; each task costs a fraction of a microsecond to draw."""
MAX_ROWS_PER_TASK = 96
"""Rows that stay in the cache while panels of weights go by."""


def multiplies(dtype: torch.dtype) -> bool:
    """Whether programs can compute products in `dtype` on this processor."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and HAS_BF16)


class PackedWeight:
    """The weight of a linear map in the layout of `matmul_kernel`: panels of columns, zeros where there is none.

    Args:
        weight: `[out, in]`; copied.
        bias: `[out]`.
        dtype: float32 or bfloat16, of the products' factors; sums are float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.out_features, self.in_features = weight.shape
        self.dtype = dtype
        pair = 2 if dtype == torch.bfloat16 else 1
        # At least one step: the kernel's loop asks at its end.
        self.steps, self.panels = max(1, -(-self.in_features // pair)), -(-self.out_features // WIDTH)
        full = torch.zeros(self.panels * WIDTH, self.steps * pair, dtype=dtype)
        full[: self.out_features, : self.in_features] = weight.detach()
        parts = full.view(self.panels, WIDTH, self.steps, pair)
        self.packed = parts.permute(0, 2, 1, 3).contiguous()
        self.bias = None
        if bias is not None:
            self.bias = torch.zeros(self.panels * WIDTH)
            self.bias[: self.out_features] = bias.detach()


class Program:
    """Operations in the order in which they are added. Every method that adds one takes views of `buffer`s.

    An operation may begin when all before it are done, but for those that share a `together` block.
    """

    def __init__(self) -> None:
        self._kept: list[object] = []  # what the operations point at
        self._shared: dict[tuple[object, ...], Tensor] = {}
        self._blocks: list[list[int]] = []
        self._table: np.ndarray | None = None
        self._tasks, self._is_together = 0, False
        self._scratch_bytes = matmul_kernel.TILE_BYTES

    def buffer(self, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Zeros `[rows, columns]`; what lies between a row's end and the next row is the program's, and stays zero."""
        whole = torch.zeros(rows, max(1, -(-columns // WIDTH)) * WIDTH, dtype=dtype)
        self._kept.append(whole)
        return whole[:, :columns]

    def shared(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """A buffer that layers use one after the other: the same one for the same arguments."""
        key = (name, rows, columns, dtype)
        if key not in self._shared:
            self._shared[key] = self.buffer(rows, columns, dtype)
        return self._shared[key]

    def constant(self, values: Tensor) -> Tensor:
        """A float32 buffer `[rows, columns]` with these values."""
        target = self.buffer(*values.shape)
        target.copy_(values.detach())
        return target

    # Operations -------------------------------------------------------------------------------------------------------

    def matmul(
        self, x: Tensor, weight: PackedWeight, out: Tensor, activation: str = "none", adds: bool = False
    ) -> None:
        """`out = activation(x weightᵀ + bias)`, or with `adds` that is added to `out` (float32).

        Args:
            x: `[M, in]`, of the weight's dtype.
            out: `[M, out]`, float32 or bfloat16.
        """
        rows = x.shape[0]
        per_task, panels_per_task = _split(rows, weight.panels)
        parameters = [
            x.data_ptr(), x.stride(0) * x.element_size(), weight.steps, weight.packed.data_ptr(), address(weight.bias),
            rows, weight.panels, int(weight.dtype == torch.bfloat16), out.data_ptr(), DTYPES[out.dtype],
            out.stride(0), int(adds), ACTIVATIONS[activation], per_task, panels_per_task,
        ]  # fmt: skip
        tasks = -(-rows // per_task) * -(-weight.panels // panels_per_task)
        self._kept += [x, weight, out]
        self._add(program_kernel.MATMUL, parameters, tasks)

    def norm(
        self, x: Tensor, out: Tensor, weight: Tensor, eps: float, bias: Tensor | None = None, centres: bool = False
    ) -> None:
        """RMSNorm, or with `centres` LayerNorm, of float32 rows."""
        scale, shift = _padded(weight), None if bias is None else _padded(bias)
        self._kept += [scale, shift]
        self._rows(program_kernel.NORM, x, out, [scale.data_ptr(), address(shift), _bits(eps), int(centres)])

    def gate(self, value: Tensor, gate: Tensor, out: Tensor) -> None:
        """`out = value * silu(gate)`."""
        self._kept.append(gate)
        self._rows(program_kernel.GATE, value, out, [gate.data_ptr(), DTYPES[gate.dtype], gate.stride(0)])

    def copy(self, x: Tensor, out: Tensor, adds: bool = False) -> None:
        """`out = x`, or `out += x`; float32. `x` of one row goes to every row."""
        self._rows(program_kernel.COPY, x, out, [int(adds)])

    def conv(self, x: Tensor, out: Tensor, weight: Tensor, bias: Tensor, batch: int) -> None:
        """Causal depthwise convolution and SiLU of `batch` sequences, `[B * L, d_inner]`."""
        taps, shift = packed(weight.detach()), packed(bias.detach())
        assert taps is not None
        assert shift is not None
        groups, per_group = channel_groups(batch, x.shape[1])
        parameters = [x.shape[0] // batch, x.shape[1], groups, per_group, weight.shape[-1], taps.data_ptr()]
        parameters += [shift.data_ptr(), 0, 0, *_sequences(x, batch), *_sequences(out, batch), *tensor_slots(None)]
        self._kept += [taps, shift, x, out]
        self._scratch_bytes = max(self._scratch_bytes, conv_kernel.scratch_bytes(per_group, False))
        self._add(program_kernel.CONV, parameters, batch * groups)

    def scan(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor | None,
        delta_bias: Tensor,
        out: Tensor,
        batch: int,
    ) -> None:
        """`selective_scan` with softplus, of `batch` sequences `[B * L, ...]`."""
        inner, states = A.shape
        groups, per_group = channel_groups(batch, inner)
        arrays = [packed(tensor.detach()) for tensor in (A, D, delta_bias)]
        parameters = [u.shape[0] // batch, inner, states, groups, per_group, 1]
        parameters += [*(address(array) for array in arrays), *[0] * 10]
        for tensor in (u, delta, z, B, C, out, None, None, None):
            parameters += tensor_slots(None) if tensor is None else _sequences(tensor, batch)
        self._kept += [*arrays, u, delta, B, C, z, out]
        self._scratch_bytes = max(self._scratch_bytes, scan_layout.scratch_bytes(states, per_group, False))
        self._add(program_kernel.SCAN, parameters, batch * groups)

    def patches(self, picture: Tensor, window: int, step: int, padding: int, out: Tensor) -> None:
        """Windows of a float32 picture `[C, S, S]` (any strides) to rows `[S'², window² C]`, channels last."""
        channels, size, _ = picture.shape
        side = (size + 2 * padding - window) // step + 1
        lines = max(1, -(-side // (TASKS_PER_THREAD * num_threads())))
        parameters = [picture.data_ptr(), *picture.stride(), channels, size, window, step, padding]
        parameters += [side, out.data_ptr(), out.stride(0), lines]
        self._kept += [picture, out]
        self._add(program_kernel.PATCHES, parameters, -(-side // lines))

    def group_norm(self, x: Tensor, norm: torch.nn.GroupNorm, film: Tensor | None) -> None:
        """Group norm of `[places, C]` in place, then `film` (scale and shift, `[1, 2C]`), then SiLU."""
        weight, bias = _padded(norm.weight), _padded(norm.bias)
        parameters = [x.data_ptr(), x.stride(0), x.shape[0], x.shape[1], norm.num_groups, _bits(norm.eps)]
        parameters += [weight.data_ptr(), bias.data_ptr(), address(film)]
        self._kept += [x, weight, bias, film]
        self._scratch_bytes = max(self._scratch_bytes, 2 * len(weight) * 4)
        self._add(program_kernel.GROUP_NORM, parameters, 1)

    def keypoints(self, fine: Tensor, side: int, coarse: Tensor | None, coarse_side: int, out: Tensor) -> None:
        """Soft-argmax of maps `[side², K]` plus enlarged coarse ones → all rows, then all columns, in `[1, 2K]`."""
        parameters = [fine.data_ptr(), fine.stride(0), side, address(coarse)]
        parameters += [0 if coarse is None else coarse.stride(0), coarse_side, fine.shape[1], out.data_ptr()]
        self._kept += [fine, coarse, out]
        self._scratch_bytes = max(self._scratch_bytes, 2 * VECTOR_BYTES)
        self._add(program_kernel.KEYPOINTS, parameters, -(-fine.shape[1] // LANES))

    def together(self) -> _Together:
        """`with program.together():` its operations need nothing of one another, and run side by side."""
        return _Together(self)

    # Running ----------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run all operations. Not for two callers at once: the buffers are the program's."""
        if self._table is None:
            self._table = np.array([[*block, *[0] * (SLOTS - len(block))] for block in self._blocks], np.int64)
            first = self._table.ctypes.data
            self._parameters = [len(self._blocks), *(first + i * SLOTS * 8 for i in range(len(self._blocks)))]
            self._most_tasks = int(self._table[:, NUM_TASKS].max())
        self._table[:, NEXT_TASK] = 0
        run_kernel(program_kernel.run_program, self._parameters, self._most_tasks, self._scratch_bytes)

    def _add(self, kind: int, parameters: Sequence[int], num_tasks: int) -> None:
        self._tasks += num_tasks
        head = [0] * HEADER
        head[NUM_TASKS], head[program_kernel.KIND] = num_tasks, kind
        head[program_kernel.WAITS_FOR] = 0 if self._is_together else self._tasks
        self._blocks.append([*head, *(int(value) for value in parameters)])

    def _rows(self, kind: int, x: Tensor, out: Tensor, rest: list[int]) -> None:
        rows, columns = out.shape
        per_task = max(1, -(-rows // (2 * num_threads())))
        stride = 0 if x.shape[0] == 1 and rows > 1 else x.stride(0)
        parameters = [rows, columns, per_task, x.data_ptr(), DTYPES[x.dtype], stride]
        parameters += [out.data_ptr(), DTYPES[out.dtype], out.stride(0), *rest]
        self._kept += [x, out]
        self._add(kind, parameters, -(-rows // per_task))


class _Together:
    """See `Program.together`."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def __enter__(self) -> None:
        self._program._is_together = True

    def __exit__(self, *_: object) -> None:
        self._program._is_together = False
        self._program._blocks[-1][program_kernel.WAITS_FOR] = self._program._tasks


def _split(rows: int, panels: int) -> tuple[int, int]:
    """Rows and panels of one task: some tasks a thread, and rows that fit into the cache."""
    wanted = 1 if num_threads() == 1 else TASKS_PER_THREAD * num_threads()
    blocks = -(-rows // MAX_ROWS_PER_TASK)
    return -(-rows // blocks), max(1, panels * blocks // wanted)


def _sequences(x: Tensor, batch: int) -> tuple[int, ...]:
    """Slots of `[B * L, columns]` seen as `[B, L, columns]`."""
    return x.data_ptr(), DTYPES[x.dtype], x.shape[0] // batch * x.stride(0), x.stride(0), x.stride(1)


def _padded(values: Tensor) -> Tensor:
    """Float32, with zeros up to whole panels."""
    whole = torch.zeros(-(-len(values) // WIDTH) * WIDTH)
    whole[: len(values)] = values.detach()
    return whole


def _bits(value: float) -> int:
    return int(struct.unpack("<i", struct.pack("<f", value))[0])
