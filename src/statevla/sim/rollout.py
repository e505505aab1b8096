"""One episode of the scripted expert, physics only: states and actions; frames are drawn from the states later."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from statevla.sim.expert import ExecutionNoise, Expert
from statevla.sim.simulation import Simulation, Snapshot


@dataclass(frozen=True)
class Rollout:
    """What happened in an episode of `T` control steps.

    Attributes:
        start: the state at the first step, with everything needed to repeat the episode exactly.
        states: `[T, 1 + nq + nv]`, the state when each action was chosen.
        actions: `[T, 7]`, the expert's clean actions.
        executed_actions: `[T, 7]`, what was executed: the clean action with noise.
        success: whether the task's goal holds at the end.
    """

    start: Snapshot
    states: np.ndarray
    actions: np.ndarray
    executed_actions: np.ndarray
    success: bool

    def __len__(self) -> int:
        return len(self.actions)


def run_expert(simulation: Simulation, rng: np.random.Generator, noise: float = 0.0, max_steps: int = 400) -> Rollout:
    """Let the expert act from the current state until it has finished or `max_steps` have gone by.

    Args:
        simulation: the scene, just reset.
        rng: draws style, scatter and noise.
        noise: scale of the execution noise in units of action.
        max_steps: control steps after which the episode ends.
    """
    start = simulation.snapshot()
    disturbance = ExecutionNoise(noise, rng)
    states: list[np.ndarray] = []
    clean: list[np.ndarray] = []
    executed: list[np.ndarray] = []
    for command in Expert(simulation, rng).commands():
        if len(clean) >= max_steps:
            break
        states.append(simulation.state())
        clean.append(np.clip(command.action, -1.0, 1.0))
        executed.append(disturbance.apply(command))
        simulation.step(executed[-1])
    shape = (-1, 7)
    return Rollout(
        start,
        np.array(states).reshape(len(states), -1),
        np.array(clean).reshape(shape),
        np.array(executed).reshape(shape),
        simulation.success(),
    )
