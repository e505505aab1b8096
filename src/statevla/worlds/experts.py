"""Experts: whoever shows how a task is done. To the collector an expert is a function from a world to actions.

    def lift(world, rng):
        '''Raise the hand for a second, with a little noise.'''
        for _ in range(round(world.robot.control_freq_hz)):
            up = np.array([0.0, 0.0, 1.0])
            yield ExpertStep(up, executed=up + 0.1 * rng.standard_normal(3))

It is called after each reset, looks at the world (a scripted one at whatever the world's class offers) and yields one
action per control step; the world is stepped between one and the next. It ends when it has nothing left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from statevla.errors import UserError
from statevla.worlds.named import load_named
from statevla.worlds.protocol import Suite, Task, World


@dataclass(frozen=True)
class ExpertStep:
    """One control step of an expert.

    Attributes:
        action: `[A]` in the robot's units: what a policy should answer.
        executed: `[A]`, what is done instead, as with noise that policies shall learn to recover from; None: `action`.
    """

    action: np.ndarray
    executed: np.ndarray | None = None


Expert = Callable[[World, np.random.Generator], Iterator[ExpertStep]]
"""A function of a world that was just reset and of a source of randomness."""


@runtime_checkable
class SuiteWithExpert(Suite, Protocol):
    """A suite that can show how its tasks are done."""

    def expert(self, task: Task) -> Expert:
        """Who shows this task."""


def find_expert(suite: Suite, task: Task, name: str | None = None) -> Expert:
    """The expert `module:function` of that name, else the suite's own.

    Raises:
        UserError: there is none.
    """
    if name is not None:
        expert = load_named(name, "--expert")
        if not callable(expert):
            raise UserError(f"--expert {name}: expected a function (world, rng) → steps, got {type(expert).__name__}")
        return expert
    if not isinstance(suite, SuiteWithExpert):
        raise UserError(
            f"world '{suite.name}': brings no expert; write one (docs/worlds.md) and pass --expert module:function"
        )
    return suite.expert(task)
