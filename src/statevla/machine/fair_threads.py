"""As many threads as there are cores to spare: beside other work, fewer threads train faster than more.

An operator's threads wait for one another. Where another program takes a core half of the time, every one of a step's
thousand parallel regions waits for the thread that is not running; on one thread fewer, nobody waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

PERIOD_S = 3.0
"""How long the machine is watched before a decision."""
FIRST_PROBE_S, LAST_PROBE_S = 15.0, 240.0
"""After so long on fewer threads all are tried again; twice as long each time that it was in vain."""
WAITING = 0.25
"""Seconds a second that threads wait for a core, from which on one is given up."""
SPARE_CORES = 0.5
"""Cores that nobody uses, from which on a thread is taken back."""


class Usage(NamedTuple):
    """Seconds so far: the clock's, those that this process's threads waited for a core, and all cores' idle ones."""

    clock: float
    waited: float
    idle: float


def read_usage() -> Usage | None:
    """What this machine has done so far; None where the system does not say (Linux does, in `/proc`).

    Waiting counts, not the neighbours' use of cores: one of low priority gives way.
    """
    try:
        waited = sum(int(file.read_text().split()[1]) for file in Path("/proc/self/task").glob("*/schedstat"))
        with Path("/proc/stat").open(encoding="ascii") as file:
            idle, iowait = (int(field) for field in file.readline().split()[4:6])
    except (OSError, ValueError, IndexError):
        return None
    return Usage(time.monotonic(), waited / 1e9, (idle + iowait) / os.sysconf("SC_CLK_TCK"))


class FairThreads:
    """Sets PyTorch's number of threads as neighbours come and go, inside a `with` block; then it is as before.

    Args:
        enabled: false leaves the number alone, as `OMP_NUM_THREADS` does: then a run's numbers depend on no neighbour
            either (sums are split among threads, so their last bits depend on how many there are).
        usage: how to read the machine; for tests.
    """

    def __init__(self, enabled: bool = True, usage: Callable[[], Usage | None] = read_usage) -> None:
        self._usage, self._most = usage, torch.get_num_threads()
        can_choose = enabled and "OMP_NUM_THREADS" not in os.environ and self._most > 1
        self._since = usage() if can_choose else None
        self._probe_s, self._probe_at = FIRST_PROBE_S, 0.0

    def __enter__(self) -> FairThreads:
        return self

    def __exit__(self, *_: object) -> None:
        if self._since is not None:
            torch.set_num_threads(self._most)

    def step(self) -> None:
        """Call once a training step: every `PERIOD_S` threads are given up or taken back."""
        now = self._usage() if self._since is not None else None
        if now is None or self._since is None or now.clock - self._since.clock < PERIOD_S:
            return
        threads = torch.get_num_threads()
        wanted = self._wanted(threads, now, self._since)
        if wanted != threads:
            torch.set_num_threads(wanted)
        self._since = now

    def _wanted(self, threads: int, now: Usage, before: Usage) -> int:
        seconds = now.clock - before.clock
        waiting, idle = (now.waited - before.waited) / seconds, (now.idle - before.idle) / seconds
        if waiting >= WAITING and threads > 1:
            in_vain = threads == self._most and self._probe_at > 0
            self._probe_s = min(LAST_PROBE_S, 2 * self._probe_s) if in_vain else FIRST_PROBE_S
            self._probe_at = now.clock + self._probe_s
            return max(1, threads - max(1, round(waiting)))
        if threads == self._most:
            self._probe_at = 0.0
            return threads
        if idle >= SPARE_CORES:
            return min(self._most, threads + round(idle))
        return self._most if now.clock >= self._probe_at else threads
