"""Reaches: demonstrations with a few frames, mostly up to the grasp only, of any goal that a scene affords.

What a policy has to read off the instruction, which thing to go to, it has to read at the start; a hundred later frames
say little more about it. A reach is drawn at a few retained frames only, which costs little beside a demonstration,
and goes to another task's object where the scene holds that too, so that the scene does not give the instruction away.
Half of them begin under way to something else, so that neither the hand's place does. Outer ones go to the rim of the
table: few goals lie there where places are drawn evenly, and where a goal was rarely seen it is not found.

Mixed ones go on to the goal, so that the way there is seen on many tables as well. Some of them, and all missed ones,
begin where a grasp was missed: a policy that is some centimetres off finds in demonstrations, which hardly ever are,
nothing that tells it how to get back.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

import numpy as np

from statevla.robots.libero import Gripper
from statevla.types import ReachKind
from statevla.worlds.libero.expert import ExecutionNoise, destination_of, plan_goals
from statevla.worlds.libero.motion import Arm, Motion, Style
from statevla.worlds.libero.placement import eccentricity
from statevla.worlds.libero.rollout import Episode, run_expert
from statevla.worlds.libero.scene import Scene
from statevla.worlds.libero.simulation import Simulation
from statevla.worlds.libero.skills.pick_place import PickPlace
from statevla.worlds.libero.skills.push import is_dish
from statevla.worlds.libero.tasks import TaskSpec, suite_tasks

SEEN_STEPS = (0, 4, 8, 12)
"""Control steps with frames, from the first one on: one window of conf/demo.yaml, two of conf/compact.yaml."""
_WINDOWS_A_PART = 2
"""Of a mixed reach, before the grasp and from it on, and of a missed one: physics cost more than their frames."""
MAX_STEPS = 120
_STEPS_AFTER_CLOSING = 4
_OUTER = 0.75
"""Least eccentricity of an outer object: half of the table and more lies within, where goals are found anyway."""
_MAX_STEPS_ELSEWHERE: dict[ReachKind, int] = {"start": 12, "outer": 12, "any": 12, "mixed": 40}
"""The longer, the more of the table the hand begins over, and the more ways its wrist is turned."""
_SHARE_MISSED: dict[ReachKind, float] = {"mixed": 1 / 3, "missed": 1.0}
_MISSED_BY_M: dict[ReachKind, float] = {"mixed": 0.02, "missed": 0.03}
"""Standard deviation, sideways. Policies that fail on libero_spatial stand some centimetres off."""
_MISSED_ABOVE_M = 0.03
_MAX_STEPS_MISSING = 60


def afforded_tasks(simulation: Simulation, among: Collection[int]) -> list[TaskSpec]:
    """The scene's own task, then those of its suite that can be done in this scene and end differently.

    Args:
        simulation: the scene.
        among: indices of the tasks of the suite to choose from.
    """
    own = simulation.task
    chosen, goals = [own], [own.goal]
    for task in suite_tasks(own.suite):
        # Where the same goal has other words, as in libero_spatial, they describe another scene.
        if task.index in among and task.goal not in goals and simulation.has(task.goal):
            chosen.append(task)
            goals.append(task.goal)
    return chosen


def run_reach(
    simulation: Simulation, tasks: list[TaskSpec], kind: ReachKind, rng: np.random.Generator, noise: float
) -> Episode:
    """Let the expert go for the goal of one of `tasks` until it has closed the gripper.

    Args:
        simulation: the scene, just reset.
        tasks: of which one is drawn, from `afforded_tasks`.
        kind: `start`, with frames at the start, where the instruction matters most; `outer`, the same, for a task whose
            object lies near the rim of the reachable table; `any`, with frames anywhere, where the hand comes near the
            object too; `mixed`, to the goal, with frames at the start, at two places before the grasp (the nearer the
            more often) and at two after it, a third of them from where a grasp was missed; `missed`, from such a place
            up to the grasp, with frames at the start and at two places anywhere.
        rng: draws everything.
        noise: as in `run_expert`.

    Returns:
        An episode to keep if the hand got to what it reached for, and no sooner than the last frame; a mixed one if
        the goal was reached.
    """
    drawn = [tasks[i] for i in rng.permutation(len(tasks))]
    # Where nothing lies near the rim, which is rare, the first will do.
    task = next((task for task in drawn if kind != "outer" or _is_outer(simulation, task)), drawn[0])
    try:
        if kind in _SHARE_MISSED and rng.random() < _SHARE_MISSED[kind]:
            simulation.pursue(task.goal)
            _miss(simulation, rng, noise, _MISSED_BY_M[kind])
        elif len(tasks) > 1 and rng.random() < 0.5:
            simulation.pursue(next(other for other in drawn if other != task).goal)
            run_expert(simulation, rng, noise, int(rng.integers(1, _MAX_STEPS_ELSEWHERE[kind] + 1)), 0)
        simulation.pursue(task.goal)
        if kind == "mixed":
            rollout = run_expert(simulation, rng, noise, task.max_steps)
        else:
            rollout = run_expert(simulation, rng, noise, MAX_STEPS, _STEPS_AFTER_CLOSING)
    finally:
        simulation.pursue(simulation.task.goal)
    closes = np.flatnonzero(rollout.actions[:, -1] == Gripper.CLOSE)
    last_first = len(rollout) - 1 - SEEN_STEPS[-1]
    is_kept = len(closes) > 0 and closes[0] > 0 and last_first >= 0 and (rollout.success or kind != "mixed")
    firsts = _window_starts(kind, int(closes[0]), last_first, rng) if is_kept else {0}
    seen = sorted({first + step for first in firsts for step in SEEN_STEPS})
    return Episode(rollout, task.instruction, tuple(seen), bool(is_kept))


def _is_outer(simulation: Simulation, task: TaskSpec) -> bool:
    """Whether the task moves something that lies near the rim."""
    scene = Scene(simulation)
    moved = [goal[1] for goal in task.goal if goal[0] in ("in", "on")]
    return any(eccentricity(scene.position(name)[:2]) > _OUTER for name in moved)


def _window_starts(kind: ReachKind, closing: int, last: int, rng: np.random.Generator) -> set[int]:
    """First control steps of the windows to draw, at most `last`; the gripper closes at step `closing`."""
    if kind in ("start", "outer"):
        return {0}
    if kind == "any":
        return {int(rng.integers(last + 1))}
    if kind == "missed":
        return {0} | {int(rng.integers(last + 1)) for _ in range(_WINDOWS_A_PART)}
    before = max(closing - SEEN_STEPS[-1], 0)
    approaching = {int(rng.integers(before + 1, size=2).max()) for _ in range(_WINDOWS_A_PART)}
    holding = {int(rng.integers(before, last + 1)) for _ in range(_WINDOWS_A_PART)}
    return {0} | approaching | holding


def _miss(simulation: Simulation, rng: np.random.Generator, noise: float, by_m: float) -> None:
    """Bring the hand beside the grasp of what the goal moves first, `by_m` off or so; at times close it there."""
    relation, name, *target = plan_goals(simulation)[0]
    if relation not in ("in", "on") or is_dish(name):
        return
    arm = Arm(Scene(simulation), Style.draw(rng), rng)
    skill = PickPlace(arm, name, destination_of(arm.scene, relation, name, target[0]), done=lambda: False)
    error = np.r_[rng.normal(0.0, by_m, 2), rng.uniform(0.0, _MISSED_ABOVE_M)]
    disturbance = ExecutionNoise(noise, rng)
    motions: list[Motion] = [islice(skill.reach_beside(error), _MAX_STEPS_MISSING)]
    if rng.random() < 1 / 3:
        motions.append(arm.close(arm.scene.hand))
    for motion in motions:
        for command in motion:
            simulation.step(disturbance.apply(command))
