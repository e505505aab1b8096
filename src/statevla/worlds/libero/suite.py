"""LIBERO's and LIBERO-PRO's suites behind the protocol that every world shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

from statevla.errors import UserError
from statevla.robots import LIBERO
from statevla.types import Rendering
from statevla.worlds.backend import versions
from statevla.worlds.libero.tasks import find_task, num_init_states, suite_tasks
from statevla.worlds.protocol import Task, World

InitStates = Literal["official", "wide", "drawn"]
"""Where episodes start: the benchmark's states, this package's with objects all over the reachable table, or as every
seed draws them."""


class LiberoSuite:
    """A suite of LIBERO or LIBERO-PRO.

    Args:
        name: such as "libero_object".
        init_states: where episodes start.
        rendering: how frames are drawn, see `rendering`.

    Raises:
        UserError: no such suite or option, or the simulator is not installed.
    """

    robot = LIBERO

    def __init__(self, name: str, init_states: InitStates = "official", rendering: Rendering = "fast") -> None:
        for option, value, kind in (("init_states", init_states, InitStates), ("rendering", rendering, Rendering)):
            if value not in get_args(kind):
                raise UserError(f"{option}: expected one of {', '.join(get_args(kind))}, got '{value}'")
        suite_tasks(name)
        self.name = name
        self._init_states, self._rendering = init_states, rendering

    @property
    def options(self) -> Mapping[str, Any]:
        return {"init_states": self._init_states, "rendering": self._rendering}

    @cached_property
    def tasks(self) -> Sequence[Task]:
        kind = self._init_states
        return [
            Task(
                task.suite,
                task.index,
                task.name,
                task.instruction,
                task.max_steps,
                0 if kind == "drawn" else num_init_states(task, kind),
            )
            for task in suite_tasks(self.name)
        ]

    def make(self, task: Task, image_size: int, cameras: Sequence[str]) -> World:
        """The world of a task, with square frames of `image_size` pixels from these cameras.

        Raises:
            UserError: the task has no such initial states, or a camera does not exist.
        """
        if self._init_states != "drawn" and not task.num_init_states:
            raise UserError(
                f"task {task.index} of suite '{task.suite}' has no {self._init_states} initial states; choose another "
                "suite, or init_states 'drawn' for those that each seed draws"
            )
        from statevla.worlds.libero.env import LiberoWorld

        spec = find_task(task.suite, task.index)
        return LiberoWorld(spec, image_size, cameras, self._init_states, rendering=self._rendering)

    def versions(self) -> Mapping[str, str]:
        return versions("sim")
