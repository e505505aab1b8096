"""Files that survive a kill at any moment: written beside their target, synced, renamed.

A folder cannot replace another one in a single portable step, so `replace_folder` moves the old one to
`.<name>.old` first. `recover_folder` undoes that where the process ended in between: at every moment either
`<name>` or `.<name>.old` is whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statevla.errors import UserError

if TYPE_CHECKING:  # most of this file serves code that runs without PyTorch
    import torch

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HDF5_ERRNO = re.compile(r"\berrno = (\d+)")
FIX = "what was there before is intact; make room or choose another place, and go on"


@contextlib.contextmanager
def writing(what: Path | str, fix: str = FIX) -> Iterator[None]:
    """Turn failures of writing into a UserError that names `what` and ends with `fix`; a full disk is named as such."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        code, text = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
        # HDF5 tells the system's error in the middle of its own words, whatever h5py makes of them.
        if hidden := _HDF5_ERRNO.search(str(error)):
            code, text = int(hidden[1]), os.strerror(int(hidden[1]))
        elif isinstance(error, RuntimeError):
            raise
        text = " ".join(text.split())
        full = code in FULL_DISK or "space left" in text or "too large" in text
        raise UserError(f"{what}: cannot be written ({'the disk is full' if full else text}); {fix}") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path to write a file to, which the end of the block syncs and renames to `path`; parent folders are made.

    If the block fails, what was at `path` stays and what was written is removed.

    Raises:
        OSError: the disk does not take it; `writing` makes it a UserError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(part_name(path.name, os.getpid()))  # other processes may be writing the same file
    try:
        yield part
        sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill, which the end of the block syncs and renames to `target`; parent folders are made.

    If the block fails nothing of it is kept; what an earlier one left that was killed is removed. One at a time, see
    `statevla.machine.lock`.

    Raises:
        UserError: `target` is there already, and not an empty folder.
        OSError: the disk does not take it; `writing` makes it a UserError.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists already, expected a new or an empty folder; choose another one or delete it")
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for path in (*part.rglob("*"), part):
            sync(path)
        if target.exists():
            target.rmdir()
        os.rename(part, target)
        sync(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def part_name(name: str, pid: int) -> str:
    """Of a file that a process is writing, and that is to become `name`."""
    return f".{name}.{pid}.part"


def check_own(file: Path, homes: Iterable[Path]) -> None:
    """Raise a UserError where a file is a link to, or lies behind a link to, something outside of all of `homes`."""
    whole = file.resolve()
    if not any(whole.is_relative_to(home.resolve()) for home in homes):
        raise UserError(
            f"{file}: expected a file of its own folder, got a link to {whole}; remove it, or put the file itself there"
        )


def write_text(path: Path, text: str, fix: str = FIX) -> None:
    """Write a text file, whole or not at all.

    Raises:
        UserError: the disk does not take it; it ends with `fix`.
    """
    with writing(path, fix), replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write to an unbuffered file, of which one write may take a part only: closing it then has nothing left to write.

    Raises:
        OSError: the disk does not take it.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def write_json(path: Path, tree: Any, fix: str = FIX) -> None:
    """Write JSON, whole or not at all; numbers must be finite.

    Raises:
        UserError: the disk does not take it; it ends with `fix`.
    """
    write_text(path, json.dumps(tree, indent=1, allow_nan=False) + "\n", fix)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: absent, cut short, not JSON, or nested too deeply.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the checkpoint is incomplete, take another one") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: not readable as JSON ({reason}); the file is damaged, take another checkpoint"
        ) from None


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file, whole or not at all. Tensors go to the CPU; shared memory is copied apart.

    Raises:
        UserError: the disk does not take it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    own: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        key = plain.untyped_storage().data_ptr()
        own[name] = plain.clone() if key in seen or plain.untyped_storage().nbytes() != plain.nbytes else plain
        seen.add(key)
    with writing(path), replacing(path) as part:
        try:
            save_file(own, part)
        except SafetensorError as error:  # its name for a full disk
            raise OSError(str(error)) from None


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file whole.

    Raises:
        UserError: absent, cut short or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path}: no such file; the checkpoint is incomplete, take another one")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged or cut short ({reason}); take another checkpoint") from None


def sha256(path: Path) -> str:
    """Digest of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
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
