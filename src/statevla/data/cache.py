"""A cache of a data set's frames at the model's size, read from disk frame by frame.

Decoding and resizing once saves them in every epoch. The cache is a folder named by a fingerprint of what it was made
from (files with sizes and times, cameras, size, orientation, version), so a changed source makes a new one:

    frames.bin          uint8 [frames, V, P, P, 3], upright, episode after episode
    <array>.npy         actions, robot states, ... [frames, dim]
    cache.json          robot, episodes, cameras, sizes; written last

Frames are read with `pread` into the batch's own buffer. A memory map would count every page touched as the process's
own memory until the kernel takes it back; this way training on a cache of any size needs only its batches.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from statevla.data.statistics import compute_statistics
from statevla.errors import UserError
from statevla.machine.storage import write_json
from statevla.robots import RobotSpec
from statevla.transforms import ActionNormalization, RelativeActions, Statistics

CACHE_VERSION = 3
FRAMES_FILE, INDEX_FILE = "frames.bin", "cache.json"
ACTIONS, EXECUTED, OBJECTS, STATE_PREFIX = "actions", "executed_actions", "object_poses", "state_"
IS_SEEN = "is_seen"
CACHE_FIX = "make room or set data.cache_dir"


@dataclass(frozen=True)
class CachedEpisode:
    """One episode of a cache: frames `start` to `start + num_steps`.

    Attributes:
        episode_id: as the reader named it.
        task: name of the task.
        instruction: index into `FrameCache.instructions`.
        start: index of its first frame.
        num_steps: number of frames, each with its action.
        object_names: names of the objects whose poses are cached, 7 numbers each.
        success: whether the task was solved at the end; None where the source does not say.
    """

    episode_id: str
    task: str
    instruction: int
    start: int
    num_steps: int
    object_names: tuple[str, ...] = ()
    success: bool | None = None

    @property
    def stop(self) -> int:
        return self.start + self.num_steps


class FrameCache:
    """An open frame cache. Threads may read from it at the same time.

    Attributes:
        robot: as declared; its cameras are those of the cache.
        episodes: in the order of the frames.
        instructions: the different instructions, normalised; a language table has one row for each.
        cameras: in the order of the frames' axis `V`.
        image_size: `P`.
        frame_size: longer side of the frames as the data set stores them (pixels); None where they differ.
        num_frames: over all episodes.
        actions: float32 `[num_frames, A]`.
        executed_actions: float32 `[num_frames, A]`; equal to `actions` where the source recorded no difference.
        robot_states: state field → float32 `[num_frames, n]`, the fields that every episode has.
        robot_state: float32 `[num_frames, S]`, what the policy sees of them.
        is_seen: bool `[num_frames]`, which frames there are; the others are black.
        object_poses: float32 `[num_frames, 7·objects]`, NaN where an episode has fewer, or None. For probes only.
    """

    def __init__(self, folder: Path) -> None:
        """Open a finished cache folder; `statevla.data.open_frame_cache` builds one where needed.

        Raises:
            UserError: the folder is no cache, is damaged, or of another version.
        """
        self.folder = folder
        self._file: int = -1
        index = _read_index(folder)
        self.robot = RobotSpec.from_dict(index["robot"], str(folder / INDEX_FILE))
        self.episodes = [
            CachedEpisode(**entry | {"object_names": tuple(entry["object_names"])}) for entry in index["episodes"]
        ]
        self.instructions: list[str] = index["instructions"]
        self.cameras: tuple[str, ...] = tuple(index["cameras"])
        self.image_size: int = index["image_size"]
        self.frame_size: int | None = index["frame_size"]
        self.num_frames = self.episodes[-1].stop if self.episodes else 0
        self.actions = self._array(ACTIONS)
        self.executed_actions = self._array(EXECUTED) if EXECUTED in index["arrays"] else self.actions
        has_all = IS_SEEN not in index["arrays"]
        self.is_seen = np.ones(self.num_frames, bool) if has_all else self._array(IS_SEEN)
        self.object_poses = self._array(OBJECTS) if OBJECTS in index["arrays"] else None
        self.robot_states = {
            name.removeprefix(STATE_PREFIX): self._array(name)
            for name in index["arrays"]
            if name.startswith(STATE_PREFIX)
        }
        stateless = np.zeros((self.num_frames, 0), np.float32)
        self.robot_state = (
            self.robot.policy_state(self.robot_states, f"frame cache {folder}") if self.robot.state_dim else stateless
        )
        self._frame_shape = (len(self.cameras), self.image_size, self.image_size, 3)
        self._frame_bytes = int(np.prod(self._frame_shape))
        self._open_frames()

    def frames(self, indices: torch.Tensor | np.ndarray, out: torch.Tensor | None = None) -> torch.Tensor:
        """Read frames: any shape of indices `[...]` → uint8 `[..., V, P, P, 3]`, into `out` if given (contiguous)."""
        wanted = np.asarray(indices, np.int64)
        flat = wanted.reshape(-1)
        if out is None:
            out = torch.empty((*wanted.shape, *self._frame_shape), dtype=torch.uint8)
        buffer = memoryview(out.numpy().data).cast("B") if flat.size else memoryview(b"")
        size = self._frame_bytes
        # Neighbouring frames are neighbours on disk: one read per run.
        breaks = np.flatnonzero(np.diff(flat) != 1) + 1
        for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), flat.size]):
            if first < last:
                self._read_into(buffer[first * size : last * size], int(flat[first]) * size)
        return out

    def statistics(self, episode_indices: Sequence[int], normalization: ActionNormalization = "mean_std") -> Statistics:
        """Statistics over these episodes, without relative targets: pass the training episodes."""
        actions, states, _ = self.training_arrays(episode_indices, RelativeActions(self.robot, ()), 1)
        return compute_statistics(actions, states, normalization)

    def training_arrays(
        self, episode_indices: Sequence[int], relative: RelativeActions, horizon: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """What statistics over these episodes are made from.

        Returns:
            Actions `[steps, A]`, states `[steps, S]`, and all steps of all chunks of `horizon` steps as relative
            targets, un-normalised, `[rows, A]`; None where no group is relative.
        """
        steps = self.steps_of(episode_indices)
        targets = self._relative_targets(episode_indices, relative, horizon) if relative else None
        return self.actions[steps], self.robot_state[steps], targets

    def _relative_targets(self, episodes: Sequence[int], relative: RelativeActions, horizon: int) -> np.ndarray:
        """All steps of all chunks of these episodes; what lies past an end is left out."""
        rows = [np.zeros((0, self.actions.shape[1]), np.float32)]
        for index in episodes:
            episode = self.episodes[index]
            for ahead in range(min(horizon, episode.num_steps)):
                chunks = torch.from_numpy(self.actions[episode.start + ahead : episode.stop, None])
                starts = torch.from_numpy(self.robot_state[episode.start : episode.stop - ahead])
                rows.append(relative.to_relative(chunks, starts)[:, 0].numpy())
        return np.concatenate(rows)

    def is_whole(self, episode: CachedEpisode) -> bool:
        """Whether an episode has all its frames; a reach has a few."""
        return bool(self.is_seen[episode.start : episode.stop].all())

    def steps_of(self, episode_indices: Sequence[int]) -> np.ndarray:
        """Indices of all frames of these episodes, int64."""
        parts = [np.arange(self.episodes[i].start, self.episodes[i].stop) for i in episode_indices]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": -1}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_frames()

    def _open_frames(self) -> None:
        path = self.folder / FRAMES_FILE
        self._file = -1
        try:
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise UserError(f"frame cache {path}: not readable ({error.strerror}); delete its folder") from None
        expected, found = self.num_frames * self._frame_bytes, os.fstat(self._file).st_size
        if found != expected:
            raise UserError(
                f"frame cache {path}: {found} bytes, expected {expected}; delete its folder to build it again"
            )

    def _read_into(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            count = os.preadv(self._file, [buffer[done:]], offset + done)
            if count <= 0:
                raise UserError(
                    f"frame cache {self.folder / FRAMES_FILE}: ends at byte {offset + done}; "
                    "delete its folder to build it again"
                )
            done += count

    def _array(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"frame cache {path}: not readable ({error}); delete its folder to build it again"
            ) from None
        if len(array) != self.num_frames:
            raise UserError(f"frame cache {path}: {len(array)} rows, expected {self.num_frames}; delete its folder")
        return array


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX_FILE
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"frame cache {folder}: no {INDEX_FILE}; it was never finished, delete the folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"frame cache {path}: not readable ({error}); delete its folder to build it again") from None
    if index.get("version") != CACHE_VERSION:
        raise UserError(
            f"frame cache {path}: version {index.get('version')}, expected {CACHE_VERSION}; delete its folder"
        )
    return index


def write_index(
    folder: Path,
    episodes: Sequence[CachedEpisode],
    instructions: Sequence[str],
    robot: RobotSpec,
    image_size: int,
    frame_size: int | None,
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Write everything of a cache but its frames; `arrays` are named as the constants above."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    index = {
        "version": CACHE_VERSION,
        "robot": robot.to_dict(),
        "cameras": list(robot.camera_names),
        "image_size": image_size,
        "frame_size": frame_size,
        "instructions": list(instructions),
        "arrays": sorted(arrays),
        "episodes": [asdict(episode) for episode in episodes],
    }
    write_json(folder / INDEX_FILE, index, CACHE_FIX)
