"""Processes that hold worlds. The policy stays in the main process and serves them all.

A worker executes a whole chunk per message and renders only when the policy is to look again. It is spawned, runs on
one thread, keeps its world from episode to episode of a task, and ends when the main process does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from statevla.types import Observation
from statevla.worlds.child_process import ChildProcess, Died, with_answers
from statevla.worlds.protocol import EndingWorld, Suite, Task, World
from statevla.worlds.registry import open_suite
from statevla.worlds.rollout_plan import EpisodeSpec

if TYPE_CHECKING:
    from statevla.worlds.surprise_trace import SurpriseTrace
    from statevla.worlds.video import Film

REPLY_TIMEOUT_S = 600.0
"""A worker that has said nothing for so long is taken for dead. Building a world takes seconds."""


@dataclass(frozen=True)
class WorldSettings:
    """What every world of an evaluation has in common.

    Attributes:
        name, options: of the suite, as `registry.open_suite` takes them.
        image_size: side of the frames (pixels).
        cameras: that the policy looks through.
    """

    name: str
    options: Mapping[str, Any]
    image_size: int
    cameras: tuple[str, ...]


# To a worker ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Begin an episode; with `record`, keep what a video of it takes."""

    episode: EpisodeSpec
    record: bool


@dataclass(frozen=True)
class Execute:
    """Run these actions, float32 `[k, A]`, one control step each."""

    actions: np.ndarray


@dataclass(frozen=True)
class SaveVideo:
    """Write the video and the strip of the episode that has just ended."""

    video: Path
    strip: Path
    instruction: str
    surprise: SurpriseTrace


# From a worker --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """The policy is to decide: an observation with images."""

    observation: Observation


@dataclass(frozen=True)
class Ended:
    """The episode is over, after `num_steps` control steps; seconds by what they were spent on."""

    success: bool
    num_steps: int
    setup_s: float
    physics_s: float
    render_s: float


@dataclass(frozen=True)
class VideoSaved:
    """`SaveVideo` is done."""


class Worker(ChildProcess):
    """The main process's end of one worker."""

    def __init__(self, number: int, settings: WorldSettings) -> None:
        self.number = number
        self.task_index: int | None = None
        self.episode: EpisodeSpec | None = None
        self._since = time.monotonic()
        super().__init__(f"world {number}", _Stage, settings)

    def send(self, message: Any) -> None:
        """Send a message. A dead worker is noticed when its reply is awaited."""
        self._since = time.monotonic()
        if isinstance(message, Start):
            self.episode, self.task_index = message.episode, message.episode.task.index
        super().send(message)

    @property
    def is_silent(self) -> bool:
        """Whether an answer is long overdue."""
        return time.monotonic() - self._since > REPLY_TIMEOUT_S


class WorkerPool:
    """A number of workers, used as a context manager; dead ones are replaced by `replace`."""

    def __init__(self, num_workers: int, settings: WorldSettings) -> None:
        self._settings = settings
        self.workers = [Worker(number, settings) for number in range(num_workers)]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.close()

    def replies(self, timeout_s: float = 1.0) -> list[tuple[Worker, Any]]:
        """Wait for messages of workers that have an episode; all that have come."""
        busy = [worker for worker in self.workers if worker.episode is not None]
        ready = with_answers(busy, timeout_s)
        found: list[tuple[Worker, Any]] = [(worker, worker.receive()) for worker in ready]
        for worker in busy:
            if worker not in ready and worker.is_silent:
                worker.process.kill()
                found.append((worker, Died(f"no answer from the world's process in {REPLY_TIMEOUT_S:.0f} s")))
        return found

    def replace(self, worker: Worker) -> Worker:
        """Start a fresh worker in place of a dead one."""
        worker.close()
        fresh = Worker(worker.number, self._settings)
        self.workers[self.workers.index(worker)] = fresh
        return fresh


# In the worker --------------------------------------------------------------------------------------------------------


class _Stage:
    """One world and the episode in it."""

    def __init__(self, settings: WorldSettings) -> None:
        self._settings = settings
        self._suite: Suite | None = None
        self._world: World | None = None
        self._task: Task | None = None
        self._film: Film | None = None
        self._max_steps = self._num_steps = 0
        self._success = False
        self._setup_s = self._physics_s = self._render_s = 0.0

    def handle(self, message: Any) -> Any:
        if isinstance(message, Start):
            return self._start(message)
        if isinstance(message, Execute):
            return self._execute(message.actions)
        return self._save_video(message)

    def _start(self, message: Start) -> Any:
        began = time.perf_counter()
        episode = message.episode
        world = self._make(episode.task)
        world.reset(episode.seed, episode.reset_options)
        self._max_steps, self._num_steps, self._success = episode.task.max_steps, 0, world.success()
        self._physics_s = self._render_s = 0.0
        self._film = self._new_film(world) if message.record else None
        if self._film is not None:
            self._film.note(0, is_last=self._success)
        self._setup_s = time.perf_counter() - began
        return self._ended() if self._success else self._look()

    def _make(self, task: Task) -> World:
        """The world of a task: the present one, if it is that."""
        if self._world is not None and self._task == task:
            return self._world
        settings = self._settings
        if self._suite is None:
            self._suite = open_suite(settings.name, **settings.options)
        if self._world is not None:
            self._world.close()
            self._world = None
        self._world, self._task = self._suite.make(task, settings.image_size, settings.cameras), task
        return self._world

    def _new_film(self, world: World) -> Film:
        from statevla.worlds.video import Film

        return Film(world, self._settings.cameras)

    def _execute(self, actions: np.ndarray) -> Any:
        world, over = self._world, False
        assert world is not None
        ending = world if isinstance(world, EndingWorld) else None
        for action in actions:
            began = time.perf_counter()
            world.step(action)
            self._num_steps += 1
            self._success = world.success()
            over = self._success or self._num_steps >= self._max_steps or (ending is not None and ending.over())
            self._physics_s += time.perf_counter() - began
            if self._film is not None:
                began = time.perf_counter()
                self._film.note(self._num_steps, is_last=over)
                self._render_s += time.perf_counter() - began
            if over:
                break
        return self._ended() if over else self._look()

    def _look(self) -> Look:
        assert self._world is not None
        began = time.perf_counter()
        observation = self._world.observe()
        self._render_s += time.perf_counter() - began
        return Look(observation)

    def _ended(self) -> Ended:
        return Ended(self._success, self._num_steps, self._setup_s, self._physics_s, self._render_s)

    def _save_video(self, message: SaveVideo) -> VideoSaved:
        from statevla.worlds.video import save_episode

        assert self._film is not None
        save_episode(self._film, self._success, message.video, message.strip, message.instruction, message.surprise)
        return VideoSaved()
