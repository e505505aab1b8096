"""`statevla rollout`, `run_libero_eval.py`: success of a policy in a world."""

from __future__ import annotations

import tyro
from rich.console import Console

from statevla.commands.entry import run_command
from statevla.worlds.evaluate import RolloutArgs, evaluate
from statevla.worlds.rollout_view import results_table


def rollout(args: RolloutArgs) -> int:
    """Measure a policy's success in LIBERO or another world; per-episode results, intervals, videos."""
    console = Console()
    folder, summary = evaluate(args, console)
    if summary is not None:
        console.print(results_table(summary))
        console.print(f"results: {folder}")
    return 0


def main() -> None:
    """Entry point of `run_libero_eval.py`."""
    run_command(lambda: rollout(tyro.cli(RolloutArgs, description=rollout.__doc__)))
