"""What the host sides of the CPU kernels share: loading them, and turning tensors into parameter slots."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from statevla.model.kernels import load_kernels
from statevla.model.kernels.threads import num_threads, run_kernel

for _module in ("program_kernel", "scan_backward_kernel", "norm_kernel"):
    load_kernels(_module)
from statevla.model.kernels import conv_kernel, norm_kernel, program_kernel, scan_layout  # noqa: E402 (compiled by load_kernels)
from statevla.model.kernels.scan_backward_kernel import scan_backward  # noqa: E402
from statevla.model.kernels.simd import LANES  # noqa: E402
from statevla.model.kernels.staging import BFLOAT16, FLOAT32, TENSOR  # noqa: E402

__all__ = [
    "ABSENT", "DTYPES", "LANES", "address", "channel_groups", "conv_kernel", "norm_kernel", "packed", "program_kernel",
    "readable", "run_kernel", "run_operation", "scan_backward", "scan_layout", "tensor_slots",
]  # fmt: skip

DTYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
ABSENT = (0,) * TENSOR


def tensor_slots(tensor: Tensor | None) -> tuple[int, ...]:
    """Parameter slots of a strided `[B, L, columns]` tensor of float32 or bfloat16."""
    return ABSENT if tensor is None else (tensor.data_ptr(), DTYPES[tensor.dtype], *tensor.stride())


def address(tensor: Tensor | None) -> int:
    """Address of the first element; 0 if absent."""
    return 0 if tensor is None else tensor.data_ptr()


def readable(tensor: Tensor | None) -> Tensor | None:
    """The tensor itself if the kernels can read its dtype, else in float32."""
    return tensor if tensor is None or tensor.dtype in DTYPES else tensor.float()


def packed(tensor: Tensor | None) -> Tensor | None:
    """Contiguous float32, as parameters and states are passed."""
    if tensor is None or (tensor.dtype == torch.float32 and tensor.is_contiguous()):
        return tensor
    return tensor.detach().float().contiguous()


def channel_groups(batch: int, channels: int) -> tuple[int, int]:
    """Channel groups per sequence and vectors per group: two tasks a thread to balance them, but no more, for every
    group sums its own gradients of B and C."""
    vectors = -(-channels // LANES)
    threads = num_threads()
    wanted = 1 if threads == 1 else min(vectors, -(-2 * threads // batch))
    per_group = -(-vectors // wanted)
    return -(-vectors // per_group), per_group


def run_operation(kind: int, parameters: Sequence[int], num_tasks: int, scratch_bytes: int) -> None:
    """Run all tasks of one operation of `program_kernel`; arguments as of `run_kernel`."""
    block = array("q", (0, num_tasks, kind, 0, 0, *parameters))
    run_kernel(program_kernel.run_program, [1, block.buffer_info()[0]], num_tasks, scratch_bytes)
