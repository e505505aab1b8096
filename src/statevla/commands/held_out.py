"""What the commands share that measure a checkpoint on held-out episodes: their flags, and what they print."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from statevla.types import Orientation


@dataclass(frozen=True)
class HeldOutArgs:
    checkpoint: str
    """A checkpoint folder, a run folder, or .../checkpoint_best.pt."""
    data: str | None = None
    """Another data set than the one it was trained on; split as in training."""
    orientation: Orientation = "auto"
    """How the frames of `--data` are stored; `auto` believes the data set."""
    device: str = "auto"
    """As in the configuration."""


def print_results(results: dict[str, Any], lines: Iterable[str], file: Path, pictures: list[Path]) -> None:
    """Tables, sentences (`lines`, and the results' notes), and what was written where."""
    from statevla.diagnostics.plots import names_of
    from statevla.diagnostics.tables import result_tables

    console = Console(markup=False, width=None if sys.stdout.isatty() else 160)
    for table in result_tables(results):
        console.print(table)
    for line in [*lines, *results["notes"]]:
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"{file.parent}: {file.name}, {names_of(pictures)}", soft_wrap=True)
