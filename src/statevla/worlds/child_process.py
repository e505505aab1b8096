"""Processes for simulators: spawned, on one thread each, and gone when this process is.

A child makes a handler and answers messages one by one with what the handler returns.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

from statevla.errors import UserError

# There are as many processes as cores. Mesa's software renderer counts threads beside the main one.
_SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "LP_NUM_THREADS": "0",
}


class Handler(Protocol):
    """What lives in a child."""

    def handle(self, message: Any) -> Any:
        """The answer to a message."""


@dataclass(frozen=True)
class Failed:
    """The answer where something was raised; with `is_user_error` going on is no use."""

    message: str
    details: str
    is_user_error: bool


@dataclass(frozen=True)
class Died:
    """The answer of a process that is gone."""

    message: str


class ChildProcess:
    """The main process's end of a child.

    Args:
        name: of the process.
        make_handler: called in the child with `args`; found there by its module's name, which cannot be `__main__`.
    """

    def __init__(self, name: str, make_handler: Callable[..., Handler], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_answer, args=(theirs, make_handler, args), name=name, daemon=True
        )
        with _single_threaded(), _main_not_imported():
            self.process.start()
        theirs.close()  # so that the child's death closes the pipe

    def send(self, message: Any) -> None:
        """Send a message. A dead child is noticed when its answer is awaited."""
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError, OSError):
            return

    def receive(self) -> Any:
        """The child's next answer, `Failed` or `Died`."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError, OSError):
            self.process.join(10)
            return Died(f"the world's process ended (exit status {self.process.exitcode})")

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        if self.process.is_alive():
            self.process.terminate()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(10)


Child = TypeVar("Child", bound=ChildProcess)


def with_answers(children: Sequence[Child], timeout_s: float | None = None) -> list[Child]:
    """Those of `children` that have answered or died; waits for one."""
    ready = wait([child.connection for child in children], timeout_s)
    return [child for child in children if child.connection in ready]


def _answer(connection: Connection, make_handler: Callable[..., Handler], args: Sequence[Any]) -> None:
    """A child's life: answer messages until the main process goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    handler = make_handler(*args)
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            break
        try:
            answer = handler.handle(message)
        except UserError as error:
            answer = Failed(str(error), "", is_user_error=True)
        except Exception as error:
            handler = make_handler(*args)  # whatever was open in the old one may be in any state
            answer = Failed(f"{type(error).__name__}: {error}", traceback.format_exc(), is_user_error=False)
        try:
            connection.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            break
    # MuJoCo's contexts complain when the interpreter takes them apart in its own order.
    sys.stdout.flush()
    os._exit(0)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Processes started inside the block find these variables when they load their libraries."""
    before = {name: os.environ.get(name) for name in _SINGLE_THREADED}
    os.environ.update(_SINGLE_THREADED)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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
