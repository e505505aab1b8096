"""`statevla share`: a checkpoint as a folder that needs nothing else, with its model card, here or on the hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from statevla.config import config_from_dict, expand_path
from statevla.errors import UserError
from statevla.model_card import model_card
from statevla.training.checkpoint import check_format, read_weights, resolve_checkpoint
from statevla.training.hub import upload
from statevla.training.storage import read_json, writing

CARD = "README.md"


@dataclass(frozen=True)
class ShareArgs:
    checkpoint: str
    """A checkpoint folder, a run folder, or .../checkpoint_best.pt."""
    to: str
    """A new folder, or `owner/repository` of the hub with --push."""
    rollouts: tuple[str, ...] = ()
    """Results folders of `statevla rollout` for the model card; those in $STATEVLA_HOME/rollouts are found."""
    push: bool = False
    """Upload to the Hugging Face hub."""
    private: bool = False
    """With --push: make the repository private."""


def share(args: ShareArgs) -> None:
    """Copy a checkpoint without its training state, with a model card, to a folder or to the hub."""
    checkpoint, rollouts = resolve_checkpoint(args.checkpoint), [expand_path(folder) for folder in args.rollouts]
    if args.push:
        print(push_checkpoint(checkpoint, args.to, args.private, rollouts))
        return
    if args.private:
        raise UserError("--private: expected together with --push; add it, or leave --private out")
    print(copy_checkpoint(checkpoint, expand_path(args.to), rollouts=rollouts))


def copy_checkpoint(checkpoint: Path, target: Path, name: str | None = None, rollouts: Sequence[Path] = ()) -> Path:
    """Copy a checkpoint's own files and write its card; a file of instruction embeddings goes along.

    Args:
        checkpoint: its folder.
        target: a folder that does not exist yet, or is empty.
        name: for the card; that of `target` by default.
        rollouts: see `model_card`.

    Raises:
        UserError: the checkpoint is damaged, or `target` is not empty or cannot be written.
    """
    check_format(checkpoint)
    read_weights(checkpoint)  # damage shall be found here, not by whoever downloads it
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: expected a new or an empty folder; choose another one")
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(checkpoint.iterdir()):
            if file.is_file() and file.name != CARD and not file.name.startswith("."):
                shutil.copy2(file, target / file.name)
        if (embeddings := _embeddings_of(checkpoint)) is not None:
            shutil.copy2(embeddings, target / embeddings.name)
        (target / CARD).write_text(model_card(checkpoint, name or target.name, rollouts), encoding="utf-8")
    return target


def push_checkpoint(checkpoint: Path, repo_id: str, private: bool = False, rollouts: Sequence[Path] = ()) -> str:
    """Upload what `copy_checkpoint` writes; returns the repository's address.

    Raises:
        UserError: the checkpoint is damaged, no hub is reachable, or it refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy_checkpoint(checkpoint, Path(folder), repo_id, rollouts)
        return upload(Path(folder), repo_id, private)


def _embeddings_of(checkpoint: Path) -> Path | None:
    """The file of precomputed instruction embeddings that the checkpoint depends on, if it does."""
    path = checkpoint / "config.json"
    encoder = config_from_dict(read_json(path), source=str(path)).language.encoder
    file = expand_path(encoder)
    return file if file.is_file() else None
