"""Which items make which batch, and batches prepared ahead. Both resume exactly."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch

from statevla.data.pixels import item_draws
from statevla.errors import UserError
from statevla.types import ChunkBatch, TransitionBatch


class Samples(Protocol):
    """A data set that gathers whole batches: `TransitionDataset`, `ChunkDataset`."""

    num_draws: int

    def __len__(self) -> int: ...

    def gather_drawn(self, indices: torch.Tensor, draws: torch.Tensor | None) -> TransitionBatch | ChunkBatch: ...


class BatchSampler:
    """Draws batches without replacement, endlessly; batch `k` of epoch `e` is a pure function of (seed, e, k).

    The global batch is the same whatever the number of processes and accumulation steps: they only cut it into pieces.
    What is left over at the end of an epoch is dropped; a data set smaller than one batch is repeated to fill it.

    Args:
        num_items: length of the data set.
        batch_size: items per optimizer step, over all processes and accumulation steps.
        seed: of the order.
        rank: of this process.
        world_size: number of processes.
        accumulation: `next_batch` calls that make one optimizer step.

    Raises:
        UserError: batch_size cannot be cut evenly.
    """

    def __init__(
        self, num_items: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, accumulation: int = 1
    ) -> None:
        if num_items < 1:
            raise UserError("data: no training samples; check data.path and data.train_split")
        if batch_size % (world_size * accumulation):
            raise UserError(
                f"batch_size {batch_size}: expected a multiple of {world_size} processes x {accumulation} accumulation "
                "steps; change batch_size or gradient_accumulation_steps"
            )
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.accumulation = accumulation
        self.epoch = 0
        self._position = 0
        self._order: tuple[int, torch.Tensor] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return max(1, self.num_items // self.batch_size)

    @property
    def position(self) -> int:
        """Items of this epoch that were drawn, over all processes."""
        return self._position

    def next_batch(self) -> torch.Tensor:
        """This process's share of the next (micro-)batch, int64 `[batch_size / world_size / accumulation]`."""
        if self._position >= self.batches_per_epoch * self.batch_size:
            self.epoch, self._position = self.epoch + 1, 0
        share = self.rows(0)
        start = self._position
        self._position += self.batch_size // self.accumulation
        return self._permutation(self.epoch)[start + share.start : start + share.stop]

    def rows(self, piece: int) -> slice:
        """Where this process's micro-batch number `piece` lies in the batch of its optimizer step."""
        micro = self.batch_size // self.accumulation
        share = micro // self.world_size
        start = piece * micro + self.rank * share
        return slice(start, start + share)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self._position, "num_items": self.num_items, "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state` was taken; the number of processes may have changed.

        Raises:
            UserError: the data set's length, the seed, or the batch size differ, so that batches would not continue.
        """
        for key in ("num_items", "seed"):
            if state[key] != getattr(self, key):
                raise UserError(
                    f"resume: the checkpoint's sampler has {key} {state[key]}, this run has {getattr(self, key)}; "
                    "resume with the same data, split and seed"
                )
        if state["position"] % (self.batch_size // self.accumulation):
            raise UserError(
                f"resume: {state['position']} samples into an epoch is no multiple of batch_size {self.batch_size}; "
                "resume with the same batch size"
            )
        self.epoch, self._position = int(state["epoch"]), int(state["position"])

    def _permutation(self, epoch: int) -> torch.Tensor:
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            order = torch.randperm(self.num_items, generator=generator)
            repeats = -(-self.batch_size // self.num_items)
            self._order = (epoch, order.repeat(repeats) if repeats > 1 else order)
        return self._order[1]


class Prefetcher:
    """Endless iterator over `(batch, indices)`, prepared in background threads.

    Augmentation draws are a function of (seed, epoch, item), so neither threads nor a restart change a batch.

    Args:
        dataset: gathers batches.
        sampler: owned by the prefetcher from now on, as it runs ahead; take states from `Prefetcher.state_dict`.
        augment: whether to augment.
        num_workers: threads; 0 prepares each batch when it is asked for.
        num_ahead: batches prepared ahead, per thread.
    """

    def __init__(
        self, dataset: Samples, sampler: BatchSampler, augment: bool = True, num_workers: int = 0, num_ahead: int = 2
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.augment = augment
        self._depth = num_workers * num_ahead
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="loader") if num_workers else None
        self._queue: deque[tuple[dict[str, int], torch.Tensor, Future[Any]]] = deque()
        self._epoch = sampler.epoch

    @property
    def epoch(self) -> int:
        """Epoch of the batch handed out last."""
        return self._epoch

    def __iter__(self) -> Iterator[tuple[Any, torch.Tensor]]:
        return self

    def __next__(self) -> tuple[Any, torch.Tensor]:
        if self._pool is None:
            indices = self.sampler.next_batch()
            self._epoch = self.sampler.epoch
            return self._gather(indices, self._epoch), indices
        while len(self._queue) < max(self._depth, 1):
            state = self.sampler.state_dict()
            indices = self.sampler.next_batch()
            self._queue.append((state, indices, self._pool.submit(self._gather, indices, self.sampler.epoch)))
        state, indices, future = self._queue.popleft()
        batch = future.result()
        rolled_over = state["position"] >= self.sampler.batches_per_epoch * self.sampler.batch_size
        self._epoch = state["epoch"] + int(rolled_over)
        return batch, indices

    def state_dict(self) -> dict[str, int]:
        """The sampler's state after the batch handed out last: what was only prepared does not count."""
        return self._queue[0][0] if self._queue else self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue after the batch that was handed out last when `state` was taken; see `BatchSampler`."""
        self._drain()
        self.sampler.load_state_dict(state)
        self._epoch = self.sampler.epoch

    def close(self) -> None:
        """Stop the threads."""
        self._drain()
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drain(self) -> None:
        while self._queue:
            self._queue.pop()[2].cancel()

    def _gather(self, indices: torch.Tensor, epoch: int) -> Any:
        draws = item_draws(self.sampler.seed, epoch, indices, self.dataset.num_draws) if self.augment else None
        return self.dataset.gather_drawn(indices, draws)
