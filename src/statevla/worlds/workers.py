"""Processes that hold environments. The policy stays in the main process and serves them all.

A worker executes a whole chunk per message and renders only when the policy is to look again. It is spawned, runs on
one thread, keeps its environment from episode to episode of a task, and ends when the main process does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from statevla.errors import UserError
from statevla.types import Observation, Rendering, RobotStateLayout
from statevla.worlds.child_threads import single_threaded_children
from statevla.worlds.rollout_plan import EpisodeSpec

if TYPE_CHECKING:
    from statevla.worlds.libero.env import LiberoEnv
    from statevla.worlds.video import SurpriseTrace

REPLY_TIMEOUT_S = 600.0
"""A worker that has said nothing for so long is taken for dead. Building an environment takes seconds."""


@dataclass(frozen=True)
class EnvSettings:
    """What every environment of an evaluation has in common."""

    image_size: int
    cameras: tuple[str, ...]
    robot_state_layout: RobotStateLayout
    init_states: str
    rendering: Rendering


# To a worker ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Begin an episode; with `record`, keep its states so that a video can be made afterwards."""

    episode: EpisodeSpec
    record: bool


@dataclass(frozen=True)
class Execute:
    """Run these actions, float32 `[k, 7]`, one control step each."""

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


@dataclass(frozen=True)
class Failed:
    """Something was raised. With `is_user_error` the evaluation cannot go on, else this episode has failed."""

    message: str
    details: str
    is_user_error: bool


@dataclass(frozen=True)
class Died:
    """The process is gone (made by the main process)."""

    message: str


class Worker:
    """The main process's end of one worker."""

    def __init__(self, number: int, settings: EnvSettings) -> None:
        self.number = number
        self.task_index: int | None = None
        self.episode: EpisodeSpec | None = None
        self._since = time.monotonic()
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(theirs, settings), name=f"environment {number}", daemon=True
        )
        with single_threaded_children(), _main_not_imported():
            self.process.start()
        theirs.close()  # so that the worker's death closes the pipe

    def send(self, message: Any) -> None:
        """Send a message. A dead worker is noticed when its reply is awaited."""
        self._since = time.monotonic()
        if isinstance(message, Start):
            self.episode, self.task_index = message.episode, message.episode.task.index
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError, OSError):
            return

    def receive(self) -> Any:
        """The worker's next message, or `Died`."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError, OSError):
            self.process.join(10)
            return Died(f"the environment's process ended (exit status {self.process.exitcode})")

    @property
    def is_silent(self) -> bool:
        """Whether an answer is long overdue."""
        return time.monotonic() - self._since > REPLY_TIMEOUT_S

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        if self.process.is_alive():
            self.process.terminate()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(10)


class WorkerPool:
    """A number of workers, used as a context manager; dead ones are replaced by `replace`."""

    def __init__(self, num_workers: int, settings: EnvSettings) -> None:
        self._settings = settings
        self.workers = [Worker(number, settings) for number in range(num_workers)]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.close()

    def replies(self, timeout_s: float = 1.0) -> list[tuple[Worker, Any]]:
        """Wait for messages of workers that have an episode; all that have come."""
        busy = {worker.connection: worker for worker in self.workers if worker.episode is not None}
        ready = wait(list(busy), timeout_s)
        found = [(busy[connection], busy[connection].receive()) for connection in ready]  # type: ignore[index]
        for worker in busy.values():
            if worker.connection not in ready and worker.is_silent:
                worker.process.kill()
                found.append((worker, Died(f"no answer from the environment's process in {REPLY_TIMEOUT_S:.0f} s")))
        return found

    def replace(self, worker: Worker) -> Worker:
        """Start a fresh worker in place of a dead one."""
        worker.close()
        fresh = Worker(worker.number, self._settings)
        self.workers[self.workers.index(worker)] = fresh
        return fresh


# In the worker --------------------------------------------------------------------------------------------------------


class _Stage:
    """One environment and the episode in it."""

    def __init__(self, settings: EnvSettings) -> None:
        self._settings = settings
        self._env: LiberoEnv | None = None
        self._success = False

    def handle(self, message: Any) -> Any:
        if isinstance(message, Start):
            return self._start(message)
        if isinstance(message, Execute):
            return self._execute(message.actions)
        return self._save_video(message)

    def discard(self) -> None:
        """After an exception the environment may be in any state."""
        self._env = None

    def _start(self, message: Start) -> Any:
        began = time.perf_counter()
        episode = message.episode
        env = self._environment(episode)
        options = {"init_state_index": episode.init_state_index, "init_states": self._settings.init_states}
        _, info = env.reset(seed=episode.seed, options=options)
        self._states = [env.get_state()] if message.record else None
        self._success, self._physics_s, self._render_s = bool(info["success"]), 0.0, 0.0
        self._setup_s = time.perf_counter() - began
        return self._ended() if self._success else self._look()

    def _environment(self, episode: EpisodeSpec) -> LiberoEnv:
        from statevla.worlds.libero.env import LiberoEnv

        if self._env is not None and self._env.task != episode.task:
            self._env.close()
            self._env = None
        if self._env is None:
            settings = self._settings
            self._env = LiberoEnv(
                episode.task,
                settings.image_size,
                settings.cameras,
                settings.robot_state_layout,
                rendering=settings.rendering,
            )
        return self._env

    def _execute(self, actions: np.ndarray) -> Any:
        assert self._env is not None
        began = time.perf_counter()
        truncated = False
        for action in actions:
            _, _, self._success, truncated, _ = self._env.step(action)
            if self._states is not None:
                self._states.append(self._env.get_state())
            if self._success or truncated:
                break
        self._physics_s += time.perf_counter() - began
        return self._ended() if self._success or truncated else self._look()

    def _look(self) -> Look:
        assert self._env is not None
        began = time.perf_counter()
        observation = self._env.observe(render=True)
        self._render_s += time.perf_counter() - began
        return Look(observation)

    def _ended(self) -> Ended:
        assert self._env is not None
        return Ended(self._success, self._env.num_steps, self._setup_s, self._physics_s, self._render_s)

    def _save_video(self, message: SaveVideo) -> VideoSaved:
        from statevla.worlds.video import save_episode

        assert self._env is not None
        assert self._states is not None
        save_episode(
            self._env,
            self._states,
            self._success,
            message.video,
            message.strip,
            message.instruction,
            message.surprise,
        )
        return VideoSaved()


def _serve(connection: Connection, settings: EnvSettings) -> None:
    """A worker's life: answer messages until the main process goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    stage = _Stage(settings)
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            break
        try:
            reply = stage.handle(message)
        except UserError as error:
            reply = Failed(str(error), "", is_user_error=True)
        except Exception as error:
            stage.discard()
            reply = Failed(f"{type(error).__name__}: {error}", traceback.format_exc(), is_user_error=False)
        try:
            connection.send(reply)
        except (BrokenPipeError, ConnectionResetError):
            break
    # MuJoCo's contexts complain when the interpreter takes them apart in its own order.
    sys.stdout.flush()
    os._exit(0)


@contextmanager
def _main_not_imported() -> Iterator[None]:
    """A spawned process would import the caller's script first, and with it PyTorch: 200 MB that it never uses."""
    main = sys.modules["__main__"]
    kept = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    for name in kept:
        delattr(main, name)
    main.__spec__ = None
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)
