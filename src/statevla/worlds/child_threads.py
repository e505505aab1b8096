"""One thread for each simulator process: there are as many processes as cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Mesa's software renderer counts threads beside the main one.
_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "LP_NUM_THREADS": "0",
}


@contextmanager
def single_threaded_children() -> Iterator[None]:
    """Processes started inside the block find these variables when they load their libraries."""
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update(_VARIABLES)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
