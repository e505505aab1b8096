"""`statevla data inspect`, `data convert`, `data draw` and `data cache`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from statevla.errors import UserError
from statevla.machine.extras import require
from statevla.machine.lock import only_writer_of
from statevla.types import Orientation


@dataclass(frozen=True)
class InspectArgs:
    """Look through a data set; exit status 1 if anything seems wrong."""

    path: tyro.conf.Positional[Path]
    """HDF5 file or folder of LIBERO or robomimic, or the folder of a LeRobotDataset."""
    json: bool = False
    """Print the findings as JSON instead of tables."""
    report: Path | None = None
    """Write a self-contained HTML page with pictures and plots."""
    format: Literal["auto", "libero", "lerobot"] = "auto"
    """Format of the data set."""
    orientation: Orientation = "auto"
    """How the frames are stored; `auto` believes the data set."""
    robot: str = "auto"
    """What actions, state and cameras mean: a known robot or a YAML file; `auto` believes the data set."""
    write_robot: Path | None = None
    """Write the declaration in use to this YAML file, to edit and give as `data.robot`."""
    max_episodes: int | None = None
    """Read only so many episodes, evenly spread; all are listed."""


def inspect(args: InspectArgs) -> int:
    """Look through a data set: what is in it, and what is likely wrong."""
    from statevla.data.hdf5_robot import UndeclaredRobotError
    from statevla.data.inspect import inspect_dataset
    from statevla.data.inspect_view import print_inspection, write_html
    from statevla.robots import save_robot

    if args.max_episodes is not None and args.max_episodes < 1:
        raise UserError(f"--max-episodes {args.max_episodes}: expected at least 1")
    if args.write_robot is not None and args.write_robot.exists():
        raise UserError(f"--write-robot {args.write_robot}: exists already; choose another file or delete it")
    if args.report is not None:
        require("--report", "plots")
    progress = sys.stderr.isatty() and not args.json
    options = (args.path, args.format, args.orientation, args.max_episodes, progress)
    try:
        result = inspect_dataset(*options, args.robot)
    except UndeclaredRobotError as error:
        if args.write_robot is None:
            raise
        result = inspect_dataset(*options, error.proposal)
    if args.write_robot is not None and result.robot is not None:
        save_robot(result.robot, args.write_robot)
    if args.report is not None:
        write_html(result, args.report)
    if args.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        print_inspection(result, Console(width=None if sys.stdout.isatty() else 160))
        for what, file in (("report", args.report), ("robot", args.write_robot if result.robot else None)):
            if file is not None:
                print(f"{what}: {file}")
    return 1 if result.anomalies else 0


@dataclass(frozen=True)
class ConvertArgs:
    """Convert a data set between LIBERO's HDF5 and LeRobotDataset v3, or a LeRobotDataset v2.1 to v3."""

    source: tyro.conf.Positional[Path]
    """HDF5 file or folder of LIBERO or robomimic, or the folder of a LeRobotDataset."""
    target: tyro.conf.Positional[Path]
    """Folder to write."""
    to: Literal["libero", "lerobot"]
    """Format to write."""
    orientation: Orientation = "auto"
    """How the source stores its frames; `auto` believes the data set."""
    robot: str = "auto"
    """What the source's actions, state and cameras mean: a known robot or a YAML file; `auto` believes the data set."""


def convert(args: ConvertArgs) -> int:
    """Convert a data set between LIBERO's HDF5 and LeRobotDataset v3, or a LeRobotDataset v2.1 to v3."""
    from statevla.data.convert import convert as run

    folder = run(args.source, args.target, args.to, args.orientation, sys.stderr.isatty(), args.robot)
    print(f"wrote {folder}")
    return 0


@dataclass(frozen=True)
class CacheArgs:
    """Build the frame cache that training would build at its start. Under torchrun, all processes take a share."""

    overrides: tyro.conf.Positional[tuple[str, ...]] = ()
    """Dotted overrides, as in `data.path=... model.image_size=128`."""
    config: str = "config"
    """A preset's name or a YAML file."""
    num_processes: int | None = None
    """Processes that build; by default all cores."""


def cache(args: CacheArgs) -> int:
    """Build the frame cache of a configuration's data set."""
    from statevla.config import load_config
    from statevla.data.build_cache import open_frame_cache
    from statevla.machine.processes import described_processes

    if args.num_processes is not None and args.num_processes < 1:
        raise UserError(f"--num-processes {args.num_processes}: expected at least 1")
    config = load_config(args.config, args.overrides)
    is_main = described_processes().is_main
    progress = sys.stderr.isatty() and is_main
    frames = open_frame_cache(config, progress=progress, num_processes=args.num_processes)
    if is_main:
        print(
            f"{len(frames.episodes)} episodes, {frames.num_frames} frames of {frames.image_size} px in {frames.folder}"
        )
    return 0


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
    from statevla.worlds.robosuite.replay import replay_demonstrations

    if args.image_size < 16:
        raise UserError(f"--image-size: expected at least 16, got {args.image_size}")
    with only_writer_of(args.out, "choose another --out"):
        written = replay_demonstrations(
            args.source, args.out, args.image_size, args.cameras, args.instruction, progress=sys.stderr.isatty()
        )
    Console(markup=False).print(f"written: {written}", soft_wrap=True)
