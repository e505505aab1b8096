"""Commands of the simulator: `statevla collect` and `statevla replay`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from statevla.command import run_command
from statevla.config import home_dir
from statevla.errors import UserError
from statevla.types import ReachKind, Rendering
from statevla.worlds.libero.tasks import parse_task_indices


@dataclass(frozen=True)
class CollectArgs:
    """Collect demonstrations with the scripted expert."""

    suite: str = "libero_object"
    """LIBERO or LIBERO-PRO suite."""
    out: Path | None = None
    """Folder for `<task>_demo.hdf5`, where an interrupted run goes on; $STATEVLA_HOME/datasets/<suite> by default, and
    .../<suite>_play for `--play`, .../<suite>_reach for `--reaches`."""
    tasks: str = "all"
    """Task indices: `all`, `0,3,5` or `0-4`."""
    demos: int = 50
    """Successful episodes per task."""
    workers: int = 1
    """Worker processes; each takes one core and about 1.8 GB. The result does not depend on their number."""
    image_size: int = 128
    """Side of the frames (pixels)."""
    rendering: Rendering = "fast"
    """`exact`: as robosuite draws, 3 times slower on a CPU; `fast`: simplified meshes, smoothed by supersampling."""
    format: Literal["libero", "lerobot"] = "libero"
    """`libero`: HDF5 files in `out`. `lerobot`: those in `out/libero`, then a LeRobotDataset v3 in `out/lerobot`."""
    seed: int = 0
    """Base of all random draws."""
    noise: float = 0.1
    """Execution noise in units of action; the clean action is what `actions` stores."""
    wide: bool = False
    """Spread the objects over the whole reachable table instead of the official regions."""
    play: bool = False
    """Unlabelled noisy interaction instead of the task, for `data.play_path`."""
    reaches: ReachKind | None = None
    """A few frames of the way to any object of the scene that the suite has a task for: quicker than demonstrations;
    for a folder beside theirs below `data.path`. `start`: up to the grasp, frames at the start, where the instruction
    matters; `outer`: the same, to what lies near the rim of the table; `any`: up to the grasp, frames anywhere;
    `mixed`: to the goal, frames at the start, before the grasp and after it, a third of them from where a grasp was
    missed; `missed`: from such a place up to the grasp."""
    reach_tasks: str = "all"
    """Task indices of the objects that reaches may go to, beside the scene's own: fewer are learned sooner."""


def collect(args: CollectArgs) -> int:
    """Collect demonstrations with the scripted expert; resumable, and the same whatever the number of workers."""
    from statevla.data.convert import convert
    from statevla.worlds.collect import collect as run
    from statevla.worlds.collect import summary_table
    from statevla.worlds.libero.episodes import CollectSettings

    if args.noise < 0 or args.image_size < 16:
        raise UserError(f"expected noise >= 0 and image_size >= 16, got {args.noise}, {args.image_size}; change them")
    if args.play and args.reaches:
        raise UserError("--play and --reaches: expected one of them; collect each into a folder of its own")
    if args.reaches and args.format == "lerobot":
        raise UserError("--reaches: lack frames, which LeRobotDataset cannot say; leave out --format")
    if args.reach_tasks != "all" and not args.reaches:
        raise UserError(
            "--reach-tasks: says where reaches go, and none were asked for; give --reaches, or leave it out"
        )
    # In one spelling: files of one folder are collected with the same settings.
    among = parse_task_indices(args.suite, args.reach_tasks)
    settings = CollectSettings(
        args.suite,
        args.seed,
        args.noise,
        args.wide,
        args.play,
        args.reaches,
        "all" if args.reach_tasks == "all" else ",".join(map(str, sorted(among))),
        args.image_size,
        args.rendering,
    )
    console = Console()
    tasks = parse_task_indices(args.suite, args.tasks)
    # Play beside demonstrations would be imitated: a data set is a folder.
    suffix = "" if settings.kind == "demo" else f"_{settings.kind}"
    out = args.out or home_dir() / "datasets" / f"{args.suite}{suffix}"
    converted = out / "lerobot"
    if args.format == "lerobot" and converted.exists():
        raise UserError(f"{converted}: exists already; remove it to convert again, or choose another --out folder")
    folder = out / "libero" if args.format == "lerobot" else out
    summaries = run(settings, tasks, args.demos, folder, args.workers, console)
    console.print(summary_table(summaries))
    if args.format == "lerobot":
        console.print(f"written: {convert(folder, converted, 'lerobot', progress=True)}", soft_wrap=True)
    short = [summary.task.name for summary in summaries if summary.num_demos < args.demos]
    if short:
        console.print(f"the expert fails too often on: {', '.join(short)}")
    long = [summary.task.name for summary in summaries if summary.num_demos > args.demos]
    if long:
        console.print(
            f"more than {args.demos} episodes, kept from an earlier collection: {', '.join(long)}; training takes all "
            "of them: for fewer, collect into another --out folder"
        )
    return 1 if short else 0


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
    from statevla.worlds.libero.replay import ReplayResult, replay_data

    console = Console()
    with console.status("replaying") as status:
        count = 0

        def report(result: ReplayResult) -> None:
            nonlocal count
            count += 1
            status.update(f"{count} episodes replayed, {result.file}")

        results = replay_data(args.data, args.suite, args.demos, report)
    table = Table("file", "successes", "largest deviation from the recorded states")
    for file in dict.fromkeys(result.file for result in results):
        mine = [result for result in results if result.file == file]
        good = sum(result.success for result in mine)
        table.add_row(file, f"{good}/{len(mine)}", f"{max(result.deviation for result in mine):.3g}")
    rate = sum(result.success for result in results) / len(results)
    console.print(table)
    console.print(f"{rate:.1%} of {len(results)} episodes succeed")
    return 0 if rate >= args.min_success else 1


def main(arguments: list[str]) -> int:
    """Run one of this module's commands, as `python -m statevla.worlds.libero.cli collect --help`."""
    commands: dict[str, tuple[Callable[..., int], Any]] = {
        "collect": (collect, CollectArgs),
        "replay": (replay, ReplayArgs),
    }
    if not arguments or arguments[0] not in commands:
        raise UserError(f"expected a command out of {', '.join(commands)}; name one, then its flags")
    function, argument_type = commands[arguments[0]]
    return function(tyro.cli(argument_type, args=arguments[1:], description=function.__doc__))


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
