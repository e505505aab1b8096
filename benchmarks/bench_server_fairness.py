"""What other clients cost a well-behaved one: its latency beside three of its kind and beside three hostile ones.

    python benchmarks/bench_server_fairness.py [--checkpoint models/libero_object_compact] [--rounds 5]

Real client processes talk to a real `statevla serve`. Neighbours are `steady` (as the measured client), `texts` (a new
instruction of 960 letters in every request, back to back), `pictures` (one of 15 MB in every request, back to back),
or `mixed`: one of each and one that connects anew for every new text. The conditions take turns, round after round, so
that noise of the machine falls on all of them alike; each waits for a quiet moment first, and how much of the
processors others had meanwhile is noted. On a machine that others use too, `nice -n -10` before the command keeps most
of their noise out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from bench_server import server
from harness import environment, print_table, write_results
from quiet import Moment, wait_until_quiet
from statevla.commands.entry import run_command
from statevla.errors import UserError
from statevla.machine.extras import require

if TYPE_CHECKING:
    import psutil

NEIGHBOURS = {
    "steady": ("steady",) * 3,
    "texts": ("texts",) * 3,
    "pictures": ("pictures",) * 3,
    "mixed": ("texts", "pictures", "reconnects"),
}


@dataclass(frozen=True)
class Args:
    checkpoint: str = "models/libero_object_compact"
    rounds: int = 5
    seconds: float = 12.0
    """Of each condition in each round."""
    period_s: float = 0.2
    """Between two requests of a steady client, beside the case where it asks back to back."""
    quiet_s: float = 30.0
    """How long to wait, before each condition, until nobody else uses the machine."""
    seed: int = 0
    out: str = "server_fairness"
    """Name of the file in benchmarks/results."""


class Clients:
    """Four client processes; the first one is measured."""

    def __init__(self) -> None:
        script = str(Path(__file__).with_name("fairness_client.py"))
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self._processes = [subprocess.Popen([sys.executable, script], **options) for _ in range(4)]  # type: ignore[call-overload]
        self.pids = [process.pid for process in self._processes]

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def talk(self, port: int, neighbours: Sequence[str], seconds: float, period_s: float, seed: int) -> list[Any]:
        """What each of them measured."""
        task = {"port": port, "seconds": seconds, "period_s": period_s}
        for i, (process, kind) in enumerate(zip(self._processes, ("steady", *neighbours))):
            print(json.dumps({**task, "kind": kind, "seed": [seed, i]}), file=process.stdin)
        for process in self._processes:
            if self._line(process) != "ready\n":
                raise UserError("fairness: a client ended before it began; its message stands above")
        for process in self._processes:
            print("go", file=process.stdin)
        return [json.loads(self._line(process)) for process in self._processes]

    @staticmethod
    def _line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline()


class Neighbourhood:
    """The share of all processors that is used by others than these processes."""

    def __init__(self, processes: Sequence[psutil.Process]) -> None:
        self._processes = processes
        self._begin, self._own_s = Moment.now(), self._used_s()

    def others(self) -> float:
        """Since this was made."""
        num_cpus = os.cpu_count() or 1
        own = (self._used_s() - self._own_s) / ((time.monotonic() - self._begin.clock) * num_cpus)
        return max(0.0, self._begin.others() - own)

    def _used_s(self) -> float:
        return sum(times.user + times.system for times in (process.cpu_times() for process in self._processes))


def summary(samples: dict[str, list[Any]]) -> dict[str, Any]:
    """Percentiles of the measured client, by condition, and how many requests of the others were met."""
    rows = {}
    for name, rounds in samples.items():
        talks = [found["clients"] for found in rounds]
        latencies = np.concatenate([clients[0]["latencies_ms"] for clients in talks])
        p50, p95 = np.percentile(latencies, (50, 95))
        rows[name] = {
            "requests": len(latencies),
            "p50_ms": p50,
            "p95_ms": p95,
            "others": sum(len(client["latencies_ms"]) for clients in talks for client in clients[1:]),
            "errors": sum(client["errors"] for clients in talks for client in clients),
            "machine_used_by_others": float(np.mean([found["machine_used_by_others"] for found in rounds])),
        }
    for row in rows.values():
        row["p95_over_steady"] = row["p95_ms"] / rows["steady"]["p95_ms"]
    return rows


def main(args: Args) -> None:
    require("bench_server_fairness", "serve", "bench")
    import psutil

    paces = {"back to back": 0.0, f"every {args.period_s:g} s": args.period_s}
    samples: dict[str, dict[str, list[Any]]] = {pace: {name: [] for name in NEIGHBOURS} for pace in paces}
    with tempfile.TemporaryDirectory() as home:
        os.environ["STATEVLA_HOME"] = home
        with server(args.checkpoint, args.seed) as (process, port), Clients() as clients:
            own = [process, *map(psutil.Process, clients.pids)]
            for number in range(args.rounds):
                for pace, period_s in paces.items():
                    for name, neighbours in NEIGHBOURS.items():
                        wait_until_quiet(time.monotonic() + args.quiet_s)
                        neighbourhood = Neighbourhood(own)
                        found = clients.talk(port, neighbours, args.seconds, period_s, args.seed + number)
                        samples[pace][name].append({"clients": found, "machine_used_by_others": neighbourhood.others()})
        files_left = sum(1 for path in Path(home).rglob("*") if path.is_file())
    summaries = {pace: summary(conditions) for pace, conditions in samples.items()}
    for pace, rows in summaries.items():
        keys = list(rows["steady"])
        print_table(pace, ["neighbours", *keys], [[name, *(row[key] for key in keys)] for name, row in rows.items()])
    where = {**environment(args.seed), "niceness": os.nice(0)}
    tree = {"environment": where, "checkpoint": args.checkpoint, "files_left": files_left}
    path = write_results(args.out, {**tree, "summaries": summaries, "samples": samples})
    print(f"{files_left} files left by the server; raw samples in {path}")


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Args)))
