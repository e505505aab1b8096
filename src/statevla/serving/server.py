"""The policy server: openpi's websocket protocol around a `StateVLAPolicy`, for several clients at once."""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import time
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from statevla import __version__
from statevla.acting.policy import PolicySession, StateVLAPolicy
from statevla.errors import UserError
from statevla.serving.auth import ApiKey
from statevla.serving.batching import Answer, Batcher, QueueFullError
from statevla.serving.formats import ORIENTATIONS, Request
from statevla.serving.metrics import CONTENT_TYPE, Metrics
from statevla.serving.preparing import Preparer
from statevla.serving.shares import Account, Shares
from statevla.types import Observation
from statevla_client import protocol
from statevla_client.wire import MAX_MESSAGE_BYTES, WireError, pack

logger = logging.getLogger(__name__)

GOING_AWAY, INTERNAL_ERROR, TRY_AGAIN_LATER = 1001, 1011, 1013
MAX_ERROR_CHARS = 1000


@dataclass(frozen=True)
class ServerSettings:
    """Limits and habits of a server.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        api_key: clients must send it, if given.
        model_name: told to clients; never a path.
        default_prompt: the task in words where a client sends none, as openpi's ALOHA clients do.
        max_message_bytes: of one request.
        max_clients: connected at a time.
        max_queue_size: requests that may wait for the model.
        max_batch_size: observations per forward.
        batch_window_s: how long a forward waits for further clients.
        heavy_share: seconds of one core per second, for the large pictures and new instructions of all clients
            together while there are several, see `statevla.serving.shares`.
        idle_timeout_s: a client that sends nothing for so long is closed.
        send_timeout_s: a client that does not take its answer for so long is closed.
        ping_interval_s: between keep-alive pings; a client that answers none within the same time is closed.
        shutdown_timeout_s: how long running requests may take to finish at the end.
    """

    host: str = protocol.DEFAULT_HOST
    port: int = protocol.DEFAULT_PORT
    api_key: str | None = None
    model_name: str = "statevla"
    default_prompt: str | None = None
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_clients: int = 32
    max_queue_size: int = 64
    max_batch_size: int = 16
    batch_window_s: float = 0.003
    heavy_share: float = 0.05
    idle_timeout_s: float = 600.0
    send_timeout_s: float = 30.0
    ping_interval_s: float = 20.0
    shutdown_timeout_s: float = 30.0


class _Client:
    """One connection: its session, its account, whether it waits for an answer, and whether its unknown keys were
    noted."""

    def __init__(self, connection: ServerConnection, session: PolicySession, account: Account) -> None:
        self.connection = connection
        self.session = session
        self.account = account
        self.busy = False
        self.was_noted = False
        self.previous_total_s: float | None = None


