"""Builds frame caches: by several processes together, resumable, and once even if several ask at the same time.

The processes are those that a build starts itself, those of `torchrun`, which take a share each, and whoever else asks
for the same cache. None needs to hear of the others: who is where, files say (`unfinished_cache`).
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing.connection import wait

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from statevla.config import Config, expand_path, fit_to_robot
from statevla.data.cache import FrameCache
from statevla.data.cache_index import CACHE_VERSION
from statevla.data.episodes import EpisodeReader
from statevla.data.formats import open_reader
from statevla.data.frame_codecs import RAW, require_codec
from statevla.data.unfinished_cache import UnfinishedCache
from statevla.errors import UserError
from statevla.machine.processes import Processes, described_processes
from statevla.robots import RobotSpec

_MIN_FRAMES_PER_PROCESS = 2_000
"""Starting a process costs seconds; below this it is quicker without."""
_of_worker: UnfinishedCache | None = None


def open_frame_cache(
    config: Config, progress: bool = True, num_processes: int | None = None, same_as: RobotSpec | None = None
) -> FrameCache:
    """The frame cache of `config.data` at `config.model`'s cameras and size; built first where there is none.

    The robot is the one that the data set declares, or `config.data.robot`.

    Args:
        progress: draw a progress bar while building, and say who is waited for.
        num_processes: that build; by default all cores, fewer for small data sets. Under `torchrun`, of every process,
            and by default its share of the cores.
        same_as: the robot that the data set must be of; checked before anything is built.

    Raises:
        UserError: the data set is missing, damaged (file and episode are named), of another robot than the
            configuration says or lacks a camera, the cache is damaged, or the disk is full.
    """
    data = config.data
    with open_reader(data.path, data.format, data.orientation, data.robot) as reader:
        _, robot = fit_to_robot(config, reader.robot)
        if same_as is not None and (difference := same_as.difference(robot, in_data=True)):
            raise UserError(
                f"data {data.path}: of another robot than '{same_as.name}'; {difference}; declare it (robot: ...), or "
                "train on it by itself"
            )
        require_codec(data.cache_codec)
        size = config.model.image_size
        key = fingerprint(reader, robot, size, data.cache_codec)
        folder = expand_path(data.cache_dir) / f"{reader.path.stem}-{size}px-{key}"
        cache = UnfinishedCache(reader, folder, robot, size, data.cache_codec)
        if not cache.is_published or cache.is_left_over:
            _build(cache, progress, num_processes)
    return FrameCache(folder)


def fingerprint(reader: EpisodeReader, robot: RobotSpec, image_size: int, codec: str = RAW) -> str:
    """Changes whenever the cache would: sources (path, size, time), robot with its cameras, size, codec, version."""
    sources = []
    for file in reader.source_files():
        status = file.stat()
        sources.append([str(file.resolve()), status.st_size, status.st_mtime_ns])
    parts = [CACHE_VERSION, reader.format, robot.to_dict(), sources, image_size, codec]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _build(cache: UnfinishedCache, progress: bool, num_processes: int | None) -> None:
    """Build together with whoever else does; what an interrupted build finished is kept."""
    say = print if progress else _say_nothing
    processes = described_processes()
    remaining = cache.prepare(say)
    episodes = cache.reader.episodes
    num_frames = sum(episode.num_steps for episode in episodes)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not progress, transient=True) as bar:
        missing = sum(episodes[i].num_steps for i in remaining)
        task = bar.add_task(f"frame cache {cache.image_size} px", total=num_frames, completed=num_frames - missing)
        held = []
        # Closed at once where something is raised here: its workers would go on to the last episode.
        with closing(_encode(cache, _in_order(remaining, processes), num_processes, processes)) as encoded:
            for index, is_done in encoded:
                if is_done:
                    bar.advance(task, episodes[index].num_steps)
                else:
                    held.append(index)
        say_once = _only_first(bar.console.print if progress else _say_nothing)
        for index in held:
            # Should its process die, the episode is ours.
            cache.encode(index, say_once)
            bar.advance(task, episodes[index].num_steps)
    cache.publish(say)


def _in_order(remaining: Sequence[int], processes: Processes) -> list[int]:
    """This process's share first; whoever is through with it goes on with the others'."""
    world = processes.world_size
    return [index for rank in range(world) for index in remaining[(processes.rank + rank) % world :: world]]


def _encode(
    cache: UnfinishedCache, indices: Sequence[int], num_processes: int | None, processes: Processes
) -> Generator[tuple[int, bool]]:
    """Episodes one by one, and whether each is done, or held by another process."""
    if num_processes is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_frames = sum(cache.reader.episodes[i].num_steps for i in indices)
        most = num_frames // processes.world_size // _MIN_FRAMES_PER_PROCESS
        num_processes = max(1, min(cores // processes.local_world_size, most, len(indices)))
    if num_processes <= 1:
        yield from ((index, cache.encode(index)) for index in indices)
        return
    # Spawned, not forked: the caller may already run threads of PyTorch or numba.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=_begin_worker, initargs=(cache,))
    try:
        futures = {pool.submit(_encode_in_worker, index): index for index in indices}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise UserError(
            f"frame cache {cache.target}: a building process was killed, perhaps for want of memory; start again, it "
            "goes on where it was (statevla data cache --num-processes takes fewer processes)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker(cache: UnfinishedCache) -> None:
    global _of_worker
    _of_worker = cache  # sent once: with each episode, a list of all episodes would travel
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent tells nobody, and a worker would wait for its next episode for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _encode_in_worker(index: int) -> bool:
    assert _of_worker is not None
    return _of_worker.encode(index)


def _say_nothing(line: str) -> None:
    pass


def _only_first(say: Callable[[str], None]) -> Callable[[str], None]:
    """Takes many lines and says the first."""
    lines: list[str] = []

    def say_once(line: str) -> None:
        if not lines:
            lines.append(line)
            say(line)

    return say_once
