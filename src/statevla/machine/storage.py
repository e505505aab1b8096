"""Files that survive a kill at any moment: written beside their target, synced, renamed.

A folder cannot replace another one in a single portable step, so `replace_folder` moves the old one to
`.<name>.old` first. `recover_folder` undoes that where the process ended in between: at every moment either
`<name>` or `.<name>.old` is whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from statevla.errors import UserError


@contextlib.contextmanager
def writing(what: Path) -> Iterator[None]:
    """Turn failures of writing into a UserError that names `what`; a full disk is named as such."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else None
        text = " ".join(str(error).split())
        full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "space left" in text or "too large" in text
        reason, fix = ("the disk is full", "free space") if full else (text, "mend that")
        raise UserError(
            f"{what}: not written, {reason}; what was saved before is intact, {fix} and go on with --resume"
        ) from None


def write_json(path: Path, tree: Any) -> None:
    """Write JSON and sync it to the disk; the parent folder must exist."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(tree, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def write_json_atomically(path: Path, tree: Any) -> None:
    """`write_json` under a temporary name, then renamed over `path`."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(temporary, tree)
        os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: absent, cut short or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the checkpoint is incomplete, take another one") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: not readable as JSON ({reason}); the file is damaged, take another checkpoint"
        ) from None


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file and sync it to the disk. Tensors go to the CPU; shared memory is copied apart."""
    own: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        key = plain.untyped_storage().data_ptr()
        own[name] = plain.clone() if key in seen or plain.untyped_storage().nbytes() != plain.nbytes else plain
        seen.add(key)
    save_file(own, path)
    sync(path)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file whole.

    Raises:
        UserError: absent, cut short or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; the checkpoint is incomplete, take another one")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged or cut short ({reason}); take another checkpoint") from None


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(new: Path, target: Path) -> None:
    """Put the finished folder `new` in the place of `target`."""
    old = _old_name(target)
    recover_folder(target)
    sync(new)
    if target.exists():
        os.rename(target, old)
    os.rename(new, target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Undo a replacement that was cut off, and remove what a finished one left behind."""
    old = _old_name(target)
    if not old.exists():
        return
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(old, target)


def whole_folder(target: Path) -> Path | None:
    """`target`, or its predecessor where a replacement was cut off, or None; changes nothing."""
    return next((folder for folder in (target, _old_name(target)) if folder.is_dir()), None)


def _old_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
