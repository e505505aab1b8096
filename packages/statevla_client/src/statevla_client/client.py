"""The client itself: a policy on a server, with the verbs of a policy in Python.

with PolicyClient(port=8000) as policy:
    policy.reset(episode=0)
    while not done:
        action = policy.act(observe() if policy.needs_observation() else None)

An observation is a mapping in the protocol's keys, where the state may be flat, or StateVLA's `Observation`:

    policy.act({"images/front": frame, "robot_state": joints, "instruction": "fold the towel"})
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from statevla_client import protocol
from statevla_client.wire import MAX_OBJECTS, WireError, pack, unpack

MAX_ANSWER_BYTES = 2**20
_RETRY_S = 0.2


class PolicyClientError(Exception):
    """No server is there, it refuses or is gone, or an observation cannot be sent; one line with the fix."""


class Observation(Protocol):
    """What `statevla.types.Observation` is: images by camera, the robot's state by field, and the task in words."""

    @property
    def images(self) -> Mapping[str, np.ndarray]: ...
    @property
    def robot_state(self) -> Mapping[str, np.ndarray]: ...
    @property
    def instruction(self) -> str: ...


@dataclass(frozen=True)
class ActionChunk:
    """What a policy answers: `actions` float32 `[H, A]` in the robot's own units."""

    actions: np.ndarray


