"""Episodes per hour of an evaluation in simulation, and what bounds them: physics, rendering or the policy.

    python benchmarks/bench_rollout.py --checkpoint RUN/checkpoint_best.pt --tasks 0,2 --num-trials 20

Without a checkpoint an untrained policy of `--config` is measured: it never succeeds, so that every episode runs to the
step limit. Times of the worlds are sums over their processes. Building worlds (once per task and process) is part of
the measured time. Writes `benchmarks/results/rollout.json`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from statevla.checkpoints.checkpoint import Contents, DataInfo, TrainingState, save_checkpoint
from statevla.commands.entry import run_command
from statevla.config import load_config
from statevla.model.language import build_language_encoder
from statevla.model.statevla_model import StateVLA
from statevla.robots import RobotSpec
from statevla.transforms import FieldStatistics, Statistics
from statevla.worlds.evaluate import RolloutArgs, evaluate
from statevla.worlds.registry import open_suite


@dataclass(frozen=True)
class Args:
    """Measure the throughput of simulated evaluation."""

    checkpoint: str | None = None
    """Trained policy; without it an untrained one is measured."""
    config: str = "conf/compact.yaml"
    """Configuration of the untrained policy."""
    world: Annotated[str, tyro.conf.arg(aliases=["--suite"])] = "libero_object"
    """A world, as in `statevla rollout`."""
    tasks: str = "0"
    """Task indices."""
    num_trials: int = 20
    """Episodes per task."""
    num_workers: tuple[int, ...] = (1, 2, 3)
    """Numbers of worlds' processes to compare."""
    replan_steps: int | None = None
    """As in `run_libero_eval.py`."""
    seed: int = 0
    """Of the episodes and of the untrained weights."""
    out: str = "benchmarks/results/rollout.json"
    """Where raw results go."""


def untrained(args: Args, robot: RobotSpec, folder: Path) -> Path:
    """A checkpoint of random weights for the world's robot."""
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    model = StateVLA(load_config(args.config), robot)
    config = model.config
    statistics = Statistics(
        FieldStatistics.of(rng.uniform(-1, 1, (1000, robot.action_dim))),
        FieldStatistics.of(rng.normal(size=(1000, robot.state_dim))),
    )
    encoder = build_language_encoder(config.language, config.model.language_dim)
    language = encoder.info
    weights = model.state_dict()
    contents = Contents(weights, config, model.robot, statistics, language, DataInfo("", 0.9, 0), {"phase": "2"})
    save_checkpoint(folder, contents, TrainingState({}, {}), is_best=True)
    return folder


def measure(args: Args, checkpoint: str, num_workers: int) -> dict[str, Any]:
    """One evaluation in a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        rollout = RolloutArgs(
            checkpoint,
            args.world,
            args.num_trials,
            args.tasks,
            out=folder,
            seed=args.seed,
            replan_steps=args.replan_steps,
            num_workers=num_workers,
            videos=0,
        )
        began = time.perf_counter()
        _, summary = evaluate(rollout)
        wall_s = time.perf_counter() - began
        lines = (Path(folder) / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    assert summary is not None
    results = [json.loads(line) for line in lines]
    return {
        "num_workers": num_workers,
        "episodes": len(results),
        "successes": summary["total"]["successes"],
        "errors": summary["total"]["errors"],
        "control_steps": sum(result["num_steps"] for result in results),
        "queries": summary["num_queries"],
        "wall_s": wall_s,
        "episodes_per_hour": 3600 * len(results) / wall_s,
        "time_s": summary["time_s"],
        "policy_latency_ms": summary["policy_latency_ms"],
        "environment": {key: summary[key] for key in ("settings", "versions", "git_commit", "machine")},
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Throughput, and time per episode by what it went to."""
    shown = Table("workers", "episodes/h", "success", "steps/episode", title="simulated evaluation")
    for kind in ("setup", "physics", "render", "policy"):
        shown.add_column(f"{kind} s/episode", justify="right")
    for row in rows:
        times = [f"{row['time_s'][kind] / row['episodes']:.2f}" for kind in ("setup", "physics", "render", "policy")]
        rates = [f"{row['episodes_per_hour']:.0f}", f"{row['successes']}/{row['episodes']}"]
        shown.add_row(str(row["num_workers"]), *rates, f"{row['control_steps'] / row['episodes']:.0f}", *times)
    return shown


def main(args: Args) -> None:
    load = _load()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = args.checkpoint or str(untrained(args, open_suite(args.world).robot, Path(folder)))
        rows = [measure(args, checkpoint, count) for count in args.num_workers]
    Console().print(table(rows))
    best = max(rows, key=lambda row: row["episodes_per_hour"])
    bound = max(("physics", "render", "policy", "setup"), key=lambda kind: best["time_s"][kind])
    print(f"best: {best['episodes_per_hour']:.0f} episodes/h with {best['num_workers']} workers, bound by {bound}")
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    kind = "trained" if args.checkpoint else f"untrained {args.config}"
    tree = {"command": command, "seed": args.seed, "policy": kind, "load_before": load, "results": rows}
    out.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


def _load() -> list[float] | None:
    """The machine's load averages: on a busy one, trust ratios."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Args)))
