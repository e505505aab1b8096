"""What an episode is, whatever file it comes from, and what a reader of a format is.

A reader lists episodes without loading them and reads one at a time; frames stay as the file stores them, with
their orientation declared by the robot's cameras, until `statevla.transforms` turns them upright.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from statevla.errors import UserError
from statevla.robots import ImageOrientation, RobotSpec

_MAX_NAME = 100
_COMMAND_TOLERANCE = 1e-3
_WILD_RATIO, _LARGEST = 1e6, 1e18
"""A number so many times beyond the usual one (or beyond 1) is a slip of the recording, and so is one whose square
hardly fits into float32: either would spoil the statistics that everything is normalised by."""


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
        images: camera → uint8 `[T, H, W, 3]` as stored; how, says the reader's robot.
        robot_states: name of a state field → float32 `[T, n]`, every declared field that the file holds.
        actions: float32 `[T, A]`, what a policy should answer.
        executed_actions: float32 `[T, A]`, what the robot was told, where noise was added to it; or None.
        object_poses: float32 `[T, 7·objects]`, positions (m), quaternions (w, x, y, z), or None. For probes only.
        object_names: one name per object, possibly empty.
        is_seen: bool `[T]`, which observations have frames; None where all have. The others are black.
        success: whether the task was solved at the end, where the file says so.
    """

    images: dict[str, np.ndarray]
    robot_states: dict[str, np.ndarray]
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
        robot: as declared by the user, the data set or its format; its cameras are those that every episode has.
        notes: what was assumed or mended in reading, a sentence each.
        is_renewable: whether converting it to its own format adds something: a later version, or the declared robot.
    """

    format: ClassVar[str]
    is_renewable: bool = False
    path: Path
    episodes: list[EpisodeInfo]
    robot: RobotSpec
    notes: list[str]

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras that every episode has."""
        return self.robot.camera_names

    def read(self, index: int, cameras: Sequence[str] | None = None) -> EpisodeArrays:
        """Read episode `index`; only these cameras (all by default, none for an empty sequence).

        Raises:
            UserError: the episode is damaged, has no such camera, or is not what the robot declares.
        """
        arrays = self.load(index, cameras)
        check_episode(arrays, self.robot, self.source(index))
        return arrays

    @abstractmethod
    def load(self, index: int, cameras: Sequence[str] | None = None) -> EpisodeArrays:
        """As `read`, without `check_episode`: for those who want to see what is wrong.

        Raises:
            UserError: the episode cannot be read, or has no such camera.
        """

    def source(self, index: int) -> str:
        """File and name of episode `index`, which errors begin with."""
        return f"data {self.episodes[index].file}: {self.episodes[index].episode_id}"

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
        open: `(path, robot or None, orientation or None)` → reader; None believes the file, else the format's custom.
    """

    name: str
    recognises: Callable[[Path], bool]
    open: Callable[[Path, RobotSpec | None, ImageOrientation | None], EpisodeReader] = field(repr=False)


def check_cameras(wanted: Sequence[str], present: Sequence[str], source: str) -> None:
    """Raise a UserError that names the cameras present if one of `wanted` is missing."""
    for camera in wanted:
        if camera not in present:
            raise UserError(
                f"{source}: no camera '{camera}', it has {', '.join(present) or 'none'}; set model.cameras accordingly"
            )


def task_name(instruction: str) -> str:
    """A short name for an instruction, fit for a file: lower case, at most 100 letters, digits and `_`.

    Where that loses what tells instructions apart (other scripts, great length), a hash keeps them apart.
    """
    name = re.sub(r"[^a-z0-9]+", "_", instruction.lower()).strip("_")
    if name and instruction.isascii() and len(name) <= _MAX_NAME:
        return name
    digest = hashlib.sha256(instruction.encode()).hexdigest()[:8]
    return f"{name[: _MAX_NAME - 9]}_{digest}".lstrip("_")


def check_episode(arrays: EpisodeArrays, robot: RobotSpec, source: str) -> None:
    """Check what every consumer relies on: sound arrays, and actions as `robot` declares them.

    Raises:
        UserError: names `source`, the array at fault, and what was expected.
    """
    check_arrays(arrays, source)
    check_actions(robot, arrays.actions, source)


def check_actions(robot: RobotSpec, actions: np.ndarray, source: str) -> None:
    """Check actions `[T, A]` against their declaration: as many numbers, and binary ones one of their two commands.

    Raises:
        UserError: names the group, what was expected and what was found.
    """
    if actions.shape[1] != robot.action_dim:
        raise UserError(
            f"{source}: actions have {actions.shape[1]} numbers, robot '{robot.name}' declares {robot.action_dim}: "
            f"{robot.describe_actions()}; declare the robot that made them (data.robot)"
        )
    for group, part in zip(robot.actions, robot.action_slices().values()):
        if group.kind != "binary":
            continue
        commands = np.asarray(group.values)
        distance = np.abs(actions[:, part, None] - commands).min(axis=-1)
        if (distance > _COMMAND_TOLERANCE).any():
            found = np.unique(actions[:, part])
            some = ", ".join(f"{value:g}" for value in found[:4]) + (", ..." if len(found) > 4 else "")
            mend = "declare it continuous (kind: continuous)"
            if len(found) == 2:
                mend += f", or with these two (values: [{some}])"
            raise UserError(
                f"{source}: action group '{group.name}' of robot '{robot.name}' is declared binary with the values "
                f"{commands[0]:g} and {commands[1]:g}, found {some}; {mend}"
            )


def check_arrays(arrays: EpisodeArrays, source: str) -> None:
    """Check that arrays are sound: equal lengths, uint8 frames, finite numbers of one order.

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
    named |= {f"robot state '{name}'": array for name, array in arrays.robot_states.items()}
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
        if array.dtype.kind == "f" and array.ndim == 2 and array.size:
            _check_order(array, f"{source}: {name}")


def _check_order(values: np.ndarray, what: str) -> None:
    """Raise a UserError if one of `values` `[steps, n]` is absurd beside the same number at other steps."""
    sizes = np.abs(values)
    usual = np.percentile(sizes, 50, axis=0, method="lower")
    wild = sizes > np.minimum(_WILD_RATIO * np.maximum(usual, 1.0), _LARGEST)
    if wild.any():
        step, dim = np.argwhere(wild)[0]
        raise UserError(
            f"{what} number {dim} is {values[step, dim]:g} at step {step}, where {usual[dim]:.3g} is usual; drop or "
            "repair the episode"
        )
