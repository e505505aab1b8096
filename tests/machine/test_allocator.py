"""Freed memory is kept where that can be had, and the environment has the last word."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Blocks of 8 MB, as a training step frees and takes them again.
SCRIPT = """
import resource, sys
import numpy as np
from statevla.machine.allocator import keep_freed_memory

kept = keep_freed_memory() if "keep" in sys.argv else None
for turn in range(22):
    if turn == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.ones(2**20) for _ in range(8)]
    del blocks
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(*arguments: str, **environment: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**{k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_blocks_are_taken_again_without_page_faults() -> None:
    _, given_back = run(MALLOC_MMAP_THRESHOLD_="1048576")
    kept, faults = run("keep")
    assert kept == "True"
    assert faults < 0.1 * given_back


def test_the_environment_has_the_last_word() -> None:
    kept, _ = run("keep", MALLOC_MMAP_MAX_="65536")
    assert kept == "False"
