"""What an episode is, whatever file it comes from, and the registry of formats.

A reader lists episodes without loading them and reads one at a time; frames stay as the file stores them, with
their orientation declared, until `statevla.transforms` turns them upright.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from statevla.config import expand_path
from statevla.errors import UserError
from statevla.types import ImageOrientation, RobotStateLayout


@dataclass(frozen=True)
class EpisodeInfo:
    """What is known of an episode without reading it.

    Attributes:
        episode_id: unique in the data set, names file and key (`pick_up_demo.hdf5/demo_3`).
        task: name of the task; episodes are split into training and validation per task.
        instruction: the task in words.
        num_steps: number of (observation, action) pairs.
        fps: control frequency, Hz.
        file: the file that holds it, for error messages.
    """

    episode_id: str
    task: str
    instruction: str
    num_steps: int
    fps: float
    file: Path


@dataclass(frozen=True)
class EpisodeArrays:
    """One episode in memory: `T` observations, each with the action that was then taken.

    Attributes:
        images: camera → uint8 `[T, H, W, 3]` as stored.
        orientation: how `images` are stored.
        robot_states: layout → float32 `[T, S]`, every layout that the file holds (m, rad).
        actions: float32 `[T, A]`, what a policy should answer.
        executed_actions: float32 `[T, A]`, what the robot was told, where noise was added to it; or None.
        object_poses: float32 `[T, 7·objects]`, positions (m), quaternions (w, x, y, z), or None. For probes only.
        object_names: one name per object, possibly empty.
        is_seen: bool `[T]`, which observations have frames; None where all have. The others are black.
        success: whether the task was solved at the end, where the file says so.
    """

    images: dict[str, np.ndarray]
    orientation: ImageOrientation
    robot_states: dict[RobotStateLayout, np.ndarray]
    actions: np.ndarray
    executed_actions: np.ndarray | None = None
    object_poses: np.ndarray | None = None
    object_names: tuple[str, ...] = ()
    is_seen: np.ndarray | None = None
    success: bool | None = None

    @property
    def seen(self) -> np.ndarray:
        """`is_seen`, bool `[T]`, whether stored or not."""
        return np.ones(len(self.actions), bool) if self.is_seen is None else self.is_seen


class EpisodeReader(ABC):
    """A data set in one format. Readers are cheap to open, hold no frames, and may be sent to other processes.

    Attributes:
        path: file or folder it was opened on.
        format: as in `data.format`.
        episodes: what there is to read.
        cameras: those that every episode has.
        orientation: how frames are stored.
        notes: what was assumed or mended in reading, a sentence each.
    """

    format: ClassVar[str]
    path: Path
    episodes: list[EpisodeInfo]
    cameras: tuple[str, ...]
    orientation: ImageOrientation
    notes: list[str]

    @abstractmethod
    def read(self, index: int, cameras: Sequence[str] | None = None) -> EpisodeArrays:
        """Read episode `index`; only these cameras (all by default, none for an empty sequence).

        Raises:
            UserError: the episode is damaged, or has no such camera.
        """

    def num_frames(self, index: int) -> int:
        """How many observations of episode `index` have frames."""
        return self.episodes[index].num_steps

    @abstractmethod
    def source_files(self) -> list[Path]:
        """The files whose change makes what was derived from the data set stale."""

    @abstractmethod
    def close(self) -> None:
        """Close the files that are open."""

    def __enter__(self: Reader) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Reader = TypeVar("Reader", bound=EpisodeReader)


@dataclass(frozen=True)
class DataFormat:
    """A format: how to recognise it and how to open it.

    Attributes:
        name: as in `data.format`.
        recognises: whether a path looks like this format; cheap.
        open: `(path, orientation or None)` → reader; None believes the file or the format's custom.
    """

    name: str
    recognises: Callable[[Path], bool]
    open: Callable[[Path, ImageOrientation | None], EpisodeReader] = field(repr=False)


def _formats() -> dict[str, DataFormat]:
    # Readers import this module for the interface, and their dependencies may be absent: bind them late.
    from statevla.data import lerobot, libero

    return {data_format.name: data_format for data_format in (lerobot.FORMAT, libero.FORMAT)}


def open_reader(
    path: str | Path, data_format: str = "auto", orientation: ImageOrientation | str = "auto"
) -> EpisodeReader:
    """Open a data set.

    Args:
        path: file or folder; `~` and `$STATEVLA_HOME` are expanded.
        data_format: `auto`, `libero` or `lerobot`.
        orientation: how frames are stored, where what the file says should be overruled.

    Raises:
        UserError: no such path, unknown format, or nothing readable in it.
    """
    resolved = expand_path(path)
    formats = _formats()
    if not resolved.exists():
        raise UserError(
            f"data {resolved}: no such file or folder; set data.path to LIBERO HDF5 files or a LeRobotDataset v3"
        )
    declared = None if orientation == "auto" else ImageOrientation(orientation)
    if data_format != "auto":
        if data_format not in formats:
            raise UserError(f"data.format '{data_format}': expected one of auto, {', '.join(formats)}")
        return formats[data_format].open(resolved, declared)
    for candidate in formats.values():
        if candidate.recognises(resolved):
            return candidate.open(resolved, declared)
    kind = "folder holds neither *.hdf5 files nor meta/info.json" if resolved.is_dir() else "file is not *.hdf5"
    raise UserError(
        f"data {resolved}: the {kind}; expected LIBERO HDF5 files (*.hdf5) or a LeRobotDataset v3 (meta/info.json)"
    )


def check_cameras(wanted: Sequence[str], present: Sequence[str], source: str) -> None:
    """Raise a UserError that names the cameras present if one of `wanted` is missing."""
    for camera in wanted:
        if camera not in present:
            raise UserError(
                f"{source}: no camera '{camera}', it has {', '.join(present) or 'none'}; set model.cameras accordingly"
            )


def check_episode(arrays: EpisodeArrays, source: str) -> None:
    """Check what every consumer relies on: equal lengths, uint8 frames, finite numbers.

    Raises:
        UserError: names `source`, the array at fault, and what was expected.
    """
    num_steps = len(arrays.actions)
    if arrays.actions.ndim != 2:
        raise UserError(f"{source}: actions have shape {list(arrays.actions.shape)}, expected [steps, action_dim]")
    for camera, frames in arrays.images.items():
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise UserError(
                f"{source}: camera '{camera}' holds {frames.dtype} {list(frames.shape)}, "
                "expected uint8 [steps, height, width, 3]; store 8-bit RGB frames"
            )
    named = {f"camera '{name}'": array for name, array in arrays.images.items()}
    named |= {f"robot state '{layout.value}'": array for layout, array in arrays.robot_states.items()}
    optional = {
        "executed_actions": arrays.executed_actions,
        "object_states": arrays.object_poses,
        "is_seen": arrays.is_seen,
    }
    named |= {name: array for name, array in optional.items() if array is not None}
    for name, array in named.items():
        if len(array) != num_steps:
            raise UserError(
                f"{source}: {len(array)} steps of {name} but {num_steps} actions; "
                "record one observation per action or drop the episode"
            )
    for name, array in {"actions": arrays.actions, **named}.items():
        if array.dtype != np.uint8 and not np.isfinite(array).all():
            step = int(np.argwhere(~np.isfinite(array).reshape(num_steps, -1).all(axis=1))[0, 0])
            raise UserError(f"{source}: {name} has NaN or infinite values at step {step}; drop or repair the episode")
