"""Memory of one training step for the next one.

A step frees what it allocated. By default glibc hands blocks of a megabyte or more back to the system at once, and the
next step asks for them again, page by page: some 25,000 page faults in a phase-1 step of the compact preset.
`keep_freed_memory` makes it keep them; `benchmarks/bench_allocator.py` measures what that is worth.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_KEEP_BYTES, _GROW_BYTES = 2**31 - 1, 2**28
_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for good; resident memory then stays at its peak.

    Returns:
        False where that is not to be had (another C library, another allocator), or where the environment says how
        glibc shall behave (`MALLOC_MMAP_MAX_` and its like).
    """
    if sys.platform != "linux" or any(name in os.environ for name in _VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEEP_BYTES), (_M_TOP_PAD, _GROW_BYTES))
    return all(mallopt(option, value) == 1 for option, value in settings)
