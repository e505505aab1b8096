"""Batches are a pure function of seed, epoch and position; resuming and more processes change nothing."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statevla.data import BatchSampler, Prefetcher
from statevla.data.pixels import item_draws
from statevla.errors import UserError


class _Numbers:
    """A data set whose batch tells which items and draws made it."""

    num_draws = 3

    def __len__(self) -> int:
        return 23

    def gather_drawn(self, indices: torch.Tensor, draws: torch.Tensor | None) -> torch.Tensor:
        if draws is None:
            return indices.double()[:, None]
        return torch.cat([indices.double()[:, None], draws], dim=1)


def take(sampler: BatchSampler, count: int) -> list[list[int]]:
    return [sampler.next_batch().tolist() for _ in range(count)]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 60),
    st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)]),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_processes_and_accumulation_only_cut_the_global_batch(
    num_items: int, cut: tuple[int, int], share: int, seed: int
) -> None:
    world, accumulation = cut
    batch_size = share * world * accumulation
    whole = BatchSampler(num_items, batch_size, seed)
    parts = [BatchSampler(num_items, batch_size, seed, rank, world, accumulation) for rank in range(world)]
    for _ in range(2 * whole.batches_per_epoch + 1):
        pieces = [take(part, accumulation) for part in parts]
        joined = [i for micro in range(accumulation) for piece in pieces for i in piece[micro]]
        assert joined == whole.next_batch().tolist()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 5))
def test_an_epoch_draws_every_item_at_most_once_more_than_any_other(num_items: int, batch_size: int, seed: int) -> None:
    sampler = BatchSampler(num_items, batch_size, seed)
    drawn = torch.tensor([i for batch in take(sampler, sampler.batches_per_epoch) for i in batch])
    counts = torch.bincount(drawn, minlength=num_items)
    assert sampler.epoch == 0
    assert int(counts.max()) - int(counts.min()) <= 1
    if num_items >= batch_size:
        assert int(counts.max()) == 1


def test_epochs_and_seeds_differ() -> None:
    sampler = BatchSampler(50, 50, seed=0)
    first, second = take(sampler, 2)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert take(BatchSampler(50, 50, seed=1), 1)[0] != first


@pytest.mark.parametrize("after", [0, 1, 4, 5, 6, 11])
def test_sampler_resumes(after: int) -> None:
    sampler = BatchSampler(23, 4, seed=7)
    take(sampler, after)
    state = json.loads(json.dumps(sampler.state_dict()))
    expected = take(sampler, 12)
    resumed = BatchSampler(23, 4, seed=7)
    resumed.load_state_dict(state)
    assert take(resumed, 12) == expected


def test_sampler_resumes_on_another_number_of_processes() -> None:
    two = [BatchSampler(23, 4, 7, rank, 2) for rank in range(2)]
    for sampler in two:
        take(sampler, 3)
    one = BatchSampler(23, 4, 7)
    one.load_state_dict(two[1].state_dict())
    assert one.next_batch().tolist() == two[0].next_batch().tolist() + two[1].next_batch().tolist()


def test_sampler_refuses_what_it_cannot_continue() -> None:
    state = BatchSampler(23, 4, 7).state_dict()
    with pytest.raises(UserError, match="num_items 23, this run has 24"):
        BatchSampler(24, 4, 7).load_state_dict(state)
    with pytest.raises(UserError, match="seed 7, this run has 8"):
        BatchSampler(23, 4, 8).load_state_dict(state)
    with pytest.raises(UserError, match="no multiple of batch_size 5"):
        BatchSampler(23, 5, 7).load_state_dict(state | {"position": 4})
    with pytest.raises(UserError, match=r"expected a multiple of 3 processes x 1"):
        BatchSampler(23, 4, 7, 0, 3)
    with pytest.raises(UserError, match="no training samples"):
        BatchSampler(0, 4, 7)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_prefetching_changes_nothing(num_workers: int) -> None:
    plain = BatchSampler(23, 4, seed=3)
    with Prefetcher(_Numbers(), BatchSampler(23, 4, seed=3), num_workers=num_workers) as loader:
        for _ in range(14):
            batch, indices = next(loader)
            assert indices.tolist() == plain.next_batch().tolist()
            assert loader.epoch == plain.epoch
            draws = item_draws(3, plain.epoch, indices, 3)
            assert torch.equal(batch, torch.cat([indices.double()[:, None], draws], dim=1))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("after", [0, 3, 5, 7])
def test_prefetcher_resumes_bit_for_bit(num_workers: int, after: int) -> None:
    with Prefetcher(_Numbers(), BatchSampler(23, 4, seed=3), num_workers=num_workers) as loader:
        for _ in range(after):
            next(loader)
        state = json.loads(json.dumps(loader.state_dict()))
        expected = [next(loader)[0] for _ in range(9)]
    with Prefetcher(_Numbers(), BatchSampler(23, 4, seed=3), num_workers=1) as resumed:
        next(resumed)  # work that was prepared before the state is loaded must not leak into what follows
        resumed.load_state_dict(state)
        for batch in expected:
            assert torch.equal(next(resumed)[0], batch)


def test_without_augmentation() -> None:
    batch, indices = next(Prefetcher(_Numbers(), BatchSampler(23, 4, seed=3), augment=False))
    assert torch.equal(batch, indices.double()[:, None])


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    class Broken(_Numbers):
        def gather_drawn(self, indices: torch.Tensor, draws: torch.Tensor | None) -> torch.Tensor:
            raise UserError("frame cache: gone")

    with (
        Prefetcher(Broken(), BatchSampler(23, 4, seed=3), num_workers=2) as loader,
        pytest.raises(UserError, match="gone"),
    ):
        next(loader)


def test_draws_are_uniform_and_independent_of_the_batch() -> None:
    indices = torch.arange(20_000)
    draws = item_draws(5, 2, indices, 4)
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    # Standard error of the mean is 0.002, of a correlation 0.007.
    assert torch.allclose(draws.mean(0), torch.full((4,), 0.5, dtype=torch.float64), atol=0.012)
    assert torch.allclose(torch.corrcoef(draws.T), torch.eye(4, dtype=torch.float64), atol=0.04)
    neighbours = torch.corrcoef(torch.stack([draws[:-1, 0], draws[1:, 0]]))
    assert abs(float(neighbours[0, 1])) < 0.04
    assert torch.equal(item_draws(5, 2, indices[[7, 3]], 4), draws[[7, 3]])
    assert not torch.equal(item_draws(5, 3, indices, 4), draws)
    assert not torch.equal(item_draws(6, 2, indices, 4), draws)
