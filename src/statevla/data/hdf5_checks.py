"""Checksums in the HDF5 files that we write: a flipped bit is an error when it is read, and no other number.

Arrays carry HDF5's own Fletcher-32 per chunk, and the format since 1.10 one over all that describes them. Text in
attributes has neither, and gets a CRC-32 in an attribute of the file's own.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from statevla.errors import UserError

CHECKSUM_ATTRIBUTE = "attributes_crc32"
"""Of the file: over all attributes of the groups and arrays in it."""
_FORMAT = "v110"
_CHUNK_BYTES = 1 << 16


def create_hdf5(path: Path) -> h5py.File:
    """A new file whose structure carries checksums; HDF5 1.10 (2016) and later read it.

    Raises:
        OSError: it cannot be written.
    """
    # No cache of chunks: what a full disk does not take would be written once more, and fail where nobody can catch it.
    return h5py.File(path, "w", libver=(_FORMAT, _FORMAT), rdcc_nbytes=0)


def write_array(group: h5py.Group, name: str, values: np.ndarray) -> h5py.Dataset:
    """Write an array `[steps, ...]` with checksums: a chunk for some steps, of 64 KB or one step.

    Raises:
        OSError: the disk does not take it.
    """
    values = np.asarray(values)
    if not values.size:  # nothing that could be damaged
        return group.create_dataset(name, data=values)
    return group.create_dataset(name, data=values, chunks=_chunks(values), fletcher32=True)


def seal_attributes(file: h5py.File) -> None:
    """Note the checksum of all attributes, as the last thing that is written."""
    file.attrs[CHECKSUM_ATTRIBUTE] = _attributes_crc(file)


def check_attributes(file: h5py.File, path: Path) -> None:
    """Compare the checksum of the attributes, where the file has one.

    Raises:
        UserError: an attribute is not what was written.
    """
    if CHECKSUM_ATTRIBUTE in file.attrs and int(file.attrs[CHECKSUM_ATTRIBUTE]) != _attributes_crc(file):
        raise UserError(
            f"data {path}: its attributes are not as they were written; copy the file again, or, if you changed them, "
            f"delete its attribute '{CHECKSUM_ATTRIBUTE}'"
        )


def _chunks(values: np.ndarray) -> tuple[int, ...]:
    per_step = max(values[0].nbytes, 1)
    steps = min(max(1, _CHUNK_BYTES // per_step), len(values))
    # Evenly: the last chunk takes as much room as the others.
    return (math.ceil(len(values) / math.ceil(len(values) / steps)), *values.shape[1:])


def _attributes_crc(file: h5py.File) -> int:
    crc = 0
    found: list[tuple[str, h5py.HLObject]] = [("/", file)]
    file.visititems(lambda name, item: found.append((name, item)))
    for name, item in sorted(found, key=lambda pair: pair[0]):
        for key in sorted(item.attrs):
            if key != CHECKSUM_ATTRIBUTE:
                crc = zlib.crc32(f"{name}\0{key}\0".encode(errors="surrogateescape") + _bytes_of(item.attrs[key]), crc)
    return crc


def _bytes_of(value: Any) -> bytes:
    """What an attribute holds; of numbers with their type and shape."""
    if isinstance(value, (str, bytes)):
        return value.encode(errors="surrogateescape") if isinstance(value, str) else value
    array = np.asarray(value)
    if array.dtype.kind == "O":
        return repr(array.tolist()).encode()
    return f"{array.dtype.str}{array.shape}".encode() + array.tobytes()
