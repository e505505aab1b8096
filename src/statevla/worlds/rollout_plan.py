"""Which episodes an evaluation consists of: pure functions of its settings, whoever runs them and in whatever order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from statevla.errors import UserError
from statevla.worlds.libero.tasks import TaskSpec, load_init_states, suite_tasks


@dataclass(frozen=True)
class EpisodeSpec:
    """One episode.

    Attributes:
        number: position in the evaluation.
        task: the task.
        trial: number of the attempt at this task.
        init_state_index: which of the task's initial states it starts from.
        seed: of the fixtures' poses and of the policy's noise.
        instruction: what the policy is told.
    """

    number: int
    task: TaskSpec
    trial: int
    init_state_index: int
    seed: int
    instruction: str

    @property
    def key(self) -> tuple[int, int]:
        """(task index, trial): names the episode, whatever the number of trials or the choice of tasks."""
        return self.task.index, self.trial


def episode_spec(
    number: int, tasks: Sequence[TaskSpec], num_trials: int, num_states: int, seed: int, instructions: str = "own"
) -> EpisodeSpec:
    """Episode `number` of an evaluation of `num_trials` per task: task by task, initial states in order.

    The initial state and the seed depend on (task, trial, `seed`) alone, so more trials or fewer tasks leave the
    other episodes as they are.

    Args:
        instructions: `own`, or `shuffled`: the other instructions of the task's suite in turn, trial by trial.
    """
    task, trial = tasks[number // num_trials], number % num_trials
    (episode_seed,) = np.random.SeedSequence([seed, task.index, trial]).generate_state(1)
    told = task.instruction
    if instructions == "shuffled":
        others = [other.instruction for other in suite_tasks(task.suite) if other.instruction != told]
        told = others[(task.index + trial) % len(others)]
    return EpisodeSpec(number, task, trial, trial % num_states, int(episode_seed), told)


def plan_episodes(
    tasks: Sequence[TaskSpec], num_trials: int, init_states: str, seed: int, instructions: str = "own"
) -> list[EpisodeSpec]:
    """All episodes of an evaluation; arguments as in `episode_spec`.

    Raises:
        UserError: no trials, or a task has no such initial states.
    """
    if num_trials < 1:
        raise UserError(f"num_trials: expected at least 1, got {num_trials}; the published protocol takes 50")
    counts = [len(load_init_states(task, init_states)) for task in tasks]
    return [
        episode_spec(number, tasks, num_trials, counts[number // num_trials], seed, instructions)
        for number in range(len(tasks) * num_trials)
    ]


class Schedule:
    """Hands episodes to workers so that environments are seldom rebuilt: a worker stays with its task."""

    def __init__(self, episodes: Iterable[EpisodeSpec]) -> None:
        self._pending: dict[int, list[EpisodeSpec]] = {}
        for episode in episodes:
            self._pending.setdefault(episode.task.index, []).append(episode)

    def __len__(self) -> int:
        return sum(map(len, self._pending.values()))

    def put_back(self, episode: EpisodeSpec) -> None:
        """Return an episode that was not finished; it comes next."""
        self._pending.setdefault(episode.task.index, []).insert(0, episode)

    def take(self, current_task: int | None, busy_tasks: Iterable[int]) -> EpisodeSpec | None:
        """The next episode for a worker that holds an environment of `current_task`; None when nothing is left.

        Args:
            current_task: index of the task whose environment the worker has.
            busy_tasks: tasks that other workers are at, one entry per worker.
        """
        waiting = {index: len(episodes) for index, episodes in self._pending.items() if episodes}
        if not waiting:
            return None
        if current_task not in waiting:
            # Most episodes per worker first: one more environment costs as much as several episodes.
            workers = Counter(busy_tasks)
            current_task = max(waiting, key=lambda index: (waiting[index] / (1 + workers[index]), -index))
        return self._pending[current_task].pop(0)
