"""Things that go wrong in an episode on purpose: what an alarm should notice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from statevla.errors import UserError
from statevla.robots.libero import Gripper
from statevla.worlds.libero.moved_objects import free_shift, object_joint
from statevla.worlds.libero.simulation import Simulation

Kind = Literal["none", "moved", "occluded", "blocked"]
PUSH_M, PUSH_M_PER_S, MAX_PUSH_STEPS = 0.12, 0.5, 40
"""How far and how fast an object is pushed: twice the width of a can, in about a third of a second."""
COVERED_CAMERA, COVER_VALUE = "agentview", 96


class Disturbance:
    """One disturbance of one episode; call `act` before every control step and `see` at every look.

    Args:
        kind: `none`; `moved`: the target object is pushed over the table; `occluded`: the camera `agentview` sees a
            grey cover; `blocked`: the fingers do not close, whatever they are told.
        onset: control step from which on it may begin. `blocked` begins when the gripper is first told to close.

    Attributes:
        visible_from: first control step whose picture or state shows it; None until it has begun.

    Raises:
        UserError: unknown kind.
    """

    def __init__(self, kind: Kind, onset: int) -> None:
        if kind not in get_args(Kind):
            raise UserError(f"disturbance '{kind}': expected one of {', '.join(get_args(Kind))}")
        self._kind, self._onset = kind, onset
        self._start = self._shift = np.zeros(2)
        self._num_pushes = 0
        self.visible_from: int | None = None

    def act(self, simulation: Simulation, step: int, action: np.ndarray) -> np.ndarray:
        """What is really executed in place of `action` `[7]` at control step `step`."""
        if step < self._onset:
            return action
        if self._kind == "moved":
            self._push(simulation, step)
        if self._kind == "blocked" and action[-1] > 0:
            self._begin(step + 1)
            action = np.array(action)
            action[-1] = float(Gripper.OPEN)
        return action

    def see(self, images: Mapping[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
        """What the policy sees in place of `images` at control step `step`."""
        if self._kind != "occluded" or step < self._onset:
            return dict(images)
        self._begin(step)
        covered = np.full_like(images[COVERED_CAMERA], COVER_VALUE)
        return {**images, COVERED_CAMERA: covered}

    def _push(self, simulation: Simulation, step: int) -> None:
        name = target_of_goal(simulation)
        place = simulation.object_states()[simulation.object_names.index(name), :2]
        if self.visible_from is None:
            self._start, self._shift = place, free_shift(simulation, name, PUSH_M)
            self._begin(step + 1)
        if np.linalg.norm(place - self._start) >= PUSH_M or self._num_pushes >= MAX_PUSH_STEPS:
            return
        self._num_pushes += 1
        address = int(simulation.model.jnt_dofadr[object_joint(simulation, name)])
        simulation.data.qvel[address : address + 2] = self._shift / PUSH_M * PUSH_M_PER_S

    def _begin(self, step: int) -> None:
        if self.visible_from is None:
            self.visible_from = step


def target_of_goal(simulation: Simulation) -> str:
    """The first movable object that the task's goal names.

    Raises:
        UserError: the goal names none (drawers, knobs).
    """
    for predicate in simulation.goal:
        for name in predicate[1:]:
            if name in simulation.object_names:
                return name
    raise UserError(f"task '{simulation.task.name}': its goal names no movable object; choose another task")
