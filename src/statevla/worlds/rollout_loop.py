"""The main process of an evaluation: gives episodes to workers, answers those that wait, records those that ended."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from statevla.acting.policy import StateVLAPolicy
from statevla.errors import UserError
from statevla.worlds.child_process import Died, Failed
from statevla.worlds.rollout_plan import Schedule
from statevla.worlds.rollout_results import EpisodeLog, EpisodeResult
from statevla.worlds.rollout_view import RolloutProgress, VideoShelf
from statevla.worlds.running_episode import RunningEpisode
from statevla.worlds.surprise_trace import SurpriseTrace
from statevla.worlds.workers import Ended, Execute, Look, SaveVideo, Start, Worker, WorkerPool

MAX_ATTEMPTS = 2
"""An episode whose process died is tried once more; then it counts as an error."""
MAX_FIRST_ERRORS = 3
"""So many errors before anything has worked mean that nothing will."""


class RolloutLoop:
    """Runs the episodes of a schedule.

    Args:
        policy: who acts.
        log: where results go.
        schedule: the episodes.
        videos: which of them get a video.
        progress: what a person sees of it.
        batched: one forward for all worlds that wait, or one each.
    """

    def __init__(
        self,
        policy: StateVLAPolicy,
        log: EpisodeLog,
        schedule: Schedule,
        videos: VideoShelf,
        progress: RolloutProgress,
        batched: bool,
    ) -> None:
        self._policy, self._log = policy, log
        self._schedule, self._progress = schedule, progress
        self._videos, self._batched = videos, batched
        self._running: dict[int, RunningEpisode] = {}  # by worker number
        self._attempts: dict[tuple[int, int], int] = {}
        self._first_errors: list[str] | None = []  # None once an episode has ended without one

    def run(self, pool: WorkerPool) -> None:
        """Until all episodes have ended.

        Raises:
            UserError: the first episodes all end in errors, or a worker met one of the user's.
        """
        for worker in pool.workers:
            self._give(worker, pool)
        while self._running:
            looking: list[tuple[RunningEpisode, Worker, Look]] = []
            for worker, message in pool.replies():
                run = self._running[worker.number]
                if isinstance(message, Look):
                    looking.append((run, worker, message))
                else:
                    self._settle(run, worker, message, pool)
            if self._batched:
                self._answer(looking)
            else:
                for one in looking:
                    self._answer([one])

    def _give(self, worker: Worker, pool: WorkerPool) -> None:
        """The next episode for an idle worker, if there is one."""
        others = [w.task_index for w in pool.workers if w.episode is not None and w is not worker]
        episode = self._schedule.take(worker.task_index, [index for index in others if index is not None])
        worker.episode = episode
        if episode is None:
            return
        attempt = self._attempts[episode.key] = self._attempts.get(episode.key, 0) + 1
        self._running[worker.number] = RunningEpisode(episode, self._policy.new_session(episode.seed), attempt)
        worker.send(Start(episode, record=self._videos.may_want(episode)))

    def _answer(self, looking: list[tuple[RunningEpisode, Worker, Look]]) -> None:
        """One forward for these workers."""
        if not looking:
            return
        began = time.perf_counter()
        told = [replace(look.observation, instruction=run.episode.instruction) for run, _, look in looking]
        self._policy.query([(run.session, observation) for (run, _, _), observation in zip(looking, told)])
        took_s = time.perf_counter() - began
        for run, worker, _ in looking:
            run.policy_s += took_s / len(looking)
            run.policy_ms.append(round(1000.0 * took_s, 3))
            run.note_look(run.session.num_steps)  # what the look before has queued is executed by now
            worker.send(Execute(run.session.next_actions()))

    def _settle(self, run: RunningEpisode, worker: Worker, message: Any, pool: WorkerPool) -> None:
        """A message that ends something: an episode, a video, or the worker; then the worker goes on to the next."""
        del self._running[worker.number]
        if isinstance(message, Died):
            worker = pool.replace(worker)
        if isinstance(message, Failed) and message.is_user_error:
            raise UserError(message.message)
        if isinstance(message, Ended):
            self._record(run.result(message.success, None, message))
            self._first_errors = None
            if (shots := self._videos.claim(run.episode, message.success)) is not None:
                run.filming = True
                self._running[worker.number] = run
                looks = range(self._policy.execute_steps, 10**9, self._policy.execute_steps)
                trace = SurpriseTrace(dict(zip(looks, run.surprise)), self._policy.threshold("surprise"))
                worker.send(SaveVideo(*shots, run.episode.instruction, trace))
                return
        elif isinstance(message, Died) and not run.filming and run.attempt < MAX_ATTEMPTS:
            self._schedule.put_back(run.episode)
        elif isinstance(message, (Died, Failed)):
            self._fail(run, message)
        self._give(worker, pool)

    def _fail(self, run: RunningEpisode, message: Died | Failed) -> None:
        where = f"task {run.episode.task.index} trial {run.episode.trial}"
        if run.filming:
            self._progress.say(f"{where}: no video ({message.message})")
            return
        self._record(run.result(None, message.message, None))
        self._progress.say(f"{where}: error, not counted as a failure: {message.message}")
        if isinstance(message, Failed):
            self._progress.say(message.details)
        if self._first_errors is not None:
            self._first_errors.append(message.message)
            if len(self._first_errors) >= MAX_FIRST_ERRORS:
                raise UserError(
                    f"rollout: the first {MAX_FIRST_ERRORS} episodes all ended in errors ({self._first_errors[-1]}); "
                    "run 'statevla doctor'"
                )

    def _record(self, result: EpisodeResult) -> None:
        self._log.append(result)
        self._progress.episode_done(result)
