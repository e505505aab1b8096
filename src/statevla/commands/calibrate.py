"""`statevla calibrate`: thresholds of the surprise alarm."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from statevla.acting.alarm import SCORES
from statevla.checkpoints.checkpoint import ALARM_FILE, BEST, LAST, resolve_checkpoint
from statevla.commands.held_out import HeldOutArgs
from statevla.config import expand_path, is_lent
from statevla.diagnostics.calibrate import calibrate_on_data, calibrate_on_rollouts
from statevla.errors import UserError
from statevla.machine.lock import only_writer_in


@dataclass(frozen=True)
class CalibrateArgs(HeldOutArgs):
    rollouts: str | None = None
    """Results folder of `statevla rollout` instead: the policy's own episodes. The checkpoint has to be calibrated
    already, and the thresholds are for the number of actions per look of these rollouts alone."""
    alpha: float = 0.1
    """Largest probability of a false alarm in an episode."""


def calibrate(args: CalibrateArgs) -> None:
    """Set the thresholds of the surprise alarm so that at most a share alpha of ordinary episodes raises it."""
    folder = resolve_checkpoint(args.checkpoint)
    if is_lent(folder):
        raise UserError(
            f"calibrate {args.checkpoint}: {folder} is not yours to write to; make a copy of your own with 'statevla "
            f"share --checkpoint {args.checkpoint} --to my_policy' and calibrate that"
        )
    if args.rollouts is not None and args.data is not None:
        raise UserError("calibrate: expected --data or --rollouts, got both; give one of them")
    # A training replaces its checkpoints, and what lies in their folders.
    with only_writer_in(folder.parent if folder.name in (BEST, LAST) else folder):
        if args.rollouts is not None:
            calibration = calibrate_on_rollouts(args.checkpoint, expand_path(args.rollouts), args.alpha)
        else:
            calibration = calibrate_on_data(args.checkpoint, args.data, args.alpha, args.device, args.orientation)
        calibration.save(folder)
    table = Table("actions per look", *SCORES, title=f"thresholds: {calibration.source}, alpha {args.alpha:g}")
    for count in calibration.thresholds["surprise"]:
        table.add_row(str(count), *(f"{calibration.thresholds[score][count]:.4g}" for score in SCORES))
    console = Console(markup=False)
    console.print(table)
    console.print(f"written: {folder / ALARM_FILE}", soft_wrap=True, markup=False, highlight=False)
