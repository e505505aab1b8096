"""Threads are given up to neighbours, taken back afterwards, and left alone where somebody chose their number."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from statevla.machine.fair_threads import FIRST_PROBE_S, LAST_PROBE_S, PERIOD_S, FairThreads, Usage, read_usage


class Machine:
    """Cores, of which neighbours want some, shared evenly with this process's threads, or given way to them."""

    def __init__(self, cores: int) -> None:
        self.cores, self.neighbours, self.give_way = cores, 0, False
        self.now = Usage(100.0, 0.0, 0.0)

    def read(self) -> Usage:
        return self.now

    def run(self, seconds: float, threads: FairThreads) -> int:
        """Let time pass, in steps of half a second; the number of threads afterwards."""
        for _ in range(round(2 * seconds)):
            mine = torch.get_num_threads()
            wanted = mine + self.neighbours
            share = 1.0 if self.give_way else min(1.0, self.cores / wanted)
            clock, waited, idle = self.now
            self.now = Usage(clock + 0.5, waited + 0.5 * mine * (1 - share), idle + 0.5 * max(0, self.cores - wanted))
            threads.step()
        return torch.get_num_threads()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Machine]]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def make(cores: int) -> Machine:
        torch.set_num_threads(cores)
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        return Machine(cores)

    yield make
    torch.set_num_threads(before)


def test_alone_it_keeps_all_threads(machine: Callable[[int], Machine]) -> None:
    host = machine(2)
    with FairThreads(usage=host.read) as threads:
        assert host.run(FIRST_PROBE_S, threads) == 2


@pytest.mark.parametrize("neighbours", [1, 2])
def test_beside_others_it_gives_one_up_and_takes_it_back(machine: Callable[[int], Machine], neighbours: int) -> None:
    host = machine(2)
    with FairThreads(usage=host.read) as threads:
        host.neighbours = neighbours
        assert host.run(2 * PERIOD_S, threads) == 1
        host.neighbours = 0
        assert host.run(2 * PERIOD_S, threads) == 2


def test_a_large_machine_keeps_what_is_left(machine: Callable[[int], Machine]) -> None:
    host = machine(8)
    with FairThreads(usage=host.read) as threads:
        host.neighbours = 3
        assert 4 <= host.run(2 * PERIOD_S, threads) <= 6


def test_neighbours_that_give_way_are_no_reason(machine: Callable[[int], Machine]) -> None:
    host = machine(2)
    with FairThreads(usage=host.read) as threads:
        host.neighbours, host.give_way = 2, True
        assert host.run(FIRST_PROBE_S, threads) == 2


def test_all_are_tried_again_now_and_then_and_ever_less_often(machine: Callable[[int], Machine]) -> None:
    """Fewer threads see no idle core beside a neighbour that would give way to more."""
    host = machine(2)
    with FairThreads(usage=host.read) as threads:
        host.neighbours = 1
        assert host.run(PERIOD_S, threads) == 1
        seen = [host.run(PERIOD_S, threads) for _ in range(round(10 * LAST_PROBE_S / PERIOD_S))]
        assert 6 <= seen.count(2) <= 14
        assert seen[: round(1.5 * FIRST_PROBE_S / PERIOD_S)].count(2) == 1
        host.give_way = True
        assert host.run(LAST_PROBE_S + 2 * PERIOD_S, threads) == 2


def test_afterwards_the_number_is_as_before(machine: Callable[[int], Machine]) -> None:
    host = machine(2)
    with FairThreads(usage=host.read) as threads:
        host.neighbours = 1
        assert host.run(2 * PERIOD_S, threads) == 1
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("chosen", ["environment", "argument", "unknown system"])
def test_a_chosen_number_stays(machine: Callable[[int], Machine], monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    host = machine(2)
    if chosen == "environment":
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    usage = (lambda: None) if chosen == "unknown system" else host.read
    with FairThreads(chosen != "argument", usage) as threads:
        host.neighbours = 2
        assert host.run(2 * PERIOD_S, threads) == 2


def test_this_machine_is_read() -> None:
    before = read_usage()
    if before is None:
        pytest.skip("this system does not say")
    time.sleep(0.05)
    after = read_usage()
    assert after is not None
    assert after.clock > before.clock
    assert after.waited >= before.waited
    assert after.idle >= before.idle


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="this system does not say how long threads wait")
def test_waiting_is_seen() -> None:
    """Twice as many busy threads of a process as it has cores: half of them wait."""
    code = (
        "import os, threading, time\n"
        "from statevla.machine.fair_threads import read_usage\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import hashlib\n"
        "data, end = bytes(1 << 22), time.monotonic() + 1\n"
        "def work():\n"
        "    while time.monotonic() < end:\n"
        "        hashlib.sha256(data)\n"
        "before = read_usage()\n"
        "threads = [threading.Thread(target=work) for _ in range(3)]\n"
        "[t.start() for t in threads]\n"
        "time.sleep(0.8)\n"
        "print(read_usage().waited - before.waited)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) > 0.5
