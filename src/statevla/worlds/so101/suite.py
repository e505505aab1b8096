"""The SO-101's tasks behind the protocol that every world shares: one so far, lifting a cube."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np

from statevla.errors import UserError
from statevla.robots.so101 import SO101
from statevla.types import Rendering
from statevla.worlds.backend import check, versions
from statevla.worlds.experts import Expert, ExpertStep
from statevla.worlds.protocol import Task, World
from statevla.worlds.so101.task import INSTRUCTION, MAX_STEPS

NOISE_RAD = 0.03
"""Of the joint targets in demonstrations: so that they show the way back."""
LAPSE_SHARE = 0.4
"""Share of the demonstrations in which the hand once goes astray near the cube."""


class So101Suite:
    """The tasks of the SO-101.

    Args:
        rendering: how frames are drawn, see `drawing`.

    Raises:
        UserError: no such rendering.
    """

    name = "so101"
    robot = SO101
    tasks: Sequence[Task] = (Task("so101", 0, "pick_up_the_cube", INSTRUCTION, MAX_STEPS),)

    def __init__(self, rendering: Rendering = "fast") -> None:
        if rendering not in get_args(Rendering):
            raise UserError(f"rendering: expected one of {', '.join(get_args(Rendering))}, got '{rendering}'")
        self._rendering = rendering

    @property
    def options(self) -> Mapping[str, Any]:
        return {"rendering": self._rendering}

    def prepare(self) -> None:
        """Find out whether the simulator is here and can draw.

        Raises:
            UserError: it is not, or cannot.
        """
        check("so101")

    def make(self, task: Task, image_size: int, cameras: Sequence[str]) -> World:
        """The world, with square frames of `image_size` pixels."""
        from statevla.worlds.so101.world import So101LiftWorld

        return So101LiftWorld(image_size, cameras, self._rendering, task.max_steps)

    def expert(self, task: Task) -> Expert:
        """The scripted expert, disturbed on its way."""
        return _disturbed_expert

    def versions(self) -> Mapping[str, str]:
        return versions("so101")


def _disturbed_expert(world: Any, rng: np.random.Generator) -> Iterator[ExpertStep]:
    from statevla.worlds.so101.expert import ExecutionNoise, Lapse, expert

    noise = ExecutionNoise(world, NOISE_RAD, rng)
    lapse = Lapse(world, rng) if rng.random() < LAPSE_SHARE else None
    for action in expert(world, rng):
        executed = noise.apply(action)
        yield ExpertStep(action, executed if lapse is None else lapse.apply(executed))
