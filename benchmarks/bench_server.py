"""The policy server under load: latency, throughput, errors and memory over time, on loopback.

    python benchmarks/bench_server.py [--minutes 10] [--num-clients 8] [--checkpoint ...]

A server process (`statevla serve`) answers one client first, then `num_clients` that ask back to back for `minutes`,
then as many that ask as robots do: once per chunk at the control frequency. Without a checkpoint an untrained model of
`--config` serves: neither latency nor memory depend on what the weights are.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from harness import environment, write_results
from statevla.checkpoints.checkpoint import Contents, DataInfo, TrainingState, save_checkpoint
from statevla.commands.entry import run_command
from statevla.config import load_config
from statevla.errors import UserError
from statevla.machine.extras import require
from statevla.model.language import build_language_encoder
from statevla.model.statevla_model import StateVLA
from statevla.robots import RobotSpec, load_robot
from statevla.transforms import FieldStatistics, Statistics
from statevla.types import Observation

if TYPE_CHECKING:
    import psutil

INSTRUCTIONS = [f"pick up the {thing} and place it in the basket" for thing in ("milk", "ketchup", "butter", "soup")]
SAMPLE_EVERY_S = 1.0


@dataclass(frozen=True)
class Args:
    checkpoint: str | None = None
    """Served; an untrained model of `config` by default."""
    config: str = "conf/compact.yaml"
    robot: str = "libero"
    """Of the untrained model: a known robot or a YAML file."""
    minutes: float = 10.0
    """Of the load by all clients, back to back."""
    single_s: float = 20.0
    """Of the load by one client, and of the load at robots' pace."""
    num_clients: int = 8
    frame_px: int = 128
    seed: int = 0
    out: str = "server"
    """Name of the file in benchmarks/results."""


def untrained(config_file: str, robot: RobotSpec, folder: Path, seed: int) -> Path:
    """A checkpoint of a model with random weights."""
    torch.manual_seed(seed)
    model = StateVLA(load_config(config_file), robot)
    config, rng = model.config, np.random.default_rng(seed)
    statistics = Statistics(
        FieldStatistics.of(rng.uniform(-1, 1, (200, robot.action_dim))),
        FieldStatistics.of(rng.normal(size=(200, robot.state_dim))),
    )
    encoder = build_language_encoder(config.language, config.model.language_dim)
    language = encoder.info
    contents = Contents(
        model.state_dict(), config, model.robot, statistics, language, DataInfo("", 0.9, 0), {"phase": "2"}
    )
    save_checkpoint(folder, contents, TrainingState({}, {}), is_best=True)
    return folder / "best"


@contextlib.contextmanager
def server(checkpoint: str, seed: int) -> Iterator[tuple[psutil.Process, int]]:
    """A running `statevla serve` on a free loopback port."""
    import psutil

    command = [
        sys.executable,
        "-m",
        "statevla",
        "serve",
        "--checkpoint",
        checkpoint,
        "--port",
        "0",
        "--seed",
        str(seed),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        log = []
        for line in process.stderr:
            log.append(line)
            if found := re.search(r"listening on ws://[\d.]+:(\d+)", line):
                break
        else:
            raise UserError(f"server did not start: {' '.join(log)[-500:]}")
        # Somebody must read on, or the pipe fills up and the server blocks.
        threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True).start()
        yield psutil.Process(process.pid), int(found[1])
    finally:
        process.terminate()
        process.wait(60)
    if process.returncode != 0:
        raise UserError(f"the server ended with status {process.returncode}")


