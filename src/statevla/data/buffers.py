"""Memory of batches, used again once nobody holds it.

A batch of pictures is tens of megabytes. Allocated anew, it comes in untouched pages from the system, whose first
writing costs three times as much as filling them; memory that was written before costs nothing.
"""

from __future__ import annotations

import math
import sys
import threading

import numpy as np
import torch


def _references(buffers: list[np.ndarray], position: int) -> int:
    return sys.getrefcount(buffers[position])


# How many references a buffer has that only the list holds; measured, as interpreters count differently.
_FREE = _references([np.empty(0)], 0)


class ReusedBuffers:
    """Hands out tensors on memory that is taken back when the last tensor on it is gone.

    Tensors may be kept as long as one likes, as they keep their memory; then the next ones are on new memory. Safe
    among threads.
    """

    def __init__(self, dtype: type[np.generic]) -> None:
        self._dtype = dtype
        self._buffers: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """An uninitialised tensor."""
        size = math.prod(shape)
        with self._lock:
            free = [i for i in range(len(self._buffers)) if _references(self._buffers, i) == _FREE]
            for position in free:
                if self._buffers[position].size == size:
                    return torch.from_numpy(self._buffers[position]).view(shape)
            # Free memory of other sizes belongs to batches that are over.
            for position in reversed(free):
                del self._buffers[position]
            self._buffers.append(np.empty(size, self._dtype))
            return torch.from_numpy(self._buffers[-1]).view(shape)

    def __len__(self) -> int:
        return len(self._buffers)
