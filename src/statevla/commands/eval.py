"""The command line of `eval.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from rich.console import Console

from statevla.checkpoints.comparisons import comparisons
from statevla.commands.earlier_flags import refuse_earlier_flags
from statevla.commands.entry import run_command
from statevla.config import results_dir
from statevla.types import Orientation


@dataclass(frozen=True)
class EvalArgs:
    checkpoint: str
    """A checkpoint folder, a run folder, or .../checkpoint_best.pt."""
    out: str | None = None
    """Folder for results; `evaluation_<checkpoint>` beside the checkpoint by default."""
    data: str | None = None
    """Another data set than the one it was trained on."""
    orientation: Orientation = "auto"
    """How the frames of `--data` are stored; `auto` believes the data set."""
    split: Literal["validation", "train", "all"] = "validation"
    """Which episodes."""
    max_samples: int = 2_000
    """Frames to sample action chunks for."""
    num_seeds: int = 4
    """Chunks sampled per frame."""
    steps: int | None = None
    """Solver steps; the configuration's by default."""
    probes: bool = True
    """Also fit probes (what can be read out of z)."""
    device: str = "auto"
    """As in the configuration."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `eval.py`."""
    run_command(lambda: _evaluate(list(sys.argv[1:] if arguments is None else arguments)))


def _evaluate(arguments: list[str]) -> None:
    import tyro

    refuse_earlier_flags("eval", arguments)
    args = tyro.cli(EvalArgs, prog="eval.py", args=arguments, description="Evaluate a checkpoint on held-out episodes.")
    offline(args)


def offline(args: EvalArgs) -> None:
    """Evaluate a checkpoint on held-out episodes: action errors, world model, probes; JSON, tables and pictures."""
    from statevla.checkpoints.checkpoint import resolve_checkpoint
    from statevla.diagnostics.offline import evaluate, finite_tree
    from statevla.diagnostics.plots import draw_all, names_of
    from statevla.diagnostics.tables import result_tables
    from statevla.machine.lock import only_writer_in
    from statevla.machine.sealed import seal
    from statevla.machine.storage import write_json

    folder = resolve_checkpoint(args.checkpoint)
    out = Path(args.out) if args.out else results_dir(folder, f"evaluation_{folder.name.strip('.')}")
    with only_writer_in(out, "choose another --out"):
        evaluation = evaluate(
            args.checkpoint,
            args.data,
            args.split,
            args.max_samples,
            args.num_seeds,
            args.steps,
            args.probes,
            args.device,
            args.orientation,
        )
        write_json(out / "evaluation.json", seal(finite_tree(evaluation.results)))
        pictures = draw_all(evaluation.results, evaluation.samples, out)
    console = Console(markup=False, width=None if sys.stdout.isatty() else 160)
    for table in result_tables(evaluation.results):
        console.print(table)
    for line in [*comparisons(evaluation.results.get("actions", {})), *evaluation.results["notes"]]:
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"{out}: evaluation.json, {names_of(pictures)}", soft_wrap=True)
