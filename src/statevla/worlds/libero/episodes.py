"""LIBERO's collected episodes: pure functions of settings, task and index; physics first, frames from the states after.

`CollectSettings` is the collector's `Recipe`; a worker loads the simulator when it opens a task.
"""

from __future__ import annotations

import json
import zlib
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from statevla.data.libero import INSTRUCTION_ATTRIBUTE, IS_SEEN_KEY
from statevla.robots import LIBERO
from statevla.types import ReachKind, Rendering
from statevla.worlds.backend import check
from statevla.worlds.demo_file import INDEX_ATTRIBUTE, EpisodeRecord
from statevla.worlds.libero.demo_file import (
    FIXTURES_ATTRIBUTE,
    GOAL_ATTRIBUTE,
    HIDDEN_ATTRIBUTE,
    file_attributes,
)
from statevla.worlds.libero.exchange import exchanged_goals
from statevla.worlds.libero.placement import wide_init_state
from statevla.worlds.libero.play import PLAY_INSTRUCTION
from statevla.worlds.libero.reach import afforded_tasks, run_reach
from statevla.worlds.libero.recolor import recolored
from statevla.worlds.libero.rollout import Episode, run_expert, run_play
from statevla.worlds.libero.simulation import Simulation
from statevla.worlds.libero.tasks import TaskSpec, find_task, parse_task_indices, suite_tasks

START_POSTURE_NOISE = 0.02
"""Standard deviation (rad) of the arm's joints at the start, as in LIBERO's demonstrations."""
_COLOURS = 0xC0104
STEPS_BEYOND_LIMIT = 1.3
"""Demonstrations may take a little longer than a policy may."""


@dataclass(frozen=True)
class CollectSettings:
    """What, beside the task and the index, an episode depends on.

    Attributes:
        suite: name of the suite.
        seed: base of all random draws.
        noise: scale of the execution noise, in units of action.
        wide: objects anywhere in reach instead of in the official regions.
        play: unlabelled interaction instead of the task.
        reaches: up to the grasp only, of any goal that the scene affords; see `statevla.worlds.libero.reach`.
        reach_tasks: whose goals reaches go for, where the scene affords them: `all`, or indices such as "0,1,2".
        image_size: of the frames (pixels).
        rendering: how frames are drawn.
        frame_stride: of demonstrations and play, frames at every so many control steps alone, from the first on.
        exchange: goals that the task becomes by an exchange; see `statevla.worlds.libero.exchange`.
        recolor: half of the things drawn in another colour; see `statevla.worlds.libero.recolor`.
        rearrange: with `wide`, fixtures elsewhere too.
    """

    suite: str
    seed: int = 0
    noise: float = 0.1
    wide: bool = False
    play: bool = False
    reaches: ReachKind | None = None
    reach_tasks: str = "all"
    image_size: int = 128
    rendering: Rendering = "fast"
    frame_stride: int = 1
    exchange: bool = False
    recolor: bool = False
    rearrange: bool = False

    @property
    def kind(self) -> str:
        """How files of such episodes end: `<task>_<kind>.hdf5`."""
        if self.exchange:
            return "exchange"
        return "play" if self.play else "reach" if self.reaches else "demo"

    @property
    def worker_gb(self) -> float:
        return 2.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def defaults(self) -> dict[str, Any]:
        return CollectSettings(self.suite).as_dict()

    def prepare(self) -> None:
        check("sim")

    def tasks(self) -> list[TaskSpec]:
        return suite_tasks(self.suite)

    def open(self, index: int) -> EpisodeMaker:
        return EpisodeMaker(self, make_simulation(find_task(self.suite, index), self.rendering))

    def file_attributes(self, index: int) -> dict[str, Any]:
        return file_attributes(find_task(self.suite, index), self.as_dict())


class EpisodeMaker:
    """Makes the episodes of one task."""

    def __init__(self, settings: CollectSettings, simulation: Simulation) -> None:
        self._settings, self._simulation = settings, simulation

    def record(self, index: int) -> EpisodeRecord | None:
        """Episode number `index`, or None where the expert failed."""
        episode = run_episode(self._simulation, self._settings, index)
        return record_episode(self._simulation, episode, self._settings, index) if episode.is_kept else None

    def close(self) -> None:
        self._simulation.close()


def make_simulation(task: TaskSpec, rendering: Rendering = "fast") -> Simulation:
    """The simulation that episodes of a task are collected in."""
    return Simulation(task, START_POSTURE_NOISE, rendering)


