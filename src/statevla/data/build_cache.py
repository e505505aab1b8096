"""Builds frame caches: in parallel, resumable, and once even if several processes ask at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from statevla.config import Config, expand_path, fit_to_robot
from statevla.data.cache import (
    ACTIONS,
    CACHE_FIX,
    CACHE_VERSION,
    EXECUTED,
    FRAMES_FILE,
    IS_SEEN,
    OBJECTS,
    STATE_PREFIX,
    CachedEpisode,
    FrameCache,
    write_index,
)
from statevla.data.episodes import EpisodeArrays, EpisodeReader
from statevla.data.formats import open_reader
from statevla.errors import UserError
from statevla.machine.storage import replacing, writing
from statevla.robots import RobotSpec
from statevla.transforms import resize_frames, to_upright

_MIN_FRAMES_PER_PROCESS = 2_000
"""Starting a process costs seconds; below this it is quicker without."""
_NAMES, _SUCCESS, _SIDES = "object_names", "success", "frame_sides"


@dataclass(frozen=True)
class _Job:
    """What a building process needs to know."""

    reader: EpisodeReader
    folder: Path
    robot: RobotSpec
    image_size: int


def open_frame_cache(
    config: Config, progress: bool = True, num_processes: int | None = None, same_as: RobotSpec | None = None
) -> FrameCache:
    """The frame cache of `config.data` at `config.model`'s cameras and size; built first where there is none.

    The robot is the one that the data set declares, or `config.data.robot`.

    Args:
        progress: draw a progress bar while building.
        num_processes: that build; by default all cores, fewer for small data sets.
        same_as: the robot that the data set must be of; checked before anything is built.

    Raises:
        UserError: the data set is missing, damaged (file and episode are named), of another robot than the
            configuration says or lacks a camera, or the disk is full.
    """
    data = config.data
    with open_reader(data.path, data.format, data.orientation, data.robot) as reader:
        _, robot = fit_to_robot(config, reader.robot)
        if same_as is not None and (difference := same_as.difference(robot, in_data=True)):
            raise UserError(
                f"data {data.path}: of another robot than '{same_as.name}'; {difference}; declare it (robot: ...), or "
                "train on it by itself"
            )
        key = fingerprint(reader, robot, config.model.image_size)
        root = expand_path(config.data.cache_dir)
        folder = root / f"{reader.path.stem}-{config.model.image_size}px-{key}"
        if not (folder / "cache.json").exists():
            _make_directory(root)
            # The lock is the kernel's: it ends with its holder, so a killed builder leaves nothing to clean up.
            with _lock(root / f".{folder.name}.lock"):
                if not (folder / "cache.json").exists():
                    job = _Job(reader, root / f".{folder.name}.part", robot, config.model.image_size)
                    _build(job, progress, num_processes)
                    os.replace(job.folder, folder)
                    for index in range(len(reader.episodes)):
                        _low_dim_file(folder, index).unlink()
    return FrameCache(folder)


def fingerprint(reader: EpisodeReader, robot: RobotSpec, image_size: int) -> str:
    """Changes whenever the cache would: sources (path, size, time), robot with its cameras, size, version."""
    sources = []
    for file in reader.source_files():
        status = file.stat()
        sources.append([str(file.resolve()), status.st_size, status.st_mtime_ns])
    parts = [CACHE_VERSION, reader.format, robot.to_dict(), sources, image_size]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _build(job: _Job, progress: bool, num_processes: int | None) -> None:
    """Fill `job.folder`; episodes that an interrupted build finished are kept."""
    episodes = job.reader.episodes
    starts = np.concatenate([[0], np.cumsum([episode.num_steps for episode in episodes])]).tolist()
    _make_directory(job.folder)
    done = {i for i in range(len(episodes)) if _low_dim_file(job.folder, i).exists()}
    remaining = [i for i in range(len(episodes)) if i not in done]
    frame_bytes = len(job.robot.cameras) * job.image_size**2 * 3
    _check_space(job.folder, sum(job.reader.num_frames(i) for i in remaining) * frame_bytes)
    with open(job.folder / FRAMES_FILE, "ab") as file:
        file.truncate(starts[-1] * frame_bytes)
    if num_processes is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_processes = max(1, min(cores, starts[-1] // _MIN_FRAMES_PER_PROCESS, len(remaining)))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not progress, transient=True) as bar:
        task = bar.add_task(
            f"frame cache {job.image_size} px", total=starts[-1], completed=sum(episodes[i].num_steps for i in done)
        )
        for index in _work(job, remaining, starts, num_processes):
            bar.advance(task, episodes[index].num_steps)
    _finish(job, starts)


def _work(job: _Job, remaining: Sequence[int], starts: Sequence[int], num_processes: int) -> Iterator[int]:
    if num_processes <= 1:
        for index in remaining:
            yield _cache_episode(job, index, starts[index])
        return
    # Spawned, not forked: the caller may already run threads of PyTorch or numba.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        num_processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures = [pool.submit(_cache_episode, job, index, starts[index]) for index in remaining]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _cache_episode(job: _Job, index: int, start: int) -> int:
    """Write the frames of one episode in place, then its other arrays, whose presence says that both are there."""
    info = job.reader.episodes[index]
    arrays = job.reader.read(index, job.robot.camera_names)
    if len(arrays.actions) != info.num_steps:
        raise UserError(
            f"data {info.file}: {info.episode_id} has {len(arrays.actions)} actions, expected {info.num_steps}; "
            "do not change files while they are read"
        )
    views = [
        resize_frames(to_upright(arrays.images[camera.name], camera.orientation), job.image_size, camera.fit)
        for camera in job.robot.cameras
    ]
    frames = np.stack(views, axis=1)
    frame_bytes = len(job.robot.cameras) * job.image_size**2 * 3
    seen = arrays.seen
    with writing(f"frame cache {job.folder}", CACHE_FIX):
        # Others write their episodes to the same file.
        with open(job.folder / FRAMES_FILE, "r+b", buffering=0) as file:
            if seen.all():
                _write(file.fileno(), frames, start * frame_bytes)
            else:  # holes in the file take no room
                for step in np.flatnonzero(seen):
                    _write(file.fileno(), frames[step], (start + int(step)) * frame_bytes)
            os.fsync(file.fileno())
        with replacing(_low_dim_file(job.folder, index)) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, **_low_dim(arrays))
    return index


def _write(descriptor: int, frames: np.ndarray, position: int) -> None:
    view = memoryview(frames.tobytes())
    while view:
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written


def _low_dim(arrays: EpisodeArrays) -> dict[str, np.ndarray]:
    named = {ACTIONS: arrays.actions, EXECUTED: arrays.executed_actions, OBJECTS: arrays.object_poses}
    named |= {STATE_PREFIX + field: states for field, states in arrays.robot_states.items()}
    present = {name: array.astype(np.float32) for name, array in named.items() if array is not None}
    if arrays.is_seen is not None:
        present[IS_SEEN] = arrays.is_seen
    # NumPy has no None: -1 stands for a success that nobody noted.
    success = -1 if arrays.success is None else int(arrays.success)
    sides = [max(frames.shape[1:3]) for frames in arrays.images.values()]
    return present | {
        _NAMES: np.array(arrays.object_names, dtype=np.str_),
        _SUCCESS: np.array(success, np.int8),
        _SIDES: np.array(sides, np.int64),
    }


def _finish(job: _Job, starts: Sequence[int]) -> None:
    """Join the arrays of all episodes and write the index."""
    infos = job.reader.episodes
    parts: list[dict[str, np.ndarray]] = []
    for index in range(len(infos)):
        with np.load(_low_dim_file(job.folder, index), allow_pickle=False) as loaded:
            parts.append({name: loaded[name] for name in loaded.files})
    widths = {part[ACTIONS].shape[1] for part in parts}
    if len(widths) > 1:
        raise UserError(
            f"data {job.reader.path}: actions have {sorted(widths)} numbers in different episodes; split the data set"
        )
    arrays = {ACTIONS: np.concatenate([part[ACTIONS] for part in parts])}
    for name in {name for part in parts for name in part if name.startswith(STATE_PREFIX)}:
        if all(name in part for part in parts):
            arrays[name] = np.concatenate([part[name] for part in parts])
    if any(EXECUTED in part for part in parts):
        arrays[EXECUTED] = np.concatenate([part.get(EXECUTED, part[ACTIONS]) for part in parts])
    if any(IS_SEEN in part for part in parts):
        seen = [part.get(IS_SEEN, np.ones(info.num_steps, bool)) for part, info in zip(parts, infos)]
        arrays[IS_SEEN] = np.concatenate(seen)
    if any(OBJECTS in part for part in parts):
        arrays[OBJECTS] = _padded([part.get(OBJECTS) for part in parts], [info.num_steps for info in infos])
    instructions = sorted({info.instruction for info in infos})
    episodes = [
        CachedEpisode(
            episode_id=info.episode_id,
            task=info.task,
            instruction=instructions.index(info.instruction),
            start=start,
            num_steps=info.num_steps,
            object_names=tuple(part[_NAMES].tolist()),
            success=None if part[_SUCCESS] < 0 else bool(part[_SUCCESS]),
        )
        for info, start, part in zip(infos, starts, parts)
    ]
    # A field that only some episodes have serves nothing; those that the policy sees are in all of them.
    robot = job.robot.with_state(field for field in job.robot.state if STATE_PREFIX + field.name in arrays)
    sides = {int(side) for part in parts for side in part[_SIDES]}
    frame_size = sides.pop() if len(sides) == 1 else None
    write_index(job.folder, episodes, instructions, robot, job.image_size, frame_size, arrays)


def _padded(poses: Sequence[np.ndarray | None], lengths: Sequence[int]) -> np.ndarray:
    """Join object poses of different widths; NaN where an episode has none."""
    width = max(part.shape[1] for part in poses if part is not None)
    joined = np.full((sum(lengths), width), np.nan, np.float32)
    start = 0
    for part, length in zip(poses, lengths):
        if part is not None:
            joined[start : start + length, : part.shape[1]] = part
        start += length
    return joined


def _low_dim_file(folder: Path, index: int) -> Path:
    return folder / f"episode_{index:06d}.npz"


def _make_directory(folder: Path) -> None:
    with writing(f"frame cache {folder}", CACHE_FIX):
        folder.mkdir(parents=True, exist_ok=True)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"frame cache {folder}: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; {CACHE_FIX}")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`, waiting for whoever has it."""
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
