"""Embeddings on disk, a small file each, in `$STATEVLA_HOME/language_cache`: the latest used of them.

What was not asked for longest makes room, as in the memory of `LanguageEncoder`. Times of last use are those of the
files, set on every use: many disks note no times of access.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np

from statevla.config import home_dir
from statevla.machine.storage import replacing

MAX_STORED = 16384
"""Files, leftovers of killed processes among them: 64 MiB on most disks, and 5 ms to list."""


def load_embedding(key: str, dim: int) -> np.ndarray | None:
    """What `store_embedding` wrote under this key, float32 `[dim]`; None where it is absent or damaged."""
    file = _file(key)
    try:
        with open(file, "rb") as opened:
            vector = np.lib.format.read_array(opened, allow_pickle=False)
    except Exception:  # a damaged file can fail in any way, and costs no more than an absent one
        return None
    if vector.shape != (dim,) or vector.dtype != np.float32 or not np.isfinite(vector).all():
        return None
    with contextlib.suppress(OSError):
        os.utime(file)
    return vector


def store_embedding(key: str, vector: np.ndarray) -> None:
    """Write atomically, then make room; a cache that cannot be written only costs time."""
    file = _file(key)
    with contextlib.suppress(OSError):
        with replacing(file) as part, open(part, "wb") as opened:
            np.lib.format.write_array(opened, vector, allow_pickle=False)
        _make_room(file.parent)


def _file(key: str) -> Path:
    return home_dir() / "language_cache" / f"{key}.npy"


def _make_room(folder: Path) -> None:
    if len(os.listdir(folder)) <= MAX_STORED:
        return
    with os.scandir(folder) as entries:
        by_age = sorted((entry.stat().st_mtime_ns, entry.path) for entry in entries)
    # An eighth more than needed, so that not every new one sorts them all.
    for _, path in by_age[: len(by_age) - MAX_STORED * 7 // 8]:
        with contextlib.suppress(OSError):  # another process makes room too
            os.unlink(path)
