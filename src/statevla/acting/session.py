"""One environment's side of a policy: queued actions, blending, the noise to come, and whether it was surprised."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from statevla.acting.alarm import Sighting
from statevla.errors import UserError
from statevla.robots import RobotSpec


class Execution(Protocol):
    """How a policy's chunks are executed: what a session needs to know of its policy."""

    robot: RobotSpec
    execute_steps: int
    temporal_ensembling: float | None

    def threshold(self, score: str, num_actions: int | None = None) -> float | None:
        """That of the alarm on `surprise` or `novelty`; None where there is none."""


class PolicySession:
    """One environment's side of a policy: which actions are still to be executed, and which noise comes next.

    Make it with `StateVLAPolicy.new_session`.

    Attributes:
        surprise: at the last look, see `statevla.acting.alarm`; None at the first look, and without a world model.
        novelty: at the last look; None where the checkpoint is not calibrated.
        alarm: whether surprise has exceeded its threshold at any look of this episode; None until a look was judged,
            and without a threshold: no alarm is not the same as all clear.
        novelty_alarm: the same of novelty.
    """

    surprise: float | None
    novelty: float | None
    alarm: bool | None
    novelty_alarm: bool | None

    def __init__(self, policy: Execution, episode: int) -> None:
        self._policy = policy
        self.episode = episode
        self.reset()

    def reset(self, episode: int | None = None) -> None:
        """Forget everything; `episode` (the same one by default) chooses the noise of the queries to come."""
        self.episode = self.episode if episode is None else episode
        self.num_queries = 0
        self.num_steps = 0
        self._queue: deque[np.ndarray] = deque()
        self._chunks: deque[tuple[int, np.ndarray]] = deque()  # (step at which it was asked for, [H, A])
        self._state: Tensor | None = None  # z at the last look
        self._executed: list[np.ndarray] = []  # actions since then
        self.surprise = self.novelty = self.alarm = self.novelty_alarm = None

    def needs_observation(self) -> bool:
        """Whether the next action needs a fresh observation with images; otherwise it is queued already."""
        return not self._queue

    def next_action(self) -> np.ndarray:
        """Take the next queued action, float32 `[A]`.

        Raises:
            UserError: none is left; give the policy an observation.
        """
        if not self._queue:
            raise UserError("policy session: no action left; pass an observation where needs_observation() says so")
        self.num_steps += 1
        action = self._queue.popleft()
        self._executed.append(action)
        return action

    def next_actions(self) -> np.ndarray:
        """Take all queued actions, float32 `[k, A]`: everything to execute until the next observation."""
        return np.stack([self.next_action() for _ in range(len(self._queue))])

    def accept(self, chunk: np.ndarray, sighting: Sighting | None = None) -> None:
        """Queue what to do next, given a fresh chunk `[H, A]` for the present step and what the look told."""
        self.note(sighting)
        decay, count = self._policy.temporal_ensembling, self._policy.execute_steps
        if decay is None:
            self._queue = deque(chunk[:count])
            return
        self._chunks.append((self.num_steps, chunk))
        while self._chunks[0][0] + len(self._chunks[0][1]) <= self.num_steps:
            self._chunks.popleft()
        self._queue = deque(self._blend(self.num_steps + offset, decay) for offset in range(count))

    def set_executed(self, actions: Sequence[np.ndarray] | np.ndarray) -> None:
        """Tell what has been executed since the last look, where the caller executes chunks without this queue."""
        self._executed = [np.asarray(action, np.float32) for action in actions]

    def note(self, sighting: Sighting | None) -> None:
        """Count a query and take up what its look told, without queueing anything."""
        self.num_queries += 1
        count = len(self._executed) or self._policy.execute_steps
        self._executed = []
        if sighting is None:
            self._state = self.surprise = self.novelty = None
            return
        self._state, self.surprise, self.novelty = sighting.state, sighting.surprise, sighting.novelty
        self.alarm = _raised(self.alarm, sighting.surprise, self._policy.threshold("surprise", count))
        self.novelty_alarm = _raised(self.novelty_alarm, sighting.novelty, self._policy.threshold("novelty", count))

    def before(self) -> tuple[Tensor, np.ndarray] | None:
        """z at the last look and the actions `[n, A]` executed since; None where one of them is unknown."""
        if self._state is None or not self._executed:
            return None
        return self._state, np.stack(self._executed)

    def _blend(self, step: int, decay: float) -> np.ndarray:
        """The weighted mean of all chunks that cover `step`; binary numbers go with the greater weight."""
        votes = np.stack([chunk[step - start] for start, chunk in self._chunks if step - start < len(chunk)])
        weights = np.exp(-decay * np.arange(len(votes)))
        action = (weights[:, None] * votes).sum(0) / weights.sum()
        robot = self._policy.robot
        is_binary, (off, on) = robot.is_binary, robot.binary_values()
        # From -1 (off) to +1 (on); a tie goes to the newest chunk, which has seen most.
        side, newest = (2 * (values[is_binary] - off) / (on - off) - 1 for values in (action, votes[-1]))
        action[is_binary] = np.where(np.where(np.abs(side) > 1e-9, side, newest) > 0, on, off)
        return action.astype(np.float32)


def _raised(alarm: bool | None, value: float | None, threshold: float | None) -> bool | None:
    """An alarm stays on until the episode ends."""
    if value is None or threshold is None:
        return alarm
    return bool(alarm) or value > threshold
