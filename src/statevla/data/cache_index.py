"""What a frame cache holds beside its frames: arrays, and the index that names them all with their checksums."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from statevla.data.frame_store import REBUILD
from statevla.errors import UserError
from statevla.machine.sealed import check_seal, seal
from statevla.machine.storage import sha256, sync, write_json, writing

CACHE_VERSION = 4
INDEX_FILE = "cache.json"
CACHE_FIX = "make room or set data.cache_dir"
_ARRAYS = "arrays"


def write_index(folder: Path, tree: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays, then the index: `tree`, the arrays' names with their SHA-256, and its seal.

    Raises:
        UserError: the disk does not take it.
    """
    digests = {}
    with writing(f"frame cache {folder}", CACHE_FIX):
        for name in sorted(arrays):
            file = _array_file(folder, name)
            np.save(file, arrays[name])
            sync(file)
            digests[name] = sha256(file)
    index = {"version": CACHE_VERSION, **tree, _ARRAYS: digests}
    write_json(folder / INDEX_FILE, seal(index), CACHE_FIX)


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a cache, `arrays` being name → SHA-256.

    Raises:
        UserError: there is none, or it is damaged or of another version.
    """
    path = folder / INDEX_FILE
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"frame cache {folder}: no {INDEX_FILE}; it was never finished, delete the folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"frame cache {path}: not readable ({error}); {REBUILD}") from None
    version = index.get("version") if isinstance(index, dict) else None
    if version != CACHE_VERSION:
        raise UserError(f"frame cache {path}: version {version}, expected {CACHE_VERSION}; {REBUILD}")
    check_seal(index, f"frame cache {path}", REBUILD)
    return index


def read_array(folder: Path, name: str, index: Mapping[str, Any], num_rows: int) -> np.ndarray:
    """An array of a cache with `num_rows` rows.

    Raises:
        UserError: it is not as it was written.
    """
    path = _array_file(folder, name)
    try:
        if sha256(path) != index[_ARRAYS][name]:
            raise UserError(f"frame cache {path}: damaged, it is not as it was written; {REBUILD}")
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"frame cache {path}: not readable ({error}); {REBUILD}") from None
    if len(array) != num_rows:
        raise UserError(f"frame cache {path}: {len(array)} rows, expected {num_rows}; {REBUILD}")
    return array


def _array_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"
