"""`statevla rollout`, `run_libero_eval.py`: success of a policy in a world."""

from __future__ import annotations

import sys

from rich.console import Console

from statevla.errors import UserError
from statevla.worlds.evaluate import RolloutArgs, evaluate
from statevla.worlds.rollout_view import results_table


def rollout(args: RolloutArgs) -> int:
    """Measure a policy's success in LIBERO or another world; per-episode results, intervals, videos.

    Episodes that end in an error of the world count neither as success nor as failure; the exit status is then 1, or 2
    if not one episode could be judged, and the same command runs them again.
    """
    console = Console(markup=False)
    folder, summary = evaluate(args, console)
    if summary is None:
        return 0
    console.print(results_table(summary))
    console.print(f"results: {folder}", soft_wrap=True, highlight=False)
    if not summary["errors"]:
        return 0
    judged, errors = summary["total"]["episodes"], summary["total"]["errors"]
    reason = " ".join(str(summary["errors"][0]["error"]).split())
    if not judged:
        raise UserError(
            f"rollout: nothing was measured, all {errors} episodes ended in an error ({reason}); run 'statevla doctor'"
        )
    print(
        f"warning: {errors} of {judged + errors} episodes ended in an error and count for nothing ({reason}); the same "
        "command runs these again",
        file=sys.stderr,
    )
    return 1
