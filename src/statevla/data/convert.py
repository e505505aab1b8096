"""From one format to the other, or to a later version of the same, episode by episode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.progress import track

from statevla.config import expand_path
from statevla.data.episodes import EpisodeArrays, EpisodeInfo, EpisodeReader
from statevla.data.formats import open_reader
from statevla.data.write_lerobot import write_lerobot
from statevla.data.write_libero import write_libero
from statevla.errors import UserError
from statevla.robots import ImageOrientation, RobotSpec

WRITERS = {"libero": write_libero, "lerobot": write_lerobot}


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    orientation: ImageOrientation | str = "auto",
    progress: bool = False,
    robot: RobotSpec | str = "auto",
) -> Path:
    """Convert a data set.

    Args:
        source: HDF5 file or folder of LIBERO or robomimic, or LeRobotDataset folder.
        target: folder to write.
        to: `libero` or `lerobot`.
        orientation: how the source stores its frames, where what it says should be overruled.
        progress: draw a progress bar.
        robot: whose episodes they are, where what the source says should be overruled.

    Raises:
        UserError: unknown format, target exists, source damaged, or all that `to` says is said in the source.
    """
    if to not in WRITERS:
        raise UserError(f"convert: format '{to}', expected one of {', '.join(WRITERS)}")
    folder = expand_path(target)
    with open_reader(source, "auto", orientation, robot) as reader:
        if reader.format == to and not reader.is_renewable:
            raise UserError(f"convert: {reader.path} is in format '{to}' already; nothing to do")
        WRITERS[to](folder, reader.robot, _episodes(reader, progress))
    return folder


def _episodes(reader: EpisodeReader, progress: bool) -> Iterator[tuple[EpisodeInfo, EpisodeArrays]]:
    # Sorted by task: LIBERO's files hold one task each.
    order = sorted(range(len(reader.episodes)), key=lambda index: (reader.episodes[index].task, index))
    for index in track(order, "converting", disable=not progress):
        info, arrays = reader.episodes[index], reader.read(index)
        if not arrays.seen.all():
            raise UserError(
                f"convert: {info.episode_id} has frames at {arrays.seen.sum()} of {info.num_steps} steps only, "
                "which other formats cannot say; keep reaches in a folder of their own"
            )
        yield info, arrays
