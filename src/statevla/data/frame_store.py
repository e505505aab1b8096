"""The frames of a cache on disk, and a checksum of each one that every reading compares.

CRC-32 finds every single flipped bit and all damage within 32 bits in a row; it takes 23 µs for a frame of two 128 px
cameras (4 GB/s), where preparing the frame for a batch takes some 100 µs.

Frames are read with `pread` into the batch's own buffer. A memory map would count every page touched as the process's
own memory until the kernel takes it back; this way training on a cache of any size needs only its batches.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from statevla.data.frame_codecs import RAW, decode_frame
from statevla.errors import UserError

FRAMES_FILE = "frames.bin"
REBUILD = "delete its folder to build it again"


def frame_checksum(stored: Any) -> int:
    """CRC-32 of a frame as it is stored: bytes, or a contiguous array."""
    return zlib.crc32(stored)


class FrameStore:
    """Frames of one shape, read by their numbers. Threads may read at the same time.

    Args:
        folder: of the cache.
        shape: of a frame, `[V, P, P, 3]`.
        codec: as in `data.cache_codec`.
        crcs: uint32 `[frames]`, of what is stored of each frame.
        offsets: int64 `[frames + 1]`, where each frame begins and the last one ends, in bytes; None for raw frames. A
            frame of no bytes is black.

    Raises:
        UserError: the file is missing or of another size.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, ...], codec: str, crcs: np.ndarray, offsets: np.ndarray | None
    ) -> None:
        self._path = folder / FRAMES_FILE
        self._shape, self._codec = shape, codec
        self._crcs, self._offsets = crcs, offsets
        self._frame_bytes = int(np.prod(shape))
        self._file = -1
        self._open()

    def read(self, indices: torch.Tensor | np.ndarray, out: torch.Tensor | None = None) -> torch.Tensor:
        """Frames `[..., V, P, P, 3]` of any shape of indices `[...]`, into `out` if given (contiguous).

        Raises:
            UserError: a frame is not as it was written.
        """
        wanted = np.asarray(indices, np.int64)
        flat = wanted.reshape(-1)
        if out is None:
            out = torch.empty((*wanted.shape, *self._shape), dtype=torch.uint8)
        if not flat.size:
            return out
        frames = out.numpy().reshape(-1, *self._shape)
        if self._codec == RAW:
            self._read_raw(flat, frames)
        else:
            for index, frame in zip(flat.tolist(), frames):
                self._read_coded(index, frame)
        return out

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": -1}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        try:
            self._file = os.open(self._path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise UserError(f"frame cache {self._path}: not readable ({error.strerror}); delete its folder") from None
        end = len(self._crcs) * self._frame_bytes if self._offsets is None else int(self._offsets[-1])
        found = os.fstat(self._file).st_size
        if found != end:
            raise UserError(f"frame cache {self._path}: {found} bytes, expected {end}; {REBUILD}")

    def _read_raw(self, indices: np.ndarray, frames: np.ndarray) -> None:
        buffer, size = memoryview(frames.data).cast("B"), self._frame_bytes
        # Neighbouring frames are neighbours on disk: one read per run.
        breaks = (np.flatnonzero(np.diff(indices) != 1) + 1).tolist()
        for first, last in zip([0, *breaks], [*breaks, len(indices)]):
            self._read_into(buffer[first * size : last * size], int(indices[first]) * size)
        for place, index in enumerate(indices.tolist()):
            self._check(index, buffer[place * size : (place + 1) * size])

    def _read_coded(self, index: int, out: np.ndarray) -> None:
        assert self._offsets is not None
        start, stop = int(self._offsets[index]), int(self._offsets[index + 1])
        content = bytearray(stop - start)
        self._read_into(memoryview(content), start)
        self._check(index, content)
        if content:
            decode_frame(self._codec, bytes(content), out)
        else:
            out[...] = 0

    def _read_into(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._file, [buffer[done:]], offset + done)
            except OSError as error:  # a failing disk
                raise UserError(f"frame cache {self._path}: not readable ({error.strerror}); {REBUILD}") from None
            if count <= 0:
                raise UserError(f"frame cache {self._path}: ends at byte {offset + done}; {REBUILD}")
            done += count

    def _check(self, index: int, stored: memoryview | bytearray) -> None:
        if frame_checksum(stored) != self._crcs[index]:
            raise UserError(
                f"frame cache {self._path}: frame {index} is damaged, it is not as it was written; {REBUILD}"
            )
