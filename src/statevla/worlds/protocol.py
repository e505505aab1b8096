"""What a world is: something that a policy acts in, one control step at a time.

LIBERO, SO-101 and any gymnasium environment stand behind this protocol; evaluation, workers, results, videos, reports
and collection know nothing else. A suite is a list of tasks in one kind of world and makes the world of a task.

What a world may offer beside the protocol is a protocol of its own: whoever has these methods gets more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from statevla.errors import UserError
from statevla.robots import RobotSpec
from statevla.types import Observation


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        suite: name of the suite.
        index: number in the suite.
        name: unique in the suite; letters, digits and `_`.
        instruction: the task in words.
        max_steps: control steps after which an episode has failed.
        num_init_states: how many fixed initial states there are, which the reset option `init_state_index` chooses
            from; 0 where every seed draws its own.

    Raises:
        UserError: a name that is none, no instruction, or no step.
    """

    suite: str
    index: int
    name: str
    instruction: str
    max_steps: int
    num_init_states: int = 0

    def __post_init__(self) -> None:
        where = f"task {self.index} of '{self.suite}'"
        if not re.fullmatch(r"\w+", self.name, re.ASCII):  # it becomes a file's name
            raise UserError(f"{where}: its name '{self.name}' must be letters, digits and _; rename it")
        if not self.instruction.strip() or self.max_steps < 1:
            raise UserError(
                f"{where}: expected an instruction and at least one step, got '{self.instruction}' and "
                f"{self.max_steps}; say both"
            )


@runtime_checkable
class World(Protocol):
    """A world in which one task is to be done."""

    @property
    def robot(self) -> RobotSpec:
        """What its actions, states and cameras are."""

    @property
    def instruction(self) -> str:
        """The task in words."""

    @property
    def max_steps(self) -> int:
        """Control steps after which an episode has failed."""

    def reset(self, seed: int, options: Mapping[str, Any] | None = None) -> Observation:
        """Begin an episode, a pure function of `seed` and `options`; an observation without images."""

    def step(self, action: np.ndarray) -> None:
        """Execute one action `[A]` in the robot's units."""

    def observe(self, render: bool = True) -> Observation:
        """What there is to see now: all state fields of the robot, and upright frames of the cameras asked for;
        without `render` no images (drawing may be most of the cost)."""

    def success(self) -> bool:
        """Whether the task is done now."""

    def close(self) -> None:
        """Free what it holds."""


@runtime_checkable
class EndingWorld(World, Protocol):
    """A world whose episodes may end before success and before the step limit, as by a fall."""

    def over(self) -> bool:
        """Whether the episode has ended; there is no step after that."""


@runtime_checkable
class ReplayableWorld(World, Protocol):
    """A world whose moments can be shown again: then a video is drawn after the episode, and only if it is kept.

    What a reset draws and a state does not hold (where furniture stands, colours) stays until the next reset.
    """

    def state(self) -> np.ndarray:
        """All that is needed to show this moment again, float64 `[n]`."""

    def set_state(self, state: np.ndarray) -> None:
        """Show a recorded moment; going on from it need not be possible."""


@runtime_checkable
class ScalableWorld(World, Protocol):
    """A world that draws frames of any size: videos for people are then larger than what the policy sees."""

    def draw(self, camera: str, size: int) -> np.ndarray:
        """An upright RGB frame of this moment, uint8 `[size, size, 3]`."""


@runtime_checkable
class WorldWithObjects(World, Protocol):
    """A world that says where things are: collected with the demonstrations, for probes."""

    def object_poses(self) -> Mapping[str, np.ndarray]:
        """Name of a movable object → position (m) and quaternion (wxyz) in the world, `[7]`; always the same names."""


@runtime_checkable
class Suite(Protocol):
    """Tasks in one kind of world. Cheap to make: nothing is loaded before `make`."""

    @property
    def name(self) -> str:
        """As results and messages call it."""

    @property
    def options(self) -> Mapping[str, Any]:
        """How its worlds are, defaults included: plain values, recorded with results."""

    @property
    def robot(self) -> RobotSpec:
        """Of all its worlds."""

    @property
    def tasks(self) -> Sequence[Task]:
        """In order."""

    def make(self, task: Task, image_size: int, cameras: Sequence[str]) -> World:
        """The world of a task, with square frames of `image_size` pixels from these cameras."""

    def versions(self) -> Mapping[str, str]:
        """Package → version of what decides how the worlds behave, recorded with results."""


@runtime_checkable
class PreparedSuite(Suite, Protocol):
    """A suite that needs what may not be there: asked before any of its worlds is made in a process of its own."""

    def prepare(self) -> None:
        """Find out what is missing here; a UserError says it."""
