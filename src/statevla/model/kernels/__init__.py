"""CPU kernels compiled by numba, with explicit SIMD, run on PyTorch's own threads.

`load_kernels` compiles them, or reads them from the cache: about 10 s the first time, 0.5 s afterwards.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import os
import threading
from functools import cache
from pathlib import Path
from typing import Any

from statevla.machine.kernel_cache import choose_kernel_cache

choose_kernel_cache()

from numba.core import config as _numba_config  # noqa: E402  (it reads where its cache is when it is imported)

# numba's settings are attributes that it makes at run time.
config: Any = _numba_config

_lock = threading.Lock()


def _cache_directory() -> Path | None:
    """Where compiled code lies, or None if nowhere can be written.

    numba's own cache looks only at the time stamp of the file that defines a function, and would miss a change in a
    file that it inlines. So the directory's name holds a digest of all sources.
    """
    digest = hashlib.sha256(importlib.metadata.version("numba").encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    base = config.CACHE_DIR or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    directory = Path(base).expanduser() / "statevla" / f"kernels-{digest.hexdigest()[:16]}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return directory if os.access(directory, os.W_OK) else None


@cache
def load_kernels(module: str) -> None:
    """Import `statevla.model.kernels.<module>`, whose functions numba compiles as they are defined."""
    with _lock:
        before = config.CACHE_DIR
        directory = _cache_directory()
        config.CACHE_DIR = str(directory or "")
        try:
            importlib.import_module(f"{__name__}.{module}")
        finally:
            config.CACHE_DIR = before