class PolicyClient:
    """A policy on a server: `reset`, `needs_observation`, `act` and `act_chunk`, as StateVLA's own policies have them.

    Args:
        host: name or address (IPv6 with brackets or without), or a whole `ws://` or `wss://` address.
        port: of the server.
        api_key: sent as `Authorization: Api-Key ...`.
        timeout_s: of connecting, and of each answer.
        wait_s: how long to go on trying while no server is there yet.

    Attributes:
        metadata: what the server says about itself, its model and the model's robot (`robot`).
        surprise: how far the last look was from what the world model expected; None where it expected nothing.
        alarm: whether surprise has exceeded its threshold in this episode; None until a look was judged.

    Raises:
        PolicyClientError: no server is there, it refuses the client, or it speaks another protocol.
    """

    def __init__(
        self,
        host: str = protocol.DEFAULT_HOST,
        port: int = protocol.DEFAULT_PORT,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        wait_s: float = 0.0,
    ) -> None:
        self._address = host if host.startswith(("ws://", "wss://")) else protocol.url(host, port)
        self._timeout_s = timeout_s
        self._open = ExitStack()
        self._connection = self._connect(api_key, time.monotonic() + wait_s)
        self._needs_observation = True
        self.surprise: float | None = None
        self.alarm: bool | None = None
        try:
            self.metadata = self._receive()
        except PolicyClientError:
            self.close()
            raise

    def reset(self, episode: int | None = None) -> None:
        """Begin an episode; `episode` chooses the noise (the same one by default)."""
        chosen = {} if episode is None else {protocol.EPISODE: int(episode)}
        self.infer({protocol.RESET: True, **chosen})
        self._needs_observation = True
        self.surprise = self.alarm = None

    def needs_observation(self) -> bool:
        """Whether `act` wants a fresh observation now."""
        return self._needs_observation

    def act(self, observation: Observation | Mapping[str, Any] | None = None) -> np.ndarray:
        """The next action, float32 `[A]`, from the queue that the server keeps; asked for with an observation where
        `needs_observation()` says so.

        Raises:
            PolicyClientError: the server refuses; its message says why.
        """
        message = {} if observation is None or not self._needs_observation else request_of(observation)
        answer = self.infer({protocol.MODE: protocol.ACT, **message})
        self._needs_observation = bool(self._taken(answer, protocol.NEEDS_OBSERVATION))
        self._take_surprise(answer)
        return self._taken(answer, protocol.ACTION)

    def act_chunk(
        self, observation: Observation | Mapping[str, Any], executed_actions: np.ndarray | None = None
    ) -> ActionChunk:
        """A whole chunk.

        Args:
            observation: of now.
            executed_actions: float `[n, A]`, those executed since the last call; without them there is no surprise.

        Raises:
            PolicyClientError: the server refuses; its message says why.
        """
        executed = {} if executed_actions is None else {protocol.EXECUTED_ACTIONS: executed_actions}
        answer = self.infer({**request_of(observation), **executed})
        self._take_surprise(answer)
        return ActionChunk(self._taken(answer, protocol.ACTIONS))

    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request (`statevla_client.protocol` has the keys) and wait for its answer.

        Raises:
            PolicyClientError: the server refuses, is gone, or takes too long.
        """
        try:
            self._connection.send(pack(request))
        except WireError as error:
            raise PolicyClientError(str(error)) from None
        except ConnectionClosed as error:
            raise self._gone(error) from None
        return self._receive()

    def close(self) -> None:
        """Say goodbye; calling it twice does no harm."""
        self._open.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _taken(self, answer: dict[str, Any], key: str) -> Any:
        if key not in answer:
            raise PolicyClientError(f"policy server {self._address}: not its protocol (no '{key}' in its answer)")
        return answer[key]

    def _take_surprise(self, answer: dict[str, Any]) -> None:
        self.surprise, self.alarm = answer.get(protocol.SURPRISE), answer.get(protocol.ALARM)

    def _connect(self, api_key: str | None, deadline: float) -> ClientConnection:
        headers = {"Authorization": f"{protocol.API_KEY_SCHEME} {api_key}"} if api_key else None
        while True:
            try:
                # websockets 17 wants its connections entered; every version since 15 lets them be.
                return self._open.enter_context(
                    connect(
                        self._address,
                        additional_headers=headers,
                        compression=None,
                        max_size=MAX_ANSWER_BYTES,
                        open_timeout=self._timeout_s,
                        proxy=None,
                    )
                )
            except InvalidStatus as error:
                body = (error.response.body or b"").decode("utf-8", "replace").strip()
                raise PolicyClientError(
                    f"policy server {self._address}: refused with status {error.response.status_code} ({body})"
                ) from None
            except (OSError, WebSocketException, ValueError) as error:
                if time.monotonic() >= deadline or isinstance(error, ValueError):
                    reason = " ".join(str(error).split())
                    raise PolicyClientError(
                        f"policy server {self._address}: not reachable ({reason}); start it with `statevla serve`"
                    ) from None
            time.sleep(_RETRY_S)

    def _receive(self) -> dict[str, Any]:
        try:
            data = self._connection.recv(self._timeout_s)
        except ConnectionClosed as error:
            raise self._gone(error) from None
        except TimeoutError:
            # A late answer would be taken for that of the next request.
            self.close()
            raise PolicyClientError(
                f"policy server {self._address}: no answer within {self._timeout_s:g} s; raise timeout_s"
            ) from None
        if isinstance(data, str):
            raise PolicyClientError(data)
        try:
            # A robot of a thousand numbers names each of them.
            return unpack(data, MAX_ANSWER_BYTES, max_items_per_list=MAX_OBJECTS)
        except WireError as error:
            self.close()
            raise PolicyClientError(f"policy server {self._address}: not its protocol ({error})") from None

    def _gone(self, error: ConnectionClosed) -> PolicyClientError:
        frame = error.rcvd
        reason = f"code {int(frame.code)}, {frame.reason or 'no reason given'}" if frame else "without a goodbye"
        return PolicyClientError(f"policy server {self._address}: closed the connection ({reason}); connect again")


def request_of(observation: Observation | Mapping[str, Any]) -> dict[str, Any]:
    """An observation as a request in StateVLA's own names; a mapping is one already.

    Raises:
        PolicyClientError: it is none, or one of its pictures is a list: sending one takes seconds, and the server would
            refuse it.
    """
    request = dict(observation) if isinstance(observation, Mapping) else _named(observation)
    for key, value in request.items():
        if not isinstance(key, str):
            raise PolicyClientError(f"observation: expected names as keys, got {key!r}; images/<camera> is one")
        if key.startswith(protocol.IMAGE_PREFIX) and not isinstance(value, np.ndarray):
            raise PolicyClientError(
                f"{key}: expected a uint8 array [H, W, 3], got {type(value).__name__}; send np.asarray(frame, np.uint8)"
            )
    return request


def _named(observation: Observation) -> dict[str, Any]:
    try:
        images, state, instruction = observation.images, observation.robot_state, observation.instruction
    except AttributeError:
        raise PolicyClientError(
            f"observation: expected a mapping in the protocol's keys, got {type(observation).__name__}; send "
            "images/<camera>, robot_state and instruction"
        ) from None
    return {
        **{protocol.IMAGE_PREFIX + camera: image for camera, image in images.items()},
        **{protocol.STATE_PREFIX + field: values for field, values in state.items()},
        protocol.INSTRUCTION: instruction,
    }
