"""Several processes (`torchrun`): who am I, and the few collectives that training needs.

Every function also works in a single process, where it does nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from statevla.errors import UserError

TIMEOUT = timedelta(hours=2)
"""Long enough for one process to build a frame cache while the others wait."""


@dataclass(frozen=True)
class Processes:
    """This process among all: `rank` of `world_size`, `local_rank` of `local_world_size` on its machine."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Only this process prints and writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def main_says(self, value: bool, device: torch.device) -> bool:
        """What the main process passes, told to all: for decisions that depend on a clock."""
        if self.world_size == 1:
            return value
        flag = torch.tensor([int(value)], device=device)
        dist.broadcast(flag, src=0)
        return bool(flag.item())

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world_size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def main_holds(self, lock: contextlib.AbstractContextManager[None], device: torch.device) -> Iterator[None]:
        """A lock that the main process takes for all.

        Raises:
            UserError: it is refused; every process ends, and the main one says why.
        """
        with contextlib.ExitStack() as stack:
            refusal = None
            if self.is_main:
                try:
                    stack.enter_context(lock)
                except UserError as error:
                    refusal = error
            if self.main_says(refusal is not None, device):
                raise refusal or UserError("ended, as process 0 says why")
            yield


def described_processes() -> Processes:
    """This process among those that `torchrun` describes in the environment, joined or not; outside, one of one.

    Raises:
        UserError: the environment is incomplete.
    """
    world_size = _environment_int("WORLD_SIZE", 1)
    if world_size == 1:
        return Processes()
    local_rank = _environment_int("LOCAL_RANK")
    return Processes(_environment_int("RANK"), local_rank, world_size, _environment_int("LOCAL_WORLD_SIZE", 1))


@contextlib.contextmanager
def join_processes(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """Join the group that `torchrun` describes in the environment; yields this process and its device.

    NCCL on CUDA, gloo elsewhere. Outside of `torchrun` it is a group of one.

    Raises:
        UserError: the environment is incomplete, or there are more processes than GPUs.
    """
    processes = described_processes()
    if processes.world_size == 1:
        yield processes, device
        return
    if device.type == "cuda":
        if processes.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun: process {processes.local_rank} of this machine has no GPU "
                f"({torch.cuda.device_count()} present); lower --nproc_per_node"
            )
        device = torch.device("cuda", processes.local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield processes, device
    finally:
        dist.destroy_process_group()


class _GatherRows(torch.autograd.Function):
    """All-gather along the first dim whose backward sums what every process says about a row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.start, ctx.count = dist.get_rank() * len(rows), len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.count]


def gather_rows(rows: Tensor) -> Tensor:
    """`[M, ...]` of each process → `[world · M, ...]` of all, differentiable.

    Each process then holds the same loss over all rows. Its gradients are summed over the processes here and averaged
    by DDP later, which together is the gradient of one such loss: the same as in a single process.
    """
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


def _environment_int(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise UserError(f"environment {name}: expected a number, got {text!r}; start with torchrun") from None
