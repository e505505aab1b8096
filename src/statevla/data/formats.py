"""The formats of data sets: which there are, and which one a path is of."""

from __future__ import annotations

from pathlib import Path

from statevla.config import expand_path
from statevla.data.episodes import DataFormat, EpisodeReader
from statevla.data.lerobot import FORMAT as LEROBOT
from statevla.data.libero import FORMAT as LIBERO
from statevla.errors import UserError
from statevla.robots import ImageOrientation, RobotSpec, load_robot

FORMATS: dict[str, DataFormat] = {each.name: each for each in (LEROBOT, LIBERO)}


def open_reader(
    path: str | Path,
    data_format: str = "auto",
    orientation: ImageOrientation | str = "auto",
    robot: RobotSpec | str = "auto",
) -> EpisodeReader:
    """Open a data set.

    Args:
        path: file or folder; `~` and `$STATEVLA_HOME` are expanded.
        data_format: `auto`, `libero` or `lerobot`.
        orientation: how all frames are stored, where what the file or the robot says should be overruled.
        robot: a declared robot, the name of a known one or a YAML file; `auto` believes what the file declares.

    Raises:
        UserError: no such path, unknown format, or nothing readable in it.
    """
    resolved = expand_path(path)
    chosen: DataFormat | None
    if not resolved.exists():
        raise UserError(
            f"data {resolved}: no such file or folder; set data.path to HDF5 files or the folder of a LeRobotDataset"
        )
    stored = None if orientation == "auto" else ImageOrientation(orientation)
    declared = None if robot == "auto" else robot if isinstance(robot, RobotSpec) else load_robot(robot)
    if data_format != "auto":
        if data_format not in FORMATS:
            raise UserError(f"data.format '{data_format}': expected one of auto, {', '.join(FORMATS)}")
        chosen = FORMATS[data_format]
    else:
        chosen = next((known for known in FORMATS.values() if known.recognises(resolved)), None)
    if chosen is not None:
        return chosen.open(resolved, declared, stored)
    kind = "folder holds neither *.hdf5 files nor meta/info.json" if resolved.is_dir() else "file is not *.hdf5"
    raise UserError(
        f"data {resolved}: the {kind}; expected HDF5 files of LIBERO or robomimic (*.hdf5), or a LeRobotDataset "
        "(meta/info.json)"
    )
