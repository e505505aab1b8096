"""`version.json` of a checkpoint: its format, what wrote it, and the SHA-256 of its files.

What was edited by hand and is meant has `"edited"` in place of its SHA-256. The alarm's files are not listed: they come
later, and look after themselves. Nor is the card, which people may write on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from statevla.checkpoints.provenance import git_commit, versions
from statevla.errors import UserError
from statevla.machine.sealed import EDITED, SEAL, check_seal, seal
from statevla.machine.storage import read_json, sha256, write_json

FORMAT_VERSION = 3
VERSION_FILE, MODEL_FILE, STATE_FOLDER = "version.json", "model.safetensors", "training_state"
CARD = "README.md"
ALARM_PREFIX = "alarm"
ROUNDED_FROM = "rounded_from_sha256"
"""Entry where the weights are those of another checkpoint in half precision."""
_HASHES = "sha256"


def write_version(folder: Path, copied: Mapping[str, Any] | None = None) -> None:
    """Write `version.json`, last, with the SHA-256 of what is in `folder`.

    Args:
        folder: of the checkpoint.
        copied: the version of the checkpoint that this one is a copy of; else it is of this code.

    Raises:
        UserError: the disk does not take it.
    """
    own = {"format": FORMAT_VERSION, "versions": versions(), "git_commit": git_commit()}
    tree = {key: value for key, value in (copied or own).items() if key not in (_HASHES, SEAL)}
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and _is_listed(file.name)]
    hashes = {file.relative_to(folder).as_posix(): sha256(file) for file in files}
    write_json(folder / VERSION_FILE, seal({**tree, _HASHES: hashes}, _HASHES))


def read_version(folder: Path) -> dict[str, Any]:
    """The version of a checkpoint, its format checked; `sha256` has file → digest.

    Raises:
        UserError: it is damaged, or of a format that this code does not read.
    """
    path = folder / VERSION_FILE
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping; the file is damaged")
    if tree.get("format") != FORMAT_VERSION:
        raise UserError(
            f"{path}: checkpoint format {tree.get('format')}, this code reads {FORMAT_VERSION}; "
            "use the statevla version that wrote it (named there)"
        )
    hashes = tree.setdefault(_HASHES, {})
    if not isinstance(hashes, dict) or not all(isinstance(digest, str) for digest in hashes.values()):
        raise UserError(f"{path}: expected hashes by file under sha256; the file is damaged")
    # Earlier versions sealed nothing, and listed the tensors alone.
    was_sealed = any(name.endswith(".json") for name in hashes)
    check_seal(tree, str(path), "take another checkpoint", _HASHES, was_sealed=was_sealed)
    return tree


def recorded_hash(folder: Path, name: str) -> str | None:
    """SHA-256 of a file as the checkpoint records it; None where it does not.

    Raises:
        UserError: as `read_version`.
    """
    digest: str | None = read_version(folder)[_HASHES].get(name)
    return None if digest == EDITED else digest


def check_file(folder: Path, name: str) -> Path:
    """The path of a checkpoint's file, which is as it was written, or known to be edited.

    Raises:
        UserError: it is absent, or not as it was written.
    """
    path, recorded = folder / name, recorded_hash(folder, name)
    try:
        found = sha256(path)
    except FileNotFoundError:
        listed = f", which {VERSION_FILE} lists" if recorded else ""
        raise UserError(f"{path}: no such file{listed}; the checkpoint is incomplete, take another one") from None
    except OSError as error:
        raise UserError(f"{path}: not readable ({error.strerror}); take another checkpoint") from None
    if recorded is not None and found != recorded:
        raise UserError(
            f"{path}: damaged or cut short, or edited (its SHA-256 is not the one in {VERSION_FILE}); take another "
            f'checkpoint, or, to accept an edit, write "{EDITED}" in place of the SHA-256 there'
        )
    return path


def check_files(folder: Path) -> None:
    """Check all files that a checkpoint lists, but for its training state, which copies do without.

    Raises:
        UserError: one is absent, or not as it was written.
    """
    for name in read_version(folder)[_HASHES]:
        if not name.startswith(f"{STATE_FOLDER}/"):
            check_file(folder, name)


def _is_listed(name: str) -> bool:
    return name not in (VERSION_FILE, CARD) and not name.startswith((".", ALARM_PREFIX))
