"""A frame cache that is being built, by any number of processes, each of which may be killed at any moment.

Beside the cache's own folder, of the same file system:

    .<name>.part/cache/         what becomes the cache: the frames, in the end the arrays and the index
    .<name>.part/episodes/      what else is known of each episode that is done

Whoever encodes an episode holds its lock, so that several processes, on several machines that share the disk, build one
cache together; whoever comes first after the last episode publishes it, by a rename.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from statevla.data.cache import ACTIONS, FRAME_CRCS, FRAME_OFFSETS, STATE_PREFIX, write_cache
from statevla.data.cache_arrays import arrays_of_episode, common_frame_size, describe_episodes, join_arrays
from statevla.data.cache_index import CACHE_FIX, INDEX_FILE
from statevla.data.episodes import EpisodeArrays, EpisodeReader
from statevla.data.frame_codecs import RAW, encode_frame
from statevla.data.frame_store import FRAMES_FILE, frame_checksum
from statevla.errors import UserError
from statevla.machine.lock import only_writer_of
from statevla.machine.storage import replacing, sync, writing
from statevla.robots import RobotSpec
from statevla.transforms import resize_frames, to_upright

_CODED, _CODED_SIZES = "coded_frames", "coded_sizes"


class _HeldError(Exception):
    """Another process encodes the episode."""


@dataclass(frozen=True)
class UnfinishedCache:
    """What is to be built, and where. May be sent to other processes.

    Attributes:
        reader: of the data set.
        target: folder of the finished cache.
        robot: with the cameras that are cached.
        image_size: side of the frames (pixels).
        codec: as in `data.cache_codec`.
    """

    reader: EpisodeReader
    target: Path
    robot: RobotSpec
    image_size: int
    codec: str

    @property
    def is_published(self) -> bool:
        return (self.target / INDEX_FILE).exists()

    @property
    def is_left_over(self) -> bool:
        """Whether something of an unfinished build is there."""
        return self._folder.exists()

    def prepare(self, say: Callable[[str], None]) -> list[int]:
        """Make room for the frames; returns the episodes that are not done.

        Args:
            say: takes a line that names who is waited for.

        Raises:
            UserError: the disk does not have the room.
        """
        with only_writer_of(self.target, CACHE_FIX, say), writing(f"frame cache {self.target}", CACHE_FIX):
            if self.is_published:
                return []
            frames = self._cache / FRAMES_FILE
            if not frames.exists():
                shutil.rmtree(self._folder, ignore_errors=True)  # episodes without their frames
            self._episodes.mkdir(parents=True, exist_ok=True)
            self._cache.mkdir(exist_ok=True)
            remaining = [i for i in range(len(self.reader.episodes)) if not self._episode_file(i).exists()]
            if self.codec == RAW:
                self._check_space(sum(self.reader.num_frames(index) for index in remaining) * self._frame_bytes)
            with open(frames, "ab") as file:
                file.truncate(self._starts[-1] * self._frame_bytes if self.codec == RAW else 0)
        return remaining

    def encode(self, index: int, say: Callable[[str], None] | None = None) -> bool:
        """See to it that an episode is done, by this process or another one.

        Args:
            say: wait for another process that encodes it, and take a line that names it.

        Returns:
            Whether it is done; without `say`, another process may be at it.

        Raises:
            UserError: the episode cannot be read, or the disk is full.
        """
        try:
            with only_writer_of(self._episode_file(index), CACHE_FIX, say or _give_up):
                # In this order: while it is not done, nobody else publishes.
                if not self._episode_file(index).exists() and not self.is_published:
                    self._encode(index)
        except _HeldError:
            return False
        return True

    def publish(self, say: Callable[[str], None]) -> None:
        """Join what the episodes left and put the cache in its place, unless another process has done so.

        Args:
            say: takes a line that names who is waited for.

        Raises:
            UserError: actions of episodes differ in length, an episode's file is damaged, or the disk is full.
        """
        with only_writer_of(self.target, CACHE_FIX, say):
            if not self.is_published:
                self._join()
                with writing(f"frame cache {self.target}", CACHE_FIX):
                    sync(self._cache)
                    if self.target.exists():  # what somebody left of a cache whose index is gone
                        shutil.rmtree(self.target)
                    os.replace(self._cache, self.target)
                    sync(self.target.parent)
            shutil.rmtree(self._folder, ignore_errors=True)

    # Places -----------------------------------------------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        return self.target.with_name(f".{self.target.name}.part")

    @property
    def _cache(self) -> Path:
        return self._folder / "cache"

    @property
    def _episodes(self) -> Path:
        return self._folder / "episodes"

    def _episode_file(self, index: int) -> Path:
        return self._episodes / f"{index:06d}.npz"

    @property
    def _frame_bytes(self) -> int:
        return len(self.robot.cameras) * self.image_size**2 * 3

    @cached_property
    def _starts(self) -> list[int]:
        """Number of each episode's first frame, and of all frames."""
        return list(accumulate((episode.num_steps for episode in self.reader.episodes), initial=0))

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise UserError(
                f"frame cache {self.target}: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; {CACHE_FIX}"
            )

    # Episodes ---------------------------------------------------------------------------------------------------------

    def _encode(self, index: int) -> None:
        """Write an episode's raw frames in their place, then all else, whose presence says that both are there."""
        arrays = self._read(index)
        views = [
            resize_frames(to_upright(arrays.images[camera.name], camera.orientation), self.image_size, camera.fit)
            for camera in self.robot.cameras
        ]
        frames, seen = np.stack(views, axis=1), arrays.seen
        frames[~seen] = 0
        kept = arrays_of_episode(arrays)
        stored: list[Any] = list(frames)
        if self.codec != RAW:
            stored = [encode_frame(self.codec, frame) if is_seen else b"" for frame, is_seen in zip(frames, seen)]
            kept[_CODED] = np.frombuffer(b"".join(stored), np.uint8)
            kept[_CODED_SIZES] = np.array([len(frame) for frame in stored], np.int64)
        kept[FRAME_CRCS] = np.array([frame_checksum(frame) for frame in stored], np.uint32)
        with writing(f"frame cache {self.target}", CACHE_FIX):
            if self.codec == RAW:
                self._write_raw(frames, seen, self._starts[index])
            with replacing(self._episode_file(index)) as part, part.open("wb") as file:
                np.savez(file, allow_pickle=False, **kept)

    def _read(self, index: int) -> EpisodeArrays:
        info, arrays = self.reader.episodes[index], self.reader.read(index, self.robot.camera_names)
        if len(arrays.actions) != info.num_steps:
            raise UserError(
                f"data {info.file}: {info.episode_id} has {len(arrays.actions)} actions, expected {info.num_steps}; "
                "do not change files while they are read"
            )
        return arrays

    def _write_raw(self, frames: np.ndarray, seen: np.ndarray, start: int) -> None:
        # Others write their episodes to the same file.
        with open(self._cache / FRAMES_FILE, "r+b", buffering=0) as file:
            if seen.all():
                _write_at(file.fileno(), frames, start * self._frame_bytes)
            else:  # holes in the file take no room
                for step in np.flatnonzero(seen):
                    _write_at(file.fileno(), frames[step], (start + int(step)) * self._frame_bytes)
            os.fsync(file.fileno())

    # The whole --------------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        """Join the frames, where they are compressed, and the arrays of all episodes; write the index."""
        infos = self.reader.episodes
        parts = [self._load(index) for index in range(len(infos))]
        widths = {part[ACTIONS].shape[1] for part in parts}
        if len(widths) > 1:
            raise UserError(
                f"data {self.reader.path}: actions have {sorted(widths)} numbers in different episodes; split the data "
                "set"
            )
        arrays = join_arrays(parts)
        if self.codec != RAW:
            arrays[FRAME_OFFSETS] = np.cumsum(np.concatenate([[0], *(part[_CODED_SIZES] for part in parts)]))
            self._join_frames()
        episodes, instructions = describe_episodes(infos, parts, self._starts)
        # A field that only some episodes have serves nothing; those that the policy sees are in all of them.
        robot = self.robot.with_state(field for field in self.robot.state if STATE_PREFIX + field.name in arrays)
        size, frame_size = self.image_size, common_frame_size(parts)
        write_cache(self._cache, episodes, instructions, robot, size, frame_size, arrays, self.codec)

    def _join_frames(self) -> None:
        with writing(f"frame cache {self.target}", CACHE_FIX):
            with open(self._cache / FRAMES_FILE, "wb") as file:
                for index in range(len(self.reader.episodes)):
                    file.write(self._load(index, frames=True)[_CODED].data)
            sync(self._cache / FRAMES_FILE)

    def _load(self, index: int, frames: bool = False) -> dict[str, np.ndarray]:
        """The arrays that an episode left; its compressed frames, or all the others."""
        file = self._episode_file(index)
        try:
            with np.load(file, allow_pickle=False) as loaded:
                return {name: loaded[name] for name in loaded.files if (name == _CODED) == frames}
        except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
            raise UserError(f"frame cache {file}: damaged ({error}); delete it and start again") from None


def _give_up(line: str) -> None:
    raise _HeldError


def _write_at(descriptor: int, frames: np.ndarray, position: int) -> None:
    view = memoryview(np.ascontiguousarray(frames).data).cast("B")
    while view:
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written
