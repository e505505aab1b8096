"""The command `statevla collect`: demonstrations in any world that has an expert."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from statevla.config import home_dir
from statevla.errors import UserError
from statevla.machine.extras import require
from statevla.types import ReachKind, Rendering
from statevla.worlds.collect import collect as run
from statevla.worlds.collect import summary_table
from statevla.worlds.collect_tasks import Recipe
from statevla.worlds.recording import WorldRecipe
from statevla.worlds.registry import is_libero
from statevla.worlds.task_indices import parse_indices


@dataclass(frozen=True)
class _AnyWorldArgs:
    """Flags that every world takes; those that `CollectArgs` adds are for LIBERO's scripted expert alone."""

    world: Annotated[str, tyro.conf.arg(aliases=["--suite"])] = "libero_object"
    """A suite of LIBERO or LIBERO-PRO, another world (`so101`), or your own as `module:factory`."""
    expert: str | None = None
    """Who shows the tasks, `module:function` (see docs/worlds.md); by default the world's own scripted expert."""
    out: Path | None = None
    """Folder for `<task>_demo.hdf5`, where an interrupted run goes on; $STATEVLA_HOME/datasets/<world> by default, and
    .../<world>_play for `--play`, and likewise _reach, _exchange, and _correction for `--dagger`."""
    tasks: str = "all"
    """Task indices: `all`, `0,3,5` or `0-4`."""
    demos: int = 50
    """Successful episodes per task."""
    workers: int = 0
    """Worker processes; 0: one per core (shared among torchrun's processes), as far as there is memory: in LIBERO, one
    takes about 2 GB. The result does not depend on their number."""
    image_size: int = 128
    """Side of the frames (pixels)."""
    format: Literal["libero", "lerobot"] = "libero"
    """`libero`: HDF5 files in `out`. `lerobot`: those in `out/libero`, then a LeRobotDataset v3 in `out/lerobot`."""
    seed: int = 0
    """Base of all random draws."""
    rendering: Rendering | None = None
    """LIBERO, so101: `exact`: full meshes, 3 and more times slower on a CPU; `fast` (default): simplified meshes,
    smoothed by supersampling."""


@dataclass(frozen=True)
class CollectArgs(_AnyWorldArgs):
    """Collect demonstrations."""

    noise: float | None = None
    """LIBERO: execution noise in units of action, 0.1 by default; the clean action is what `actions` stores."""
    wide: bool = False
    """LIBERO: spread the objects over the whole reachable table instead of the official regions; what the instruction
    tells by its place, as one of two bowls, stays there."""
    rearrange: bool = False
    """LIBERO, with `--wide`: fixtures (cabinet, stove, rack, microwave) stand elsewhere too, with what is on them, but
    where the goal is a place of the table that one of them tells."""
    exchange: bool = False
    """LIBERO: instead of the task what it becomes when its object, or its drawer, is exchanged for another of the scene
    ("put the wine bottle on the stove"); goals of LIBERO-PRO's are left out."""
    recolor: bool = False
    """LIBERO: draw half of the objects and fixtures in another colour, other ones in each episode."""
    play: bool = False
    """LIBERO: unlabelled noisy interaction instead of the task, for `data.sources`."""
    reaches: ReachKind | None = None
    """LIBERO: a few frames of the way to any object of the scene that the suite has a task for: quicker than
    demonstrations; for a folder beside theirs below `data.path`. `start`: up to the grasp, frames at the start, where
    the instruction matters; `outer`: the same, to what lies near the rim of the table; `any`: up to the grasp, frames
    anywhere; `mixed`: to the goal, frames at the start, before the grasp and after it, a third of them from where a
    grasp was missed; `missed`: from such a place up to the grasp."""
    reach_tasks: str = "all"
    """LIBERO: task indices of the objects that reaches may go to, beside the scene's own: fewer are learned sooner."""
    dagger: str | None = None
    """LIBERO: a checkpoint, whose mistakes are corrected: it acts, and from a moment that it has reached, of a failure
    where there is one in four tries, the expert shows the way on, which is the episode. Frames at its start and some
    places after; for a folder beside the demonstrations' below `data.path`."""
    replan_steps: int | None = None
    """LIBERO, with `--dagger`: actions that the checkpoint executes before it looks again, 8 by default."""
    frame_stride: int = 1
    """LIBERO: draw every so many-th frame alone, from the first on, which is most of the work: 4 is the recipe's
    `frame_skip`. Such episodes are trained on and not measured by, so collect a few with all frames beside them."""


