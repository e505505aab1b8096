"""Running compiled kernels on PyTorch's own OpenMP threads.

numba's `prange` would bring a second thread pool, which fights with PyTorch's (measured: 0.83 ms against 0.46 ms for
one layer) and aborts in forked processes. Here a kernel is a C function `void kernel(int64 *parameters)` whose threads
draw task numbers from an atomic counter in the parameters; `GOMP_parallel` of the OpenMP library that PyTorch itself
has loaded calls it on every thread. Where there is none, Python threads do it (the call releases the GIL).
"""

from __future__ import annotations

import ctypes
import os
import threading
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any

import torch

CFunc = Any  # numba's compiled function, with its `address`

_ALIGNMENT = 64
_KERNEL_TYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_forked = False
_local = threading.local()


def _after_fork_in_child() -> None:
    """A forked child inherits no threads: neither OpenMP's nor ours."""
    global _forked
    _forked = True
    _executor.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


@cache
def _executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="statevla-kernel")


def _loaded_openmp_libraries() -> list[str]:
    """Paths of OpenMP libraries in this process, PyTorch's own first."""
    bundled = [str(path) for path in sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*"))]
    mapped: list[str] = []
    if os.path.exists("/proc/self/maps"):
        lines = Path("/proc/self/maps").read_text().splitlines()
        mapped = [path for line in lines if "omp" in os.path.basename(path := line.split(maxsplit=5)[-1])]
    return list(dict.fromkeys(bundled + mapped))


@cache
def openmp_parallel() -> Callable[[int, int, int, int], None] | None:
    """`GOMP_parallel(function, data, num_threads, flags)`, or None. Only looks at libraries that are already loaded."""
    for path in _loaded_openmp_libraries():
        try:
            function = ctypes.CDLL(path, mode=getattr(os, "RTLD_NOLOAD", 0) | os.RTLD_LAZY).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None


@cache
def _as_function(address: int) -> Callable[[int], None]:
    return _KERNEL_TYPE(address)


def num_threads() -> int:
    """Threads that the next kernel may use: PyTorch's number, but one in a forked child (a data-loader worker)."""
    return 1 if _forked else torch.get_num_threads()


def _scratch_of_this_thread(num_bytes: int) -> int:
    """Aligned address of at least `num_bytes` that only the calling thread uses."""
    if getattr(_local, "size", -1) < num_bytes:
        _local.buffer = torch.empty(num_bytes + _ALIGNMENT, dtype=torch.uint8)
        _local.address = -(-_local.buffer.data_ptr() // _ALIGNMENT) * _ALIGNMENT
        _local.size = num_bytes
    return _local.address


def run_kernel(kernel: CFunc, parameters: Sequence[int], num_tasks: int, scratch_bytes: int) -> None:
    """Run all tasks of a kernel.

    Args:
        kernel: a function `void (int64 *)`, compiled by `numba.cfunc`.
        parameters: what follows the header in its parameter block.
        num_tasks: tasks to draw.
        scratch_bytes: scratch memory per thread. Every calling thread keeps its own between calls: allocating 80 kB
            anew costs more than a kernel's whole overhead (page faults), and concurrent callers must not meet.
    """
    threads = min(num_threads(), num_tasks)
    scratch_bytes = -(-scratch_bytes // _ALIGNMENT) * _ALIGNMENT
    scratch = _scratch_of_this_thread(threads * scratch_bytes)
    block = array("q", (0, num_tasks, 0, scratch, scratch_bytes, *parameters))
    function, data = kernel.address, block.buffer_info()[0]
    if threads == 1:
        _as_function(function)(data)
    elif (parallel := openmp_parallel()) is not None:
        parallel(function, data, threads, 0)
    else:
        call = _as_function(function)
        others = [_executor().submit(call, data) for _ in range(threads - 1)]
        call(data)
        wait(others)