class Load:
    """Clients that ask for chunks until the time is up."""

    def __init__(self, port: int, args: Args) -> None:
        self._port, self._args = port, args

    def run(self, num_clients: int, duration_s: float, period_s: float | None = None) -> dict[str, Any]:
        """Latency in ms and counts; `period_s` is the time between two requests of a client, None back to back."""
        ready = threading.Barrier(num_clients)
        with ThreadPoolExecutor(num_clients) as pool:
            parts = list(pool.map(lambda i: self._talk(i, ready, duration_s, period_s), range(num_clients)))
        latencies = np.concatenate([np.array(latency_s) for latency_s, _ in parts]) * 1000
        errors = [error for _, found in parts for error in found]
        p50, p95, p99 = np.percentile(latencies, (50, 95, 99)) if len(latencies) else (0.0,) * 3
        return {
            "num_clients": num_clients,
            "duration_s": duration_s,
            "period_s": period_s,
            "requests": len(latencies),
            "requests_per_s": len(latencies) / duration_s,
            "errors": len(errors),
            "first_errors": errors[:3],
            "latency_ms": {"p50": p50, "p95": p95, "p99": p99, "max": float(latencies.max(initial=0.0))},
        }

    def _talk(
        self, number: int, ready: threading.Barrier, duration_s: float, period_s: float | None
    ) -> tuple[list[float], list[str]]:
        from statevla_client import PolicyClient, PolicyClientError

        rng = np.random.default_rng([self._args.seed, number])
        latencies: list[float] = []
        errors: list[str] = []
        with PolicyClient(port=self._port) as client:
            observations = itertools.cycle([self._observation(client.metadata, rng) for _ in range(4)])
            client.reset(number)
            client.act_chunk(next(observations))
            ready.wait(60)
            if period_s is not None:
                time.sleep(random.Random(number).uniform(0, period_s))  # robots do not march in step
            end = time.monotonic() + duration_s
            while (start := time.perf_counter()) and time.monotonic() < end:
                try:
                    client.act_chunk(next(observations))
                    latencies.append(time.perf_counter() - start)
                except PolicyClientError as error:
                    errors.append(str(error))
                if period_s is not None:
                    time.sleep(max(0.0, period_s - (time.perf_counter() - start)))
        return latencies, errors

    def _observation(self, metadata: dict[str, Any], rng: np.random.Generator) -> Observation:
        size, robot = self._args.frame_px, RobotSpec.from_dict(metadata["robot"], "metadata")
        images = {name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for name in robot.camera_names}
        state = robot.named_state(rng.normal(size=robot.state_dim), "random state")
        return Observation(images, state, str(rng.choice(INSTRUCTIONS)))


class MemoryLog:
    """Resident memory of a process over time, sampled by a thread."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._done = process, threading.Event()
        self.samples: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemoryLog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def summary(self) -> dict[str, Any]:
        """First, last and greatest MiB, and the slope over the second half, when caches have filled."""
        times, sizes = np.array(self.samples).T
        late = times >= times[-1] / 2
        slope = float(np.polyfit(times[late], sizes[late], 1)[0] * 60)
        return {
            "first_mib": sizes[0],
            "last_mib": sizes[-1],
            "max_mib": sizes.max(),
            "second_half_mib_per_min": slope,
            "samples_s_mib": [[round(t, 1), round(size, 1)] for t, size in self.samples],
        }

    def _run(self) -> None:
        start = time.monotonic()
        while True:
            self.samples.append((time.monotonic() - start, self._process.memory_info().rss / 2**20))
            if self._done.wait(SAMPLE_EVERY_S):
                return


def server_metrics(port: int) -> dict[str, float]:
    """The server's own counters, without histogram buckets."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#") and "_bucket" not in line)
    return {name: float(value) for name, value in samples}


def main(args: Args) -> None:
    require("bench_server", "serve", "bench")
    from statevla_client import PolicyClient

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "untrained"
        checkpoint = args.checkpoint or str(untrained(args.config, load_robot(args.robot), made, args.seed))
        with server(checkpoint, args.seed) as (process, port):
            with PolicyClient(port=port) as client:
                metadata = client.metadata
            load = Load(port, args)
            single = load.run(1, args.single_s)
            with MemoryLog(process) as memory:
                many = load.run(args.num_clients, args.minutes * 60)
            chunk_s = metadata["execute_steps"] / metadata["control_freq_hz"]
            paced = load.run(args.num_clients, max(args.single_s, 3 * chunk_s), chunk_s)
            counters = server_metrics(port)
    runs = {"one client": single, "all, back to back": many, "all, at robots' pace": paced}
    Console().print(table(runs))
    kept = memory.summary()
    print(
        f"memory: {kept['first_mib']:.0f} -> {kept['last_mib']:.0f} MiB, {kept['second_half_mib_per_min']:+.2f} MiB/min"
    )
    tree = {
        "environment": environment(args.seed),
        "policy": "trained" if args.checkpoint else f"untrained {args.config}, robot {args.robot}",
        "metadata": metadata,
        "runs": runs,
        "memory": kept,
        "mean_batch_size": counters["statevla_batch_size_sum"] / counters["statevla_batch_size_count"],
        "server_metrics": counters,
    }
    path = write_results(args.out, tree)
    if failed := sum(run["errors"] for run in runs.values()):
        raise UserError(f"server: {failed} requests failed; {path} has the first messages")


def table(runs: dict[str, dict[str, Any]]) -> Table:
    """One row per kind of load, with the ratio of its median latency to a single client's."""
    shown = Table("load", "requests", "errors", "requests/s", "p50 ms", "p95 ms", "p50 / one client's", title="server")
    base = next(iter(runs.values()))["latency_ms"]["p50"]
    for name, run in runs.items():
        latency = run["latency_ms"]
        figures = [f"{run['requests_per_s']:.1f}", f"{latency['p50']:.1f}", f"{latency['p95']:.1f}"]
        shown.add_row(name, str(run["requests"]), str(run["errors"]), *figures, f"{latency['p50'] / base:.2f}")
    return shown


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Args)))
