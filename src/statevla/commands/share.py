"""`statevla share`: a checkpoint with its model card, in a folder or on the hub."""

from __future__ import annotations

from dataclasses import dataclass

from statevla.checkpoints.checkpoint import resolve_checkpoint
from statevla.checkpoints.measured import Measured
from statevla.checkpoints.share import copy_checkpoint, push_checkpoint
from statevla.config import expand_path
from statevla.errors import UserError


@dataclass(frozen=True)
class ShareArgs:
    checkpoint: str
    """A checkpoint folder, a run folder, or .../checkpoint_best.pt."""
    to: str
    """A new folder, or `owner/repository` of the hub with --push."""
    rollouts: tuple[str, ...] = ()
    """Results folders of `statevla rollout` for the model card; those in $STATEVLA_HOME/rollouts are found."""
    runs: tuple[str, ...] = ()
    """Folders of runs whose offline evaluations the card shows as well, as of the run that a copy comes from."""
    half: bool = False
    """Round the matrices to float16: half the size. The alarm is left out: calibrate it on the copy."""
    push: bool = False
    """Upload to the Hugging Face hub."""
    private: bool = False
    """With --push: make the repository private."""


def share(args: ShareArgs) -> None:
    """Copy a checkpoint without its training state, with a model card, to a folder or to the hub."""
    checkpoint = resolve_checkpoint(args.checkpoint)
    measured = Measured(
        [expand_path(folder) for folder in args.runs], [expand_path(folder) for folder in args.rollouts]
    )
    if args.push:
        print(push_checkpoint(checkpoint, args.to, args.private, measured, args.half))
        return
    if args.private:
        raise UserError("--private: expected together with --push; add it, or leave --private out")
    print(copy_checkpoint(checkpoint, expand_path(args.to), measured=measured, half=args.half))
