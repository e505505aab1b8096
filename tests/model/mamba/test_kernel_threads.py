"""Kernels on several threads, from several threads, and in forked processes."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator

import pytest
import torch
from scan_cases import make_inputs, reference, relative_error, run_with_gradients
from torch.utils.data import DataLoader, Dataset

from statevla.model.kernels import threads
from statevla.model.mamba import selective_scan


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def plain_inputs(seed: int) -> dict[str, torch.Tensor]:
    return {n: t.detach() for n, t in make_inputs(3, 40, 64, 8, seed=seed).items()}


def scan(seed: int) -> torch.Tensor:
    return selective_scan(**plain_inputs(seed), delta_softplus=True, backend="numba")


@pytest.mark.parametrize("pool", ["openmp", "python"])
def test_two_threads_compute_the_same(pool: str, two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if pool == "python":
        monkeypatch.setattr(threads, "openmp_parallel", lambda: None)
    elif threads.openmp_parallel() is None:
        pytest.skip("PyTorch brings no OpenMP library with GOMP_parallel here")
    inputs = make_inputs(3, 50, 70, 6)
    found, wanted = run_with_gradients(inputs, True, "numba"), reference(inputs, True)
    for name in wanted:
        assert relative_error(found[name], wanted[name]) < 1e-5, name


def test_two_python_threads_do_not_meet(two_threads: None) -> None:
    wanted = [scan(seed) for seed in range(4)]
    failures: list[int] = []

    def work(seed: int) -> None:
        failures.extend(seed for _ in range(30) if not torch.equal(scan(seed), wanted[seed]))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert not any(worker.is_alive() for worker in workers)
    assert failures == []


class ScanDataset(Dataset):
    """Runs the kernel where the sample is made."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return scan(index)


def test_forked_loader_workers_can_scan(two_threads: None) -> None:
    wanted = [scan(seed) for seed in range(4)]  # starts the parent's threads first: the dangerous order
    loader = DataLoader(ScanDataset(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    for found, expected in zip(loader, wanted, strict=True):
        torch.testing.assert_close(found, expected)


def _scan_and_send(connection, inputs) -> None:  # type: ignore[no-untyped-def]
    out = selective_scan(**inputs, delta_softplus=True, backend="numba")
    connection.send((threads.num_threads(), out.numpy()))


def test_forked_process_runs_serially(two_threads: None) -> None:
    """In a bare fork PyTorch's own parallel operators hang, so the inputs are made before; the kernel does not."""
    inputs, wanted = plain_inputs(0), scan(0)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_scan_and_send, args=(theirs, inputs), daemon=True)
    process.start()
    assert ours.poll(60), "the forked process hangs"
    count, found = ours.recv()
    process.join(10)
    assert count == 1
    assert threads.num_threads() == 2
    torch.testing.assert_close(torch.from_numpy(found), wanted)
