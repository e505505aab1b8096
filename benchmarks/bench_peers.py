"""LeRobot's ACT and SmolVLA beside StateVLA on this machine's CPU: time of a query, control rate, memory, start-up.

    python3.11 -m venv PEERS
    PEERS/bin/pip install -r benchmarks/requirements-peers.txt
    PEERS/bin/pip install --no-deps lerobot==0.4.4 torchvision==0.28.0
    python benchmarks/bench_peers.py --peers-python PEERS/bin/python && python benchmarks/render_tables.py

Every policy gets random weights, which change no time, and goes through its own library's way from a file to actions:
pictures in uint8, a state and an instruction in, a chunk in the robot's units out, batch 1, two cameras. Each case is
a process of its own (`peer_child.py`); they take turns, and wait for moments in which nobody else uses the machine
(`quiet.py`). Writes `benchmarks/results/peers.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from deployment_tables import peer_rows
from harness import environment, of_host, print_table, run_child, write_results
from quiet import Moment, wait_until_quiet
from statevla.commands.entry import run_command
from statevla.errors import UserError

CHILD = str(Path(__file__).with_name("peer_child.py"))
# name → whose it is, what it is made of, and the pictures it is given (SmolVLA scales its own)
POLICIES: dict[str, dict[str, Any]] = {
    "StateVLA compact, 128 px": {"policy": "statevla", "config": "compact.yaml", "height": 128, "width": 128},
    "StateVLA full, 224 px": {"policy": "statevla", "config": "config.yaml", "height": 224, "width": 224},
    "ACT, 128 px": {"policy": "act", "height": 128, "width": 128},
    "ACT, 224 px": {"policy": "act", "height": 224, "width": 224},
    "ACT, 480 x 640 px": {"policy": "act", "height": 480, "width": 640},
    "SmolVLA, 512 px": {"policy": "smolvla", "height": 256, "width": 256},
}
PRECISIONS = ("bf16", "fp32")


@dataclass(frozen=True)
class Args:
    peers_python: str
    """Python of the environment that has LeRobot."""
    turns: int = 3
    """Processes for each case."""
    seconds: float = 3.0
    """Of quiet queries in each process, for each number of threads."""
    patience_s: float = 120.0
    """How long each process waits for quiet moments; one that the machine never gives is recorded as disturbed."""
    threads: tuple[int, ...] = (2, 1)
    host: str = ""
    """Names the results (`peers_<host>.json`), so that those of another host stay."""
    seed: int = 0


def main(args: Args) -> None:
    check(args.peers_python)
    cases = [(name, precision) for name in POLICIES for precision in PRECISIONS]
    where = environment(args.seed)
    where["command"] = where["command"].replace(args.peers_python, "PEERS/bin/python")
    tree = {"environment": where, "policies": POLICIES, "threads": args.threads}
    found: dict[str, list[dict[str, Any]]] = {f"{name}, {precision}": [] for name, precision in cases}
    with tempfile.TemporaryDirectory() as folder:
        for name in POLICIES:
            child(args, folder, name, {"task": "make", "seed": args.seed})
        for turn in range(args.turns):
            for name, precision in cases:
                Console().print(f"turn {turn + 1} of {args.turns}: {name}, {precision}")
                settings = {"seconds": args.seconds, "patience_s": args.patience_s, "threads": args.threads}
                measured = child(args, folder, name, {"task": "measure", "precision": precision, **settings})
                found[f"{name}, {precision}"].append({"name": name, "precision": precision, **measured})
            path = write_results(of_host("peers", args.host), {**tree, "cases": found})
    print_table("one query, batch 1", *peer_rows(json.loads(path.read_text())))


def child(args: Args, folder: str, name: str, task: dict[str, Any]) -> Any:
    """What a process of its own answers to a task about a policy."""
    policy = POLICIES[name]
    python = sys.executable if policy["policy"] == "statevla" else args.peers_python
    if task["task"] == "measure":
        wait_until_quiet(Moment.now().clock + args.patience_s)
        task = {**task, "begin": Moment.now()._replace(own_s=0.0)}
    place = str(Path(folder) / name.replace(", ", "_").replace(" ", "_"))
    # An empty home: a start-up loads the text encoder, as with an instruction that nobody gave before.
    changes = {"OMP_NUM_THREADS": str(max(args.threads)), "STATEVLA_HOME": tempfile.mkdtemp(dir=folder)}
    try:
        return run_child(CHILD, json.dumps({"name": name, "folder": place, **policy, **task}), [], changes, python)
    except subprocess.CalledProcessError as error:
        print(error.stderr[-4000:], file=sys.stderr)
        raise UserError(f"{name}: its process ended with {error.returncode}; its last words stand above") from None


def check(python: str) -> None:
    """Raise a UserError unless this Python can load LeRobot's policies."""
    look_up = "import importlib.metadata as found; print(found.version('lerobot'))"
    try:
        done = subprocess.run([python, "-c", look_up], capture_output=True, text=True)
    except OSError as error:
        raise UserError(
            f"--peers-python {python}: cannot be run ({error.strerror}); give the path of a Python"
        ) from None
    if done.returncode:
        raise UserError(
            f"--peers-python {python}: expected an environment with LeRobot, found none; the top of "
            f"{os.path.basename(__file__)} says how to make it"
        )


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Args)))
