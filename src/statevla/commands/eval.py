"""`statevla eval`, `eval.py`: how good a checkpoint is on held-out episodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from statevla.checkpoints.comparisons import comparisons
from statevla.commands.held_out import HeldOutArgs, print_results
from statevla.config import results_dir


@dataclass(frozen=True)
class EvalArgs(HeldOutArgs):
    out: str | None = None
    """Folder for results; `evaluation_<checkpoint>` beside the checkpoint by default."""
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


def offline(args: EvalArgs) -> None:
    """Evaluate a checkpoint on held-out episodes: action errors, world model, probes; JSON, tables and pictures."""
    from statevla.checkpoints.checkpoint import resolve_checkpoint
    from statevla.diagnostics.offline import evaluate, write_results
    from statevla.machine.lock import only_writer_in

    folder = resolve_checkpoint(args.checkpoint)
    out = Path(args.out) if args.out else results_dir(folder, f"evaluation_{folder.name.strip('.')}")
    with only_writer_in(out, "choose another --out"):
        # It takes every flag but where to write.
        evaluation = evaluate(**{name: value for name, value in vars(args).items() if name != "out"})
        pictures = write_results(evaluation.results, evaluation.samples, out / "evaluation.json")
    sentences = comparisons(evaluation.results.get("actions", {}))
    print_results(evaluation.results, sentences, out / "evaluation.json", pictures)
