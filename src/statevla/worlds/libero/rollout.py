"""One episode of the scripted expert or of play, physics only: frames are drawn from its states later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from statevla.robots import LIBERO
from statevla.robots.libero import Gripper
from statevla.worlds.libero.expert import ExecutionNoise, Expert
from statevla.worlds.libero.motion import Arm, Motion, Style
from statevla.worlds.libero.play import PLAY_NOISE_FACTOR, PLAY_STEPS, play
from statevla.worlds.libero.scene import Scene
from statevla.worlds.libero.simulation import Simulation, Snapshot


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


@dataclass(frozen=True)
class Episode:
    """An episode's physics.

    Attributes:
        rollout: what happened.
        instruction: the task in words.
        seen_steps: control steps to draw frames at; None for all.
        is_kept: whether it is worth keeping: a demonstration has to succeed.
        goal: predicates of its goal where that is none of the suite's tasks' for this scene.
    """

    rollout: Rollout
    instruction: str
    seen_steps: tuple[int, ...] | None
    is_kept: bool
    goal: Sequence[Sequence[str]] | None = None


def run_expert(
    simulation: Simulation,
    rng: np.random.Generator,
    noise: float = 0.0,
    max_steps: int = 400,
    steps_after_closing: int | None = None,
) -> Rollout:
    """Let the expert act from the current state until it has finished or `max_steps` have gone by.

    Args:
        simulation: the scene, just reset.
        rng: draws style, scatter and noise.
        noise: scale of the execution noise in units of action.
        max_steps: control steps after which the episode ends.
        steps_after_closing: end so many control steps after the gripper was first told to close.
    """
    start = simulation.snapshot()
    motion = Expert(simulation, rng).commands()
    if steps_after_closing is not None:
        motion = _until_closed(motion, steps_after_closing)
    return _run(simulation, start, motion, ExecutionNoise(noise, rng), max_steps)


def run_play(simulation: Simulation, rng: np.random.Generator, noise: float = 0.0) -> Rollout:
    """Let the hand play (see `play`) from the current state for `PLAY_STEPS`; the actions are those executed."""
    start = simulation.snapshot()
    motion = play(Arm(Scene(simulation), Style.draw(rng), rng))
    disturbance = ExecutionNoise(noise * PLAY_NOISE_FACTOR, rng)
    rollout = _run(simulation, start, motion, disturbance, PLAY_STEPS)
    return replace(rollout, actions=rollout.executed_actions.copy())


def _until_closed(motion: Motion, steps_after: int) -> Motion:
    left = None
    for command in motion:
        yield command
        if left is None and command.action[-1] == Gripper.CLOSE:
            left = steps_after
        elif left is not None:
            left -= 1
        if left == 0:
            return


def _run(
    simulation: Simulation, start: Snapshot, motion: Motion, disturbance: ExecutionNoise, max_steps: int
) -> Rollout:
    states: list[np.ndarray] = []
    clean: list[np.ndarray] = []
    executed: list[np.ndarray] = []
    for command in motion:
        states.append(simulation.state())
        clean.append(np.clip(command.action, -1.0, 1.0))
        executed.append(disturbance.apply(command))
        simulation.step(executed[-1])
        if len(states) >= max_steps:
            break
    return Rollout(
        start,
        np.array(states).reshape(-1, len(start.state)),  # there are none where the goal holds already
        np.array(clean).reshape(-1, LIBERO.action_dim),
        np.array(executed).reshape(-1, LIBERO.action_dim),
        simulation.success(),
    )
