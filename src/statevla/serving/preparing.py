"""What can be done with a request before the model sees it, off the event loop and off the policy's thread.

One thread decodes large messages, resizes pictures and embeds instructions that are new, first come, first served. A
connection waits for its answer before its next request is read, so each has one piece of work in the line at most.
What needs none of this, small pictures and a known instruction, goes on at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from statevla.acting.policy import StateVLAPolicy
from statevla.serving.formats import Request, read_request
from statevla.serving.shares import FREE_BYTES, Account
from statevla.types import Observation
from statevla_client.wire import unpack

T = TypeVar("T")
_USUAL_PICTURE = 480, 640


class Preparer:
    """Prepares requests for a policy.

    Args:
        policy: the policy; its language encoder is used from a thread of its own.
        max_message_bytes: of one request.
        default_prompt: the task in words where a client sends none.
    """

    def __init__(self, policy: StateVLAPolicy, max_message_bytes: int, default_prompt: str | None = None) -> None:
        self._policy, self._max_message_bytes = policy, max_message_bytes
        self._default_prompt = default_prompt
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        # Clients are strangers: what they say must not pile up on the disk.
        policy.language.uses_disk = False

    async def warm_up(self) -> None:
        """Do once what the first request would wait for: load the sentence encoder, resize pictures. The policy must be
        warm already."""
        count = torch.get_num_threads()
        await self._run(self._start)
        # Setting it changes the default of threads to come, which are none of the preparer's.
        torch.set_num_threads(count)

    async def read(self, message: bytes | str) -> Request:
        """Decode and check one message.

        Raises:
            WireError: it is malformed.
            UserError: it does not fit the policy's robot.
        """
        return await self._run(self._read, message) if len(message) > FREE_BYTES else self._read(message)

    async def prepare(self, observation: Observation, account: Account) -> Observation:
        """The observation with its pictures as large as the model sees them, its instruction embedded and remembered.

        Raises:
            UserError: the language encoder refuses the instruction.
        """
        size = self._policy.config.model.image_size
        small = all(image.shape[:2] == (size, size) for image in observation.images.values())
        if small and self._policy.language.remembers(observation.instruction):
            return observation
        return await self._run(self._prepare, observation, account)

    def close(self) -> None:
        """Take no more work."""
        self._thread.shutdown(wait=False)

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _start(self) -> None:
        torch.set_num_threads(1)  # of this thread: the other cores are the forward's
        self._policy.language.warm_up()
        frame = np.zeros((*_USUAL_PICTURE, 3), np.uint8)
        self._resized(dict.fromkeys(self._policy.robot.camera_names, frame))

    def _read(self, message: bytes | str) -> Request:
        return read_request(unpack(message, self._max_message_bytes), self._policy.robot, self._default_prompt)

    def _prepare(self, observation: Observation, account: Account) -> Observation:
        if not self._policy.language.remembers(observation.instruction):
            start = time.thread_time()
            try:
                self._policy.language.encode([observation.instruction])
            finally:
                # Nobody else touches the account: its connection waits for this.
                account.credit_s -= time.thread_time() - start
        return replace(observation, images=self._resized(observation.images))

    def _resized(self, images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        transform, robot = self._policy.transform, self._policy.robot
        return {name: transform.frame_to_model_size(image, robot.camera(name).fit) for name, image in images.items()}
