"""Many clients, one model: requests that wait together share a forward.

One thread runs the model; the event loop never blocks. While a forward runs, requests pile up, and the next forward
takes them all. A forward that could begin at once still waits a few milliseconds for the other clients, unless all
of them are waiting already: a single client is never held back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from statevla.acting.alarm import Sighting
from statevla.acting.policy import PolicySession, StateVLAPolicy
from statevla.errors import UserError
from statevla.types import Observation

logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """More requests wait than the server allows."""


@dataclass(frozen=True)
class Answer:
    """The chunk `[H, A]` for an observation, what the look told, and the seconds that the forward took."""

    chunk: np.ndarray
    sighting: Sighting
    seconds: float


@dataclass
class _Waiting:
    session: PolicySession
    observation: Observation
    answer: asyncio.Future[Answer]


class Batcher:
    """Runs a policy for concurrent coroutines.

    Args:
        policy: the policy; no other thread may use it meanwhile.
        max_batch_size: observations per forward.
        max_queue_size: requests that may wait.
        window_s: how long a forward waits for further clients.
        num_clients: how many clients could send a request now.
        on_batch: told the size of every forward.
    """

    def __init__(
        self,
        policy: StateVLAPolicy,
        *,
        max_batch_size: int,
        max_queue_size: int,
        window_s: float,
        num_clients: Callable[[], int],
        on_batch: Callable[[int], None],
    ) -> None:
        self._policy = policy
        self._max_batch_size, self._window_s = max_batch_size, window_s
        self._num_clients, self._on_batch = num_clients, on_batch
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(max_queue_size)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")

    async def sample(self, session: PolicySession, observation: Observation) -> Answer:
        """What the policy says to an observation.

        Raises:
            QueueFullError: too many requests wait already.
            UserError: the policy refuses the observation.
        """
        answer = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait(_Waiting(session, observation, answer))
        except asyncio.QueueFull:
            raise QueueFullError from None
        return await answer

    async def run(self) -> None:
        """Serve `sample` until cancelled."""
        try:
            while True:
                batch = await self._collect()
                self._on_batch(len(batch))
                await self._answer(batch)
        finally:
            self._thread.shutdown(wait=False)

    async def warm_up(self) -> float:
        """Made-up forwards, of one client and of several, so that nobody waits for what only the first ones cost.

        Returns:
            The seconds of the first, which compiles.
        """
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        await loop.run_in_executor(self._thread, self._policy.warm_up)
        seconds = time.perf_counter() - start
        await loop.run_in_executor(self._thread, self._policy.warm_up, min(4, self._max_batch_size))
        return seconds

    async def _collect(self) -> list[_Waiting]:
        batch = [await self._queue.get()]
        deadline = time.monotonic() + self._window_s
        while len(batch) < self._max_batch_size:
            with contextlib.suppress(asyncio.QueueEmpty):
                batch.append(self._queue.get_nowait())
                continue
            left_s = deadline - time.monotonic()
            if left_s <= 0 or len(batch) >= self._num_clients():
                break
            try:
                batch.append(await asyncio.wait_for(self._queue.get(), left_s))
            except TimeoutError:
                break
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        try:
            pairs = [(waiting.session, waiting.observation) for waiting in batch]
            chunks = await loop.run_in_executor(self._thread, self._policy.sample_chunks, pairs)
        except Exception as error:
            if len(batch) > 1:
                # One of them is to blame; the others shall not suffer for it.
                for waiting in batch:
                    await self._answer([waiting])
            else:
                _settle(batch[0], error)
            return
        seconds = time.perf_counter() - start
        for waiting, (chunk, sighting) in zip(batch, chunks):
            if not waiting.answer.done():  # cancelled: the client has gone
                waiting.answer.set_result(Answer(chunk, sighting, seconds))


def _settle(waiting: _Waiting, error: Exception) -> None:
    if not isinstance(error, UserError):
        logger.error("forward failed", exc_info=error)
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
