"""How messages are coded: msgpack with NumPy arrays, byte for byte as openpi's client and server do it.

An array is `{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [..]}`, a NumPy scalar
`{b"__npgeneric__": True, b"data": number, b"dtype": "<f4"}` (Physical-Intelligence/openpi,
packages/openpi-client/src/openpi_client/msgpack_numpy.py). Only booleans, integers and floats of up to 8 bytes are
read or written: object arrays would need pickle, and nothing here ever unpickles. Whatever a message claims about
itself (lengths, shapes, types) is checked before memory is taken for it.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack
import numpy as np

MAX_MESSAGE_BYTES = 16 * 2**20
MAX_STRING_BYTES = 4096
MAX_ENTRIES_PER_MAP = 64
MAX_ITEMS_PER_LIST = 256
MAX_OBJECTS = 4096
"""Entries of all lists and maps of one message: a byte can claim an object of fifty."""
MAX_ARRAY_DIMS = 8

_PLAIN_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248])")


class WireError(Exception):
    """A message that is not what it should be; its text is one line and safe to send to the other side."""


def pack(message: dict[str, Any]) -> bytes:
    """Code one message; values are numbers, strings, lists, maps, NumPy arrays and scalars.

    Raises:
        WireError: an array has another dtype than booleans, integers and floats, or a value has another type.
    """
    try:
        return msgpack.packb(message, default=_code)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"message not sendable: {' '.join(str(error).split())}") from None


def unpack(
    data: bytes | str, max_bytes: int = MAX_MESSAGE_BYTES, max_items_per_list: int = MAX_ITEMS_PER_LIST
) -> dict[str, Any]:
    """Decode one message of at most `max_bytes`; arrays are read-only views of it.

    Args:
        max_items_per_list: longer lists are refused before memory is taken for them.

    Raises:
        WireError: it is text, too long, cut short, no msgpack, no map with string keys, or holds what is refused.
    """
    if isinstance(data, str):
        raise WireError("message: expected a binary msgpack frame, got text; send the request packed")
    if len(data) > max_bytes:
        raise WireError(f"message: expected at most {max_bytes} bytes, got {len(data)}; send smaller images")
    reader = _Reader()
    try:
        message = msgpack.unpackb(
            data,
            object_hook=reader.on_map,
            list_hook=reader.on_list,
            max_str_len=MAX_STRING_BYTES,
            max_bin_len=max_bytes,
            max_array_len=max_items_per_list,
            max_map_len=MAX_ENTRIES_PER_MAP,
            max_ext_len=0,
        )
    except WireError:
        raise
    except Exception:
        # Cut short, trailing bytes, bad UTF-8, too long, too deep, ...: msgpack has an exception for each, some of
        # them bare ValueErrors. Its texts are not for the other side.
        raise WireError("message: not readable as msgpack within the limits; send one packed map") from None
    if not isinstance(message, dict):
        raise WireError("message: expected a map of named values; send the request as one map")
    if not all(isinstance(key, str) for key in message):
        raise WireError("message: expected strings as keys of the request")
    return message


def _code(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        _check_dtype(value.dtype.str)
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"values of type {type(value).__name__} are not sent")


class _Reader:
    """Callbacks of the decoder for one message; they count what it has built so far."""

    def __init__(self) -> None:
        self._num_objects = 0

    def on_list(self, items: list[Any]) -> list[Any]:
        self._count(items)
        return items

    def on_map(self, entries: dict[Any, Any]) -> Any:
        self._count(entries)
        if b"__ndarray__" in entries:
            return _read_array(entries)
        if b"__npgeneric__" in entries:
            return _read_scalar(entries)
        return entries

    def _count(self, container: list[Any] | dict[Any, Any]) -> None:
        self._num_objects += 1 + len(container)
        if self._num_objects > MAX_OBJECTS:
            raise WireError(f"message: expected at most {MAX_OBJECTS} values; send arrays instead of lists")


def _read_array(entries: dict[Any, Any]) -> np.ndarray:
    if entries.keys() != {b"__ndarray__", b"data", b"dtype", b"shape"}:
        raise WireError("array: expected data, dtype and shape")
    dtype, shape, data = _check_dtype(entries[b"dtype"]), entries[b"shape"], entries[b"data"]
    if not isinstance(data, bytes):
        raise WireError("array: expected its data as bytes")
    plain = isinstance(shape, list) and len(shape) <= MAX_ARRAY_DIMS and all(type(n) is int and n >= 0 for n in shape)
    if not plain:
        raise WireError(f"array: expected a shape of at most {MAX_ARRAY_DIMS} non-negative integers")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise WireError("array: its data do not fill its shape; send as many bytes as shape and dtype say")
    return np.frombuffer(data, dtype).reshape(shape)


def _read_scalar(entries: dict[Any, Any]) -> np.generic:
    if entries.keys() != {b"__npgeneric__", b"data", b"dtype"}:
        raise WireError("scalar: expected data and dtype")
    dtype, value = _check_dtype(entries[b"dtype"]), entries[b"data"]
    if not isinstance(value, bool | int | float):
        raise WireError("scalar: expected a number")
    try:
        return dtype.type(value)
    except (OverflowError, ValueError):
        raise WireError("scalar: its value does not fit its dtype") from None


def _check_dtype(name: Any) -> np.dtype:
    if isinstance(name, str) and _PLAIN_DTYPE.fullmatch(name):
        return np.dtype(name)
    raise WireError("dtype refused: expected booleans, integers or floats of at most 8 bytes")
