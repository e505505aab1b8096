"""A checkpoint as a folder that needs nothing else, with its model card, here or on the hub."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from statevla.checkpoints.checkpoint import (
    ALARM_FILE,
    MEMORY_FILE,
    MODEL_FILE,
    ROUNDED_FROM,
    RUN_FILE,
    VERSION_FILE,
    check_format,
    read_weights,
    weights_hash,
)
from statevla.checkpoints.hub import upload
from statevla.checkpoints.model_card import Measured, model_card
from statevla.config import config_from_dict, expand_path, portable_text
from statevla.errors import UserError
from statevla.machine.storage import read_json, sha256, write_json, write_tensors, writing
from statevla.model.language import FILE_SUFFIXES, build_language_encoder
from statevla.robots import RobotSpec

CARD = "README.md"


def copy_checkpoint(
    checkpoint: Path, target: Path, name: str | None = None, measured: Measured | None = None, half: bool = False
) -> Path:
    """Copy a checkpoint's own files and write its card; a file of instruction embeddings goes along.

    Args:
        checkpoint: its folder.
        target: a folder that does not exist yet, or is empty.
        name: for the card, and what `from_pretrained` is to be called with; by default the name of `target`, and its
            path where that is relative.
        measured: for the card; evaluations in the folder of the checkpoint's run are found in any case.
        half: round the matrices to float16; they are float32 again once loaded.

    Raises:
        UserError: the checkpoint is damaged, one of its files is a link to somewhere else, or `target` is not empty or
            cannot be written.
    """
    measured = measured or Measured()
    files = [file for file in sorted(checkpoint.iterdir()) if file.name != CARD and not file.name.startswith(".")]
    run = next((file for file in (checkpoint / RUN_FILE, checkpoint.parent / RUN_FILE) if file.is_file()), None)
    # Before anything is read: a checkpoint may come from anywhere, what it links to shall not go along.
    for file in filter(None, (*files, run)):
        _check_own(file, checkpoint)
    check_format(checkpoint)
    # Damage shall be found here, not by whoever downloads it.
    read_weights(checkpoint)
    RobotSpec.from_dict(read_json(checkpoint / "robot.json"), str(checkpoint / "robot.json"))
    embeddings = _embeddings_of(checkpoint)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: expected a new or an empty folder; choose another one")
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        for file in files:
            if file.is_file():
                shutil.copy2(file, target / file.name)
        for file in filter(None, (checkpoint / "config.json", run)):
            text = portable_text(file.read_text(encoding="utf-8"))
            (target / file.name).write_text(text, encoding="utf-8")
        if half:
            _round_weights(checkpoint, target)
        if embeddings is not None:
            shutil.copy2(embeddings, target / embeddings.name)
        found = Measured([checkpoint.parent, *measured.runs], measured.rollouts)
        called = name or (target.name if target.is_absolute() else target.as_posix())
        (target / CARD).write_text(model_card(target, called, found), encoding="utf-8")
    return target


def _round_weights(checkpoint: Path, target: Path) -> None:
    """Write the weights anew with every matrix in float16, and say in the version what they were rounded from."""
    weights = read_weights(checkpoint)
    for name, tensor in weights.items():
        if tensor.ndim > 1 and tensor.dtype == torch.float32:
            weights[name] = tensor.half()
    write_tensors(target / MODEL_FILE, weights)
    version = read_json(target / VERSION_FILE)
    version["sha256"] = {MODEL_FILE: sha256(target / MODEL_FILE)}
    version[ROUNDED_FROM] = weights_hash(checkpoint)
    write_json(target / VERSION_FILE, version)
    for name in (ALARM_FILE, MEMORY_FILE):  # thresholds of other weights
        (target / name).unlink(missing_ok=True)


def push_checkpoint(
    checkpoint: Path, repo_id: str, private: bool = False, measured: Measured | None = None, half: bool = False
) -> str:
    """Upload what `copy_checkpoint` writes; returns the repository's address.

    Raises:
        UserError: the checkpoint is damaged, no hub is reachable, or it refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy_checkpoint(checkpoint, Path(folder), repo_id, measured, half)
        return upload(Path(folder), repo_id, private)


def _check_own(file: Path, checkpoint: Path) -> None:
    """Raise a UserError where a file is a link out of the checkpoint; the hub's cache links to its own blobs."""
    if not file.is_symlink():
        return
    whole, snapshots = file.resolve(), checkpoint.parent
    homes = [checkpoint.resolve()]
    if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
        homes.append((snapshots.parent / "blobs").resolve())
    if not any(whole.is_relative_to(home) for home in homes):
        raise UserError(
            f"{file}: expected a file of the checkpoint, got a link to {whole}; remove it, or put the file itself there"
        )


def _embeddings_of(checkpoint: Path) -> Path | None:
    """The file of precomputed instruction embeddings that the checkpoint depends on and that is not in its folder.

    Raises:
        UserError: the file is another one than the checkpoint was trained with; its configuration may name any.
    """
    path = checkpoint / "config.json"
    config = config_from_dict(read_json(path), source=str(path))
    file = expand_path(config.language.encoder)
    if file.suffix not in FILE_SUFFIXES or not file.is_file() or (checkpoint / file.name).is_file():
        return None
    found = build_language_encoder(config.language, config.model.language_dim).fingerprint()
    trained = read_json(checkpoint / "language.json").get("fingerprint")
    if found != trained:
        raise UserError(
            f"{path}: language.encoder {file} has the fingerprint {found}, the checkpoint was trained with {trained}; "
            "put that file into the checkpoint's folder"
        )
    return file
