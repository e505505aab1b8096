"""The command `statevla data draw`: human demonstrations of robosuite, with pictures."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from statevla.errors import UserError
from statevla.worlds.robosuite.replay import replay_demonstrations


@dataclass(frozen=True)
class DrawArgs:
    """Draw the pictures of recorded demonstrations."""

    source: tyro.conf.Positional[str]
    """`lift`, `handover` or `wipe`, which come along with robosuite, or another demonstration file of robosuite."""
    out: Path
    """HDF5 file to write; data.path of a training."""
    image_size: int = 128
    """Side of the frames (pixels)."""
    cameras: tuple[str, ...] | None = None
    """Cameras of the scene; by default one of the scene and one at every hand."""
    instruction: str | None = None
    """The task in words, for files that come from elsewhere."""


def draw(args: DrawArgs) -> None:
    """Write a data set from a robosuite demonstration file: its states replayed and drawn, beside its actions."""
    if args.image_size < 16:
        raise UserError(f"--image-size: expected at least 16, got {args.image_size}")
    written = replay_demonstrations(
        args.source, args.out, args.image_size, args.cameras, args.instruction, progress=sys.stderr.isatty()
    )
    Console().print(f"written: {written}", soft_wrap=True)
