"""A tiny checkpoint with random weights, servers of it in a thread of their own, and bare connections to them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from websockets.sync.client import ClientConnection, connect

from statevla.acting.policy import StateVLAPolicy
from statevla.checkpoints.checkpoint import Contents, DataInfo, TrainingState, save_checkpoint
from statevla.config import Config, load_config
from statevla.model.language import LanguageInfo
from statevla.model.statevla_model import StateVLA
from statevla.robots import RobotSpec
from statevla.serving.server import PolicyServer, ServerSettings
from statevla.transforms import FieldStatistics, Statistics

INSTRUCTIONS = ["push the red block", "open the drawer"]
HORIZON, IMAGE_SIZE = 4, 32
TINY = [
    "model.action_dim=auto",
    "model.robot_state_dim=auto",
    "model.cameras=auto",
    "model.embed_dim=32",
    "model.encoder_depth=2",
    "model.state_dim=24",
    f"model.image_size={IMAGE_SIZE}",
    "model.language_dim=12",
    f"model.action_seq_len={HORIZON}",
    "model.policy.d_state=8",
    "model.policy.mlp_hidden_dim=32",
    "training.precision=fp32",
    "device=cpu",
]


SEVERAL_WAYS = ["model.robot_token_dropout=1", "model.policy.condition.robot_state=true"]
"""For a robot whose state is said in several ways: its encoder sees none of it, its policy does."""


def tiny_config(folder: Path, settings: list[str]) -> Config:
    embeddings = folder / "embeddings.npz"
    rng = np.random.default_rng(0)
    np.savez(embeddings, **{text: rng.normal(size=12).astype(np.float32) for text in INSTRUCTIONS})
    return load_config("conf/config.yaml", [*TINY, *settings, f"language.encoder={embeddings}"])


def tiny_statistics(robot: RobotSpec, relative_actions: tuple[str, ...] = ()) -> Statistics:
    """Of numbers that nobody measured: actions around 3, so that the robot's units differ from the model's."""
    rng = np.random.default_rng(1)
    actions, states = rng.uniform(2, 4, (100, robot.action_dim)), rng.normal(size=(100, robot.state_dim))
    targets = FieldStatistics.of(rng.uniform(-1, 1, actions.shape)) if relative_actions else None
    return Statistics(
        FieldStatistics.of(actions), FieldStatistics.of(states), relative_actions=relative_actions, targets=targets
    )


def save_tiny_checkpoint(folder: Path, robot: RobotSpec, relative_actions: tuple[str, ...] = ()) -> Path:
    """A whole checkpoint, `<folder>/last`, of a model nobody trained."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = StateVLA(tiny_config(folder, SEVERAL_WAYS if robot.state_ways else []), robot)
    language = LanguageInfo(model.config.language.encoder, 12, "")
    contents = Contents(
        model.state_dict(),
        model.config,
        model.robot,
        tiny_statistics(robot, relative_actions),
        language,
        DataInfo("", 0.9, 0),
        {"phase": "2"},
    )
    save_checkpoint(folder, contents, TrainingState({}, {}), is_best=False)
    return folder / "last"


@contextlib.contextmanager
def serving(policy: StateVLAPolicy, **settings: object) -> Iterator[PolicyServer]:
    """A running server on a free loopback port; leaving the block ends it gracefully."""
    started, box = threading.Event(), {}

    async def main() -> None:
        async with PolicyServer(policy, replace(ServerSettings(port=0), **settings)) as server:
            box["server"], box["loop"] = server, asyncio.get_running_loop()
            started.set()
            await server.wait_stopped()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            box["error"] = error
        finally:
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait(60)
    if "server" not in box:
        raise box.get("error") or TimeoutError("server did not start")
    try:
        yield box["server"]
    finally:
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            box["loop"].call_soon_threadsafe(box["server"].stop)
        thread.join(60)
        assert not thread.is_alive(), "the server does not end"
        if "error" in box:
            raise box["error"]


def open_raw(server: PolicyServer, **options: Any) -> ClientConnection:
    """A connection that has taken the metadata."""
    connection = connect(f"ws://127.0.0.1:{server.port}", compression=None, proxy=None, **options)
    connection.recv(10)
    return connection


def get(server: PolicyServer, path: str, key: str | None = None) -> tuple[int, str]:
    """Status and body of plain HTTP."""
    headers = {"Authorization": f"Api-Key {key}"} if key else {}
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
