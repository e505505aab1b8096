"""A checkpoint as a folder that needs nothing else, with its model card, here or on the hub."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from statevla.checkpoints.checkpoint import RUN_FILE, read_config, read_robot, read_weights, weights_hash
from statevla.checkpoints.hub import upload
from statevla.checkpoints.measured import Measured, find_results, save_results
from statevla.checkpoints.model_card import model_card
from statevla.checkpoints.version import (
    ALARM_PREFIX,
    CARD,
    MODEL_FILE,
    ROUNDED_FROM,
    check_files,
    read_version,
    write_version,
)
from statevla.config import expand_path, portable_text
from statevla.errors import UserError
from statevla.machine.lock import only_writer_of
from statevla.machine.storage import check_own, read_json, replacing_folder, write_tensors, writing
from statevla.model.language import FILE_SUFFIXES, build_language_encoder


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
    homes = _homes(checkpoint)
    for file in files:
        check_own(file, homes)
    if run is not None:
        check_own(run, [*homes, checkpoint.parent])
    # Damage shall be found here, not by whoever downloads it.
    check_files(checkpoint)
    weights = read_weights(checkpoint)
    read_robot(checkpoint)
    embeddings = _embeddings_of(checkpoint)
    version = read_version(checkpoint)
    with only_writer_of(target), writing(target), replacing_folder(target) as part:
        for file in files:
            if file.is_file() and not (half and file.name.startswith(ALARM_PREFIX)):  # thresholds of other weights
                shutil.copy2(file, part / file.name)
        for file in filter(None, (checkpoint / "config.json", run)):
            text = portable_text(file.read_text(encoding="utf-8"))
            (part / file.name).write_text(text, encoding="utf-8")
        if half:
            write_tensors(part / MODEL_FILE, _rounded(weights))
            version[ROUNDED_FROM] = weights_hash(checkpoint)
        if embeddings is not None:
            shutil.copy2(embeddings, part / embeddings.name)
        write_version(part, version)
        found = Measured([checkpoint.parent, *measured.runs], measured.rollouts)
        results = find_results(part, found, checkpoint)
        save_results(results, part)
        write_version(part, version)  # once more, with what was measured
        called = name or (target.name if target.is_absolute() else target.as_posix())
        (part / CARD).write_text(model_card(part, called, results), encoding="utf-8")
    return target


def _rounded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with every matrix in float16."""
    return {
        name: tensor.half() if tensor.ndim > 1 and tensor.dtype == torch.float32 else tensor
        for name, tensor in weights.items()
    }


def push_checkpoint(
    checkpoint: Path, repo_id: str, private: bool = False, measured: Measured | None = None, half: bool = False
) -> str:
    """Upload what `copy_checkpoint` writes; returns the repository's address.

    Raises:
        UserError: the checkpoint is damaged, no hub is reachable, or it refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_checkpoint(checkpoint, Path(folder) / "copy", repo_id, measured, half)
        return upload(copy, repo_id, private)


def _homes(checkpoint: Path) -> list[Path]:
    """Where links of a checkpoint may lead: into it; the hub's cache links to its own blobs."""
    homes, snapshots = [checkpoint], checkpoint.parent
    if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
        homes.append(snapshots.parent / "blobs")
    return homes


def _embeddings_of(checkpoint: Path) -> Path | None:
    """The file of precomputed instruction embeddings that the checkpoint depends on and that is not in its folder.

    Raises:
        UserError: the file is another one than the checkpoint was trained with; its configuration may name any.
    """
    config = read_config(checkpoint)
    file = expand_path(config.language.encoder)
    if file.suffix not in FILE_SUFFIXES or not file.is_file() or (checkpoint / file.name).is_file():
        return None
    found = build_language_encoder(config.language, config.model.language_dim).fingerprint()
    trained = read_json(checkpoint / "language.json").get("fingerprint")
    if found != trained:
        raise UserError(
            f"{checkpoint / 'config.json'}: language.encoder {file} has the fingerprint {found}, the checkpoint was "
            f"trained with {trained}; put that file into the checkpoint's folder"
        )
    return file
