"""Which episodes an evaluation consists of: pure functions of its settings, whoever runs them and in whatever order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from statevla.errors import UserError
from statevla.worlds.protocol import Suite, Task


@dataclass(frozen=True)
class EpisodeSpec:
    """One episode.

    Attributes:
        number: position in the evaluation.
        task: the task.
        trial: number of the attempt at this task.
        init_state_index: which of the task's fixed initial states it starts from; None where `seed` draws one.
        seed: of what the world draws at a reset, and of the policy's noise.
        instruction: what the policy is told.
    """

    number: int
    task: Task
    trial: int
    init_state_index: int | None
    seed: int
    instruction: str

    @property
    def key(self) -> tuple[int, int]:
        """(task index, trial): names the episode, whatever the number of trials or the choice of tasks."""
        return self.task.index, self.trial

    @property
    def reset_options(self) -> dict[str, int]:
        """What the world's `reset` takes beside the seed."""
        return {} if self.init_state_index is None else {"init_state_index": self.init_state_index}


def episode_spec(
    number: int, tasks: Sequence[Task], num_trials: int, seed: int, shuffled: Sequence[str] | None = None
) -> EpisodeSpec:
    """Episode `number` of an evaluation of `num_trials` per task: task by task, initial states in order.

    The initial state and the seed depend on (task, trial, `seed`) alone, so more trials or fewer tasks leave the
    other episodes as they are.

    Args:
        shuffled: all instructions of the suite, of which the policy is told another than the task's, in turn; by
            default it is told the task's own.
    """
    task, trial = tasks[number // num_trials], number % num_trials
    (episode_seed,) = np.random.SeedSequence([seed, task.index, trial]).generate_state(1)
    told = task.instruction
    if shuffled is not None:
        others = [other for other in shuffled if other != told]
        told = others[(task.index + trial) % len(others)]
    state = trial % task.num_init_states if task.num_init_states else None
    return EpisodeSpec(number, task, trial, state, int(episode_seed), told)


def plan_episodes(
    suite: Suite, tasks: Sequence[Task], num_trials: int, seed: int, instructions: str = "own"
) -> list[EpisodeSpec]:
    """All episodes of an evaluation.

    Args:
        suite: the suite of the tasks.
        tasks: those that are evaluated.
        num_trials: per task.
        seed: base of all seeds.
        instructions: `own`, or `shuffled`: the other instructions of the suite in turn, trial by trial.

    Raises:
        UserError: no trials, or there is no other instruction.
    """
    if num_trials < 1:
        raise UserError(f"num_trials: expected at least 1, got {num_trials}; the published protocol takes 50")
    shuffled = [task.instruction for task in suite.tasks] if instructions == "shuffled" else None
    if shuffled is not None and len(set(shuffled)) < 2:
        raise UserError(f"instructions 'shuffled': world '{suite.name}' has one instruction only; leave the option out")
    return [episode_spec(number, tasks, num_trials, seed, shuffled) for number in range(len(tasks) * num_trials)]


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
