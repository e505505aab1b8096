"""`statevla serve`: a checkpoint as a policy server."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from statevla.acting.options import ActingOptions
from statevla.acting.policy import StateVLAPolicy
from statevla.checkpoints.checkpoint import BEST, LAST, resolve_checkpoint
from statevla.errors import UserError
from statevla.machine.extras import require

if TYPE_CHECKING:
    from statevla.serving.server import PolicyServer

logger = logging.getLogger(__name__)
_VLA_EVAL_FLAGS = {"checkpoint", "host", "protocol", "port"} | {option.name for option in fields(ActingOptions)}
_VLA_EVAL_FLAGS -= {"temporal_ensembling"}
"""What vla-eval's protocol knows; the other flags are for openpi's alone."""


@dataclass(frozen=True)
class ServeArgs:
    checkpoint: str
    """A checkpoint's folder, or an alias such as checkpoints/phase2_flow_matching/checkpoint_best.pt."""
    host: str = "127.0.0.1"
    """Address to listen on; others than this machine can reach the server only if it is not a loopback one."""
    protocol: Literal["openpi", "vla-eval"] = "openpi"
    """`vla-eval`: that of AI2's evaluation harness, for its LIBERO (docs/vla-eval.md)."""
    port: int = 8000
    """0 takes a free one, which is printed."""
    api_key_file: str | None = None
    """File (permissions 600) with a key that clients must send as `Authorization: Api-Key ...`."""
    default_prompt: str | None = None
    """The task in words for clients that send none, such as openpi's for ALOHA."""
    device: str = "auto"
    """`auto` takes CUDA, else MPS, else the CPU."""
    num_sampling_steps: int | None = None
    """Solver steps; the configuration's by default."""
    sampling_temperature: float | None = None
    """Scale of the flow's noise, 0 for none; the configuration's by default."""
    execute_steps: int | None = None
    """Actions executed per look in mode `act` and in vla-eval; the whole chunk by default."""
    temporal_ensembling: float | None = None
    """Decay of the blending weights in mode `act`, such as 0.01; none by default."""
    precision: str = "auto"
    """Of the policy's forward: `bf16` or `fp32`; `auto` takes bf16 where it is faster."""
    seed: int = 0
    """Of the flow's noise."""
    max_clients: int = 32
    """Connections at a time; one more is refused."""
    max_message_mib: float = 16.0
    """Largest request (MiB)."""
    max_batch_size: int = 16
    """Most clients that share one forward."""
    batch_window_ms: float = 3.0
    """How long a forward waits for further clients; a single client never waits."""
    heavy_share: float = 0.05
    """Of one core, for the large pictures (over 2 MiB a request) and new instructions of all clients together; raise it
    where all of them send such. A single client never waits."""
    idle_timeout_s: float = 600.0
    """Seconds after which a silent connection is closed."""


def serve(args: ServeArgs) -> None:
    """Serve a checkpoint to robots and simulators over a websocket, in openpi's protocol."""
    require("serve", "serve", *(["vla-eval"] if args.protocol == "vla-eval" else []))
    from statevla.serving.auth import read_api_key
    from statevla.serving.server import PolicyServer, ServerSettings

    _check(args)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("websockets").setLevel(logging.WARNING)
    key = read_api_key(args.api_key_file) if args.api_key_file else None
    if key is None and not _is_loopback(args.host):
        logger.warning("warning: %s is reachable from outside and no --api-key-file is given", args.host)
    options = {option.name: getattr(args, option.name) for option in fields(ActingOptions)}
    policy = StateVLAPolicy.from_pretrained(args.checkpoint, **options)
    policy.name = _name_of(args.checkpoint)  # clients are told names, never paths
    if args.protocol == "vla-eval":
        from statevla.serving.vla_eval import run

        run(policy, args.host, args.port)
        return
    settings = ServerSettings(
        api_key=key,
        model_name=policy.name,
        max_message_bytes=int(args.max_message_mib * 2**20),
        max_queue_size=max(64, 2 * args.max_clients),
        batch_window_s=args.batch_window_ms / 1000,
        **{field.name: getattr(args, field.name) for field in fields(ServerSettings) if hasattr(args, field.name)},
    )
    asyncio.run(_run(PolicyServer(policy, settings)))


async def _run(server: PolicyServer) -> None:
    from statevla_client.protocol import url

    loop = asyncio.get_running_loop()

    def stop() -> None:
        logger.info("shutting down; a second signal ends it at once")
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    async with server:
        logger.info("listening on %s", url(server.settings.host, server.port))
        await server.wait_stopped()
    logger.info("closed")


def _check(args: ServeArgs) -> None:
    if args.protocol == "vla-eval":
        for field in fields(ServeArgs):
            if field.name not in _VLA_EVAL_FLAGS and getattr(args, field.name) != field.default:
                raise UserError(
                    f"--{field.name.replace('_', '-')}: vla-eval's protocol has no such thing; leave it out"
                )
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port: expected 0 to 65535, got {args.port}")
    for name in ("max_clients", "max_batch_size", "max_message_mib", "heavy_share", "idle_timeout_s"):
        if getattr(args, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')}: expected more than 0, got {getattr(args, name)}")
    if args.default_prompt is not None and not args.default_prompt.strip():
        raise UserError("--default-prompt: expected the task in words, got none; leave it out or say what to do")
    if args.batch_window_ms < 0:
        raise UserError(f"--batch-window-ms: expected at least 0, got {args.batch_window_ms}")


def _name_of(checkpoint: str) -> str:
    """The run's name, or that of a folder which stands alone."""
    folder = resolve_checkpoint(checkpoint)
    return folder.parent.name if folder.name in (BEST, LAST) else folder.name


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
