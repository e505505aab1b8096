"""The command `statevla replay`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from statevla.errors import UserError


@dataclass(frozen=True)
class ReplayArgs:
    """Replay recorded actions in the simulator."""

    data: tyro.conf.Positional[Path]
    """LIBERO HDF5 file, or a folder of them."""
    suite: str | None = None
    """Suite of the tasks; by default what the files say."""
    demos: int | None = None
    """Episodes per file; all by default."""
    min_success: float = 0.98
    """Exit with status 1 below this share of successes."""


def replay(args: ReplayArgs) -> int:
    """Replay recorded actions from recorded initial states: data that fails here cannot teach a policy."""
    from statevla.worlds.libero.replay import replay_data

    if args.demos is not None and args.demos < 1:
        raise UserError(f"--demos {args.demos}: expected at least 1")
    console = Console(markup=False)
    results = []
    with console.status("replaying") as status:
        for result in replay_data(args.data, args.suite, args.demos):
            results.append(result)
            status.update(f"{len(results)} episodes replayed, {result.file}")
    if not results:
        raise UserError(f"data {args.data}: no episodes to replay; give files with 'data/demo_<i>' groups")
    table = Table("file", "successes", "largest deviation from the recorded states")
    for file in dict.fromkeys(result.file for result in results):
        mine = [result for result in results if result.file == file]
        good = sum(result.success for result in mine)
        table.add_row(file, f"{good}/{len(mine)}", f"{max(result.deviation for result in mine):.3g}")
    rate = sum(result.success for result in results) / len(results)
    console.print(table)
    console.print(f"{rate:.1%} of {len(results)} episodes succeed")
    return 0 if rate >= args.min_success else 1