def run_episode(simulation: Simulation, settings: CollectSettings, index: int) -> Episode:
    """The physics of episode number `index`."""
    task = simulation.task
    rng = generator(settings, task, index)
    draw_start(simulation, settings, int(rng.integers(2**31)))
    if settings.reaches:
        among = parse_task_indices(settings.suite, settings.reach_tasks)
        return run_reach(simulation, afforded_tasks(simulation, among), settings.reaches, rng, settings.noise)
    if settings.play:
        rollout = run_play(simulation, rng, settings.noise)
        return Episode(rollout, PLAY_INSTRUCTION, _every(settings.frame_stride, len(rollout)), len(rollout) > 0)
    goals = exchanged_goals(task) if settings.exchange else ()
    goal = goals[rng.integers(len(goals))] if goals else None
    if goal is not None:
        simulation.pursue(goal.predicates)
    try:
        rollout = run_expert(simulation, rng, settings.noise, int(task.max_steps * STEPS_BEYOND_LIMIT))
    finally:
        simulation.pursue(task.goal)
    seen = _every(settings.frame_stride, len(rollout))
    is_kept = rollout.success and len(rollout) > 0
    if goal is None:
        return Episode(rollout, task.instruction, seen, is_kept)
    return Episode(rollout, goal.instruction, seen, is_kept, goal.predicates)


def generator(settings: CollectSettings, task: TaskSpec, index: int, *purpose: int) -> np.random.Generator:
    """What draws episode number `index`, or a part of it that its other draws must not depend on."""
    return np.random.default_rng([settings.seed, zlib.crc32(f"{task.suite}/{task.name}".encode()), index, *purpose])


def draw_start(simulation: Simulation, settings: CollectSettings, seed: int) -> None:
    """Draw where things stand: a pure function of task, settings and seed."""
    if not settings.wide:
        simulation.reset(seed)
        return
    state = wide_init_state(simulation, seed, settings.rearrange)
    simulation.reset(seed, state, fixture_poses=simulation.fixture_poses() if settings.rearrange else None)


def _every(stride: int, count: int) -> tuple[int, ...] | None:
    return None if stride == 1 else tuple(range(0, count, stride))


def record_episode(simulation: Simulation, episode: Episode, settings: CollectSettings, index: int) -> EpisodeRecord:
    """Everything that a policy could have seen in an episode, read off its states.

    Args:
        simulation: of the episode's task.
        episode: the episode.
        settings: how it was collected.
        index: its number.
    """
    rollout = episode.rollout
    simulation.restore(rollout.start)
    is_seen = np.full(len(rollout), episode.seen_steps is None)
    is_seen[list(episode.seen_steps or ())] = True
    looks = recolored(simulation, generator(settings, simulation.task, index, _COLOURS))
    with looks if settings.recolor else nullcontext():
        datasets = _seen_in(simulation, rollout.states, is_seen, settings.image_size)
    finished = np.zeros(len(rollout), np.uint8)
    finished[-1] = rollout.success and not settings.reaches
    datasets |= {
        "actions": rollout.actions,
        "executed_actions": rollout.executed_actions,
        "states": rollout.states,
        "rewards": finished,
        "dones": finished,
    }
    if not is_seen.all():
        datasets[f"obs/{IS_SEEN_KEY}"] = is_seen
    attributes = {
        INSTRUCTION_ATTRIBUTE: episode.instruction,
        "num_samples": len(rollout),
        "init_state": rollout.start.state,
        "model_file": simulation.model_xml(),
        HIDDEN_ATTRIBUTE: rollout.start.hidden,
        FIXTURES_ATTRIBUTE: rollout.start.fixtures,
        INDEX_ATTRIBUTE: index,
        "settings": json.dumps(settings.as_dict()),
    }
    if episode.goal is not None:
        attributes[GOAL_ATTRIBUTE] = json.dumps(episode.goal)
    return EpisodeRecord(datasets, attributes, simulation.object_names)


def _seen_in(simulation: Simulation, states: np.ndarray, is_seen: np.ndarray, image_size: int) -> dict[str, np.ndarray]:
    """What a policy could have seen in each state, pictures of those that `is_seen` `[T]` alone."""
    columns: dict[str, list[np.ndarray]] = {}

    def add(name: str, value: np.ndarray) -> None:
        columns.setdefault(name, []).append(value)

    for state, seen in zip(states, is_seen):
        simulation.set_state(state)
        position, axis_angle = simulation.ee_position(), simulation.ee_axis_angle()
        fingers = simulation.finger_positions()
        for camera in LIBERO.camera_names if seen else ():
            upright = simulation.render(camera, image_size)
            add(f"obs/{camera}_rgb", upright[::-1])  # stored upside down, as the official files
        add("obs/ee_pos", position)
        add("obs/ee_ori", axis_angle)
        add("obs/ee_states", np.concatenate([position, axis_angle]))
        add("obs/gripper_states", fingers)
        add("obs/joint_states", simulation.joint_positions())
        add("obs/object_states", simulation.object_states())
        add("robot_states", np.concatenate([fingers, position, simulation.ee_quaternion()]))
    return {name: np.stack(rows) for name, rows in columns.items()}
