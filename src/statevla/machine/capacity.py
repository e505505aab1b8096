"""How many processes fit beside one another: cores and memory."""

from __future__ import annotations

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory_gb() -> float:
    """Memory that is free or can be freed, of the machine or of the container; infinite where nobody says."""
    free = float("inf")
    for line in _lines(_MEMINFO):
        if line.startswith("MemAvailable:"):
            free = float(line.split()[1]) * 1024
    limit, used = (_lines(_CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit and used and limit[0] != "max":
        free = min(free, float(limit[0]) - float(used[0]))
    return free / 1e9


def num_processes(each_gb: float, num_sharing: int = 1) -> int:
    """How many processes of so much memory each keep this machine busy: one per core, at least one.

    Args:
        each_gb: memory of one.
        num_sharing: processes of `torchrun` that share the machine.
    """
    fitting = min(num_cores(), free_memory_gb() / each_gb)
    return max(1, int(fitting / num_sharing))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