def collect(args: CollectArgs) -> int:
    """Collect demonstrations of an expert; resumable, and the same whatever the number of workers.

    `torchrun` shares the episodes among its processes, also of several machines, which all have to see the folder.
    """
    if args.image_size < 16:
        raise UserError(f"--image_size: expected at least 16, got {args.image_size}")
    recipe = _libero_recipe(args) if is_libero(args.world) and args.expert is None else _world_recipe(args)
    tasks = parse_indices(args.tasks, len(recipe.tasks()), args.world)
    # Play beside demonstrations would be imitated: a data set is a folder.
    suffix = "" if recipe.kind == "demo" else f"_{recipe.kind}"
    out = args.out or home_dir() / "datasets" / (re.sub(r"[^A-Za-z0-9_.-]+", "_", args.world) + suffix)
    converted = out / "lerobot"
    if args.format == "lerobot" and converted.exists():
        raise UserError(f"{converted}: exists already; remove it to convert again, or choose another --out folder")
    folder = out / "libero" if args.format == "lerobot" else out
    console = Console(markup=False)
    summaries = run(recipe, tasks, args.demos, folder, args.workers, console)
    if not summaries:  # the first of torchrun's processes tells
        return 0
    console.print(summary_table(summaries))
    if args.format == "lerobot":
        from statevla.data.convert import convert

        console.print(f"written: {convert(folder, converted, 'lerobot', progress=True)}", soft_wrap=True)
    short = [summary.task.name for summary in summaries if summary.num_demos < args.demos]
    if short:
        console.print(f"the expert fails too often on: {', '.join(short)}")
    if long := [summary.task.name for summary in summaries if summary.num_demos > args.demos]:
        console.print(
            f"more than {args.demos} episodes, kept from an earlier collection: {', '.join(long)}; training takes all "
            "of them: for fewer, collect into another --out folder"
        )
    return 1 if short else 0


def _world_recipe(args: CollectArgs) -> Recipe:
    """Of any world that is not LIBERO with its own expert.

    Raises:
        UserError: a flag is LIBERO's alone.
    """
    for field in fields(CollectArgs):
        if not hasattr(_AnyWorldArgs, field.name) and getattr(args, field.name) != field.default:
            raise UserError(
                f"--{field.name}: is for LIBERO's scripted expert alone; leave it out for world '{args.world}'"
            )
    options = {} if args.rendering is None else {"rendering": args.rendering}
    return WorldRecipe(args.world, options, args.expert, args.seed, args.image_size)


def _libero_recipe(args: CollectArgs) -> Recipe:
    """Of LIBERO's scripted expert.

    Raises:
        UserError: flags contradict one another.
    """
    require("collect", "sim")
    from statevla.worlds.libero.episodes import CollectSettings
    from statevla.worlds.libero.exchange import check_exchangeable
    from statevla.worlds.libero.tasks import parse_task_indices

    if args.noise is not None and args.noise < 0:
        raise UserError(f"--noise: expected at least 0, got {args.noise}")
    if args.play and args.reaches:
        raise UserError("--play and --reaches: expected one of them; collect each into a folder of its own")
    for flag, lacks in (("reaches", args.reaches), ("frame-stride", args.frame_stride > 1), ("dagger", args.dagger)):
        if lacks and args.format == "lerobot":
            raise UserError(f"--{flag}: lacks frames, which LeRobotDataset cannot say; leave out --format")
    if args.dagger is not None and (args.play or args.reaches):
        raise UserError("--dagger: corrects demonstrations; collect play and reaches into folders of their own")
    if args.rearrange and not args.wide:
        raise UserError("--rearrange: moves fixtures on a table whose objects are spread; give --wide too")
    if args.exchange and (args.play or args.reaches or args.dagger is not None):
        raise UserError("--exchange: changes demonstrations; collect play, reaches and corrections without it")
    if args.exchange:
        check_exchangeable(args.world, parse_task_indices(args.world, args.tasks))
    if args.frame_stride < 1 or (args.frame_stride > 1 and (args.reaches or args.dagger is not None)):
        raise UserError(
            f"--frame-stride: expected at least 1, and 1 with --reaches and --dagger, which choose their frames, got "
            f"{args.frame_stride}; leave it out"
        )
    if args.replan_steps is not None and args.dagger is None:
        raise UserError("--replan-steps: is for --dagger, and none was asked for; give a checkpoint, or leave it out")
    if args.reach_tasks != "all" and not args.reaches:
        raise UserError(
            "--reach-tasks: says where reaches go, and none were asked for; give --reaches, or leave it out"
        )
    # In one spelling: files of one folder are collected with the same settings.
    among = parse_task_indices(args.world, args.reach_tasks)
    wishes: dict[str, Any] = {field.name: getattr(args, field.name, None) for field in fields(CollectSettings)}
    if args.reach_tasks != "all":
        wishes["reach_tasks"] = ",".join(map(str, sorted(among)))
    settings = CollectSettings(args.world, **{name: wish for name, wish in wishes.items() if wish is not None})
    if args.dagger is None:
        return settings
    from statevla.worlds.libero.corrections import REPLAN_STEPS, correcting

    replan_steps = REPLAN_STEPS if args.replan_steps is None else args.replan_steps
    return correcting(settings, args.dagger, replan_steps)