class PolicyServer:
    """Serves one policy inside `async with`; `port` is the real one once it listens.

    Entering raises a UserError where the address cannot be listened on. Leaving lets running requests finish.
    """

    def __init__(self, policy: StateVLAPolicy, settings: ServerSettings) -> None:
        self.policy, self.settings = policy, settings
        self.metrics = Metrics()
        self.port = settings.port
        self._key = ApiKey(settings.api_key) if settings.api_key else None
        self._clients: set[_Client] = set()
        self._stopping = asyncio.Event()
        self._server: Server | None = None
        self._shares = Shares(settings.heavy_share, lambda: len(self._clients))
        self._preparer = Preparer(policy, settings.max_message_bytes, settings.default_prompt)
        self._batcher = Batcher(
            policy,
            max_batch_size=settings.max_batch_size,
            max_queue_size=settings.max_queue_size,
            window_s=settings.batch_window_s,
            num_clients=lambda: len(self._clients),
            on_batch=self.metrics.batch_size.observe,
        )
        self._metadata = pack(metadata_of(policy, settings))

    def stop(self) -> None:
        """Begin the graceful end: no new clients, running requests finish, everyone is closed with code 1001."""
        self._stopping.set()

    async def wait_stopped(self) -> None:
        """Return once `stop` has been called."""
        await self._stopping.wait()

    async def __aenter__(self) -> PolicyServer:
        settings = self.settings
        seconds = await self._batcher.warm_up()
        await self._preparer.warm_up()
        logger.info("model ready, first forward took %.2f s", seconds)
        robot = self.policy.robot
        logger.info("robot '%s': %s; it reports %s", robot.name, robot.describe_actions(), robot.describe_state())
        try:
            self._server = await serve(
                self._handle,
                protocol.bare_host(settings.host),
                settings.port,
                process_request=self._answer_http,
                # A web page may open sockets to this machine, and browsers always name the page: refuse them.
                origins=[None],
                compression=None,
                max_size=settings.max_message_bytes,
                max_queue=1,
                ping_interval=settings.ping_interval_s,
                ping_timeout=settings.ping_interval_s,
                server_header=None,
            )
        except OSError as error:
            reason = error.strerror or "no such address"
            address = protocol.url(settings.host, settings.port)
            raise UserError(
                f"serve: {address} cannot be listened on ({reason}); choose another --host or --port"
            ) from None
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        self._worker = asyncio.create_task(self._batcher.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        assert self._server is not None
        self._server.close(close_connections=False)
        idle = [client for client in self._clients if not client.busy]
        await asyncio.gather(*(_close(client.connection, GOING_AWAY, "server is shutting down") for client in idle))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._server.wait_closed(), self.settings.shutdown_timeout_s)
        self._worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._worker
        self._preparer.close()
        self._server.close()
        await self._server.wait_closed()

    # HTTP -------------------------------------------------------------------------------------------------------------

    async def _answer_http(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Plain HTTP before the handshake; None goes on to the websocket."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return _plain(http.HTTPStatus.OK, "OK\n")
        if self._key and not self._key.allows(_authorization(request.headers)):
            self.metrics.errors["unauthorized"] += 1
            return _plain(http.HTTPStatus.UNAUTHORIZED, "unauthorized: send the header Authorization: Api-Key <key>\n")
        if path == "/metrics":
            return _plain(http.HTTPStatus.OK, self.metrics.text(), CONTENT_TYPE)
        if path != "/":
            return _plain(http.HTTPStatus.NOT_FOUND, "not found: the websocket is at the root\n")
        # Before the handshake: afterwards a client may send a large message at once.
        await self._shares.settle_address(_address_of(connection))
        if self._stopping.is_set() or len(self._clients) >= self.settings.max_clients:
            self.metrics.errors["refused"] += 1
            return _plain(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many clients: try again later\n")
        return None

    # One client -------------------------------------------------------------------------------------------------------

    async def _handle(self, connection: ServerConnection) -> None:
        # Several handshakes may have passed the check of `_answer_http` at the same time.
        if self._stopping.is_set() or len(self._clients) >= self.settings.max_clients:
            self.metrics.errors["refused"] += 1
            await connection.close(TRY_AGAIN_LATER, "too many clients")
            return
        client = _Client(connection, self.policy.new_session(), self._shares.open(_address_of(connection)))
        self._clients.add(client)
        self.metrics.connections += 1
        self.metrics.clients = len(self._clients)
        try:
            await self._send(client, self._metadata)
            while not self._stopping.is_set():
                await self._shares.settle(client.account, connection)
                message = await asyncio.wait_for(connection.recv(), self.settings.idle_timeout_s)
                client.busy = True
                keep = await self._serve_message(client, message)
                client.busy = False
                if not keep:
                    return
            await connection.close(GOING_AWAY, "server is shutting down")
        except TimeoutError:
            self.metrics.errors["idle"] += 1
            await _close(connection, GOING_AWAY, "idle for too long")
        except ConnectionClosed:
            pass
        finally:
            self._clients.discard(client)
            self._shares.close(_address_of(connection), client.account)
            self.metrics.clients = len(self._clients)

    async def _serve_message(self, client: _Client, message: bytes | str) -> bool:
        """Answer one message; False ends the connection."""
        start = time.perf_counter()
        self._shares.charge_message(client.account, len(message))
        try:
            request = await self._preparer.read(message)
            if request.ignored and not client.was_noted:
                client.was_noted = True
                logger.info("a client sends keys that mean nothing here, they are ignored: %s", request.ignored)
            answer = await self._answer(client, request)
            timing = answer.get(protocol.SERVER_TIMING)
            if timing is not None and client.previous_total_s is not None:
                timing["prev_total_ms"] = client.previous_total_s * 1000
            packed = pack(answer)
            # Counted before it is sent, so that a client that has its answer finds it in the metrics.
            self.metrics.latency.observe(time.perf_counter() - start)
            self.metrics.requests["reset" if request.only_resets else request.mode] += 1
            await self._send(client, packed)
        except WireError as error:
            return await self._refuse(client, "malformed", str(error), close=True)
        except UserError as error:
            return await self._refuse(client, "unfit", str(error))
        except QueueFullError:
            return await self._refuse(client, "busy", "server: too many requests are waiting; try again later")
        except (TimeoutError, ConnectionClosed):
            raise
        except Exception:
            logger.exception("request failed")
            return await self._refuse(client, "internal", "server: internal error; its log has the reason", close=True)
        client.previous_total_s = time.perf_counter() - start
        return True

    async def _answer(self, client: _Client, request: Request) -> dict[str, Any]:
        session = client.session
        if request.reset:
            session.reset(request.episode)
            if request.only_resets:
                return {protocol.RESET: True}
        if request.mode == protocol.CHUNK:
            if request.executed_actions is not None:
                session.set_executed(request.executed_actions)
            answer = await self._sample(client, request.observation)
            session.note(answer.sighting)
            return {protocol.ACTIONS: answer.chunk, **_surprise(session), **_timing(answer.seconds)}
        seconds = 0.0
        if session.needs_observation():
            answer = await self._sample(client, request.observation)
            session.accept(answer.chunk, answer.sighting)
            seconds = answer.seconds
        return {
            protocol.ACTION: session.next_action(),
            protocol.NEEDS_OBSERVATION: session.needs_observation(),
            **_surprise(session),
            **_timing(seconds),
        }

    async def _sample(self, client: _Client, observation: Observation | None) -> Answer:
        if observation is None:
            raise UserError("request: expected an observation at this step, got none; send one")
        try:
            ready = await self._preparer.prepare(observation, client.account)
            return await self._batcher.sample(client.session, ready)
        except UserError as error:
            logger.info("policy refused an observation: %s", error)
            raise UserError(_without_paths(str(error))) from None

    async def _refuse(self, client: _Client, kind: str, text: str, close: bool = False) -> bool:
        self.metrics.errors[kind] += 1
        logger.info("refused a request (%s): %s", kind, text)
        await self._send(client, " ".join(text.split())[:MAX_ERROR_CHARS])
        if close:
            await client.connection.close(
                INTERNAL_ERROR, f"{kind} request" if kind == "malformed" else "internal error"
            )
        return not close

    async def _send(self, client: _Client, data: bytes | str) -> None:
        await asyncio.wait_for(client.connection.send(data), self.settings.send_timeout_s)


def metadata_of(policy: StateVLAPolicy, settings: ServerSettings) -> dict[str, Any]:
    """What a client is told on connect."""
    robot = policy.robot
    return {
        "server": "statevla",
        "version": __version__,
        "model": settings.model_name,
        "robot": robot.to_dict(),
        "control_freq_hz": robot.control_freq_hz,
        "cameras": list(robot.camera_names),
        "image_size": policy.config.model.image_size,
        "image_orientations": list(ORIENTATIONS),
        "robot_state_dim": robot.state_dim,
        "action_dim": robot.action_dim,
        "action_horizon": policy.horizon,
        "execute_steps": policy.execute_steps,
        "surprise_threshold": policy.threshold("surprise"),
        "modes": [protocol.CHUNK, protocol.ACT],
        "max_message_bytes": settings.max_message_bytes,
    }


def _surprise(session: PolicySession) -> dict[str, Any]:
    values = {protocol.SURPRISE: session.surprise, protocol.ALARM: session.alarm}
    return {key: value for key, value in values.items() if value is not None}


def _timing(seconds: float) -> dict[str, Any]:
    return {protocol.SERVER_TIMING: {"infer_ms": seconds * 1000}}


def _without_paths(text: str) -> str:
    """A message of the policy for a client: it may name files of this machine, which are none of its business."""
    return " ".join("<file>" if "/" in word or "\\" in word else word for word in text.split())[:MAX_ERROR_CHARS]


async def _close(connection: ServerConnection, code: int, reason: str) -> None:
    with contextlib.suppress(ConnectionClosed, asyncio.TimeoutError):
        await connection.close(code, reason)


def _address_of(connection: ServerConnection) -> str:
    return str(connection.remote_address[0]) if connection.remote_address else ""


def _authorization(headers: Headers) -> str | None:
    values = headers.get_all("Authorization")
    return values[0] if len(values) == 1 else None


def _plain(status: http.HTTPStatus, text: str, content_type: str = "text/plain; charset=utf-8") -> Response:
    body = text.encode()
    headers = Headers(
        [
            ("Date", formatdate(usegmt=True)),
            ("Connection", "close"),
            ("Content-Length", str(len(body))),
            ("Content-Type", content_type),
        ]
    )
    return Response(status.value, status.phrase, headers, body)
