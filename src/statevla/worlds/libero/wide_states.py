"""The fixed wide initial states that ship with the package: `python -m statevla.worlds.libero.wide_states`.

Fifty per task of libero_object, in the order of their seeds; a state counts only if the scripted expert solves it, so
that every one is known to be solvable.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from statevla.machine.storage import replacing
from statevla.worlds.libero.episodes import make_simulation
from statevla.worlds.libero.placement import wide_init_state
from statevla.worlds.libero.rollout import run_expert
from statevla.worlds.libero.simulation import Simulation
from statevla.worlds.libero.tasks import WIDE_STATES, TaskSpec, find_task, parse_task_indices

NUM_STATES = 50
FIRST_SEED = 900_000_000
"""Collected episodes draw their seeds below 2^31 at random; these come from a range of their own."""


def solvable_wide_states(simulation: Simulation, count: int, first_seed: int = FIRST_SEED) -> np.ndarray:
    """The first `count` wide states `[count, 1 + nq + nv]`, by seed, from which the expert succeeds."""
    states: list[np.ndarray] = []
    seed = first_seed
    while len(states) < count:
        state = wide_init_state(simulation, seed)
        simulation.reset(0, state)
        if run_expert(simulation, np.random.default_rng(seed), 0.0, simulation.task.max_steps).success:
            states.append(state)
        seed += 1
    return np.array(states)


def write_wide_states(task: TaskSpec, folder: Path = WIDE_STATES) -> Path:
    """Write the states of one task to `<folder>/<suite>/<task>.npz`, whole or not at all."""
    simulation = make_simulation(task)
    states = solvable_wide_states(simulation, NUM_STATES)
    simulation.close()
    path = folder / task.suite / f"{task.name}.npz"
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, states=states)
    return path


if __name__ == "__main__":
    for index in parse_task_indices("libero_object", sys.argv[1] if len(sys.argv) > 1 else "all"):
        print(write_wide_states(find_task("libero_object", index)))
