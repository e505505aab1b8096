"""Collected episodes: each a pure function of settings, task and index; physics first, frames from the states after."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from statevla.sim.demo_file import FIXTURES_ATTRIBUTE, HIDDEN_ATTRIBUTE, INDEX_ATTRIBUTE, EpisodeRecord
from statevla.sim.placement import wide_init_state
from statevla.sim.rendering import Rendering
from statevla.sim.rollout import Rollout, run_expert, run_play
from statevla.sim.simulation import Simulation
from statevla.sim.tasks import TaskSpec

START_POSTURE_NOISE = 0.02
"""Standard deviation (rad) of the arm's joints at the start, as in LIBERO's demonstrations."""
_STEPS_BEYOND_LIMIT = 1.3  # demonstrations may take a little longer than a policy may


@dataclass(frozen=True)
class CollectSettings:
    """What, beside the task and the index, an episode depends on.

    Attributes:
        suite: name of the suite.
        seed: base of all random draws.
        noise: scale of the execution noise, in units of action.
        wide: objects anywhere in reach instead of in the official regions.
        play: unlabelled interaction instead of the task.
        image_size: of the frames (pixels).
        rendering: how frames are drawn.
    """

    suite: str
    seed: int = 0
    noise: float = 0.1
    wide: bool = False
    play: bool = False
    image_size: int = 128
    rendering: Rendering = "fast"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_simulation(task: TaskSpec, rendering: Rendering = "fast") -> Simulation:
    """The simulation that episodes of a task are collected in."""
    return Simulation(task, START_POSTURE_NOISE, rendering)


def run_episode(simulation: Simulation, settings: CollectSettings, index: int) -> Rollout:
    """The physics of episode number `index`."""
    task = simulation.task
    rng = np.random.default_rng([settings.seed, zlib.crc32(f"{task.suite}/{task.name}".encode()), index])
    seed = int(rng.integers(2**31))
    simulation.reset(seed, wide_init_state(simulation, seed) if settings.wide else None)
    if settings.play:
        return run_play(simulation, rng, settings.noise)
    return run_expert(simulation, rng, settings.noise, int(task.max_steps * _STEPS_BEYOND_LIMIT))


def record_episode(simulation: Simulation, rollout: Rollout, settings: CollectSettings, index: int) -> EpisodeRecord:
    """Everything that a policy could have seen in an episode, read off its states.

    Args:
        simulation: of the episode's task.
        rollout: the episode.
        settings: how it was collected.
        index: its number.
    """
    simulation.restore(rollout.start)
    columns: dict[str, list[np.ndarray]] = {}

    def add(name: str, value: np.ndarray) -> None:
        columns.setdefault(name, []).append(value)

    for state in rollout.states:
        simulation.set_state(state)
        position, axis_angle = simulation.ee_position(), simulation.ee_axis_angle()
        fingers = simulation.finger_positions()
        for camera in ("agentview", "eye_in_hand"):
            upright = simulation.render(camera, settings.image_size)
            add(f"obs/{camera}_rgb", upright[::-1])  # stored upside down, as the official files
        add("obs/ee_pos", position)
        add("obs/ee_ori", axis_angle)
        add("obs/ee_states", np.concatenate([position, axis_angle]))
        add("obs/gripper_states", fingers)
        add("obs/joint_states", simulation.joint_positions())
        add("obs/object_states", simulation.object_states())
        add("robot_states", np.concatenate([fingers, position, simulation.ee_quaternion()]))
    finished = np.zeros(len(rollout), np.uint8)
    finished[-1] = rollout.success
    datasets = {name: np.stack(rows) for name, rows in columns.items()}
    datasets |= {
        "actions": rollout.actions,
        "executed_actions": rollout.executed_actions,
        "states": rollout.states,
        "rewards": finished,
        "dones": finished,
    }
    attributes = {
        "num_samples": len(rollout),
        "init_state": rollout.start.state,
        "model_file": simulation.model_xml(),
        HIDDEN_ATTRIBUTE: rollout.start.hidden,
        FIXTURES_ATTRIBUTE: rollout.start.fixtures,
        INDEX_ATTRIBUTE: index,
        "settings": json.dumps(settings.as_dict()),
    }
    return EpisodeRecord(datasets, attributes, simulation.object_names)
