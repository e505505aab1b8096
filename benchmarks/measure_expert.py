"""How often the scripted expert solves each task from the benchmark's official initial states (physics only).

    python benchmarks/measure_expert.py --suite libero_object --episodes 50 --workers 2

Writes `benchmarks/results/expert.json`, `{suite: {task: {"successes", "episodes", ...}}}`, after every task,
and beside it `expert_settings.json` with seed, noise and versions; `--out` names another file, for a scan that is not
for the record. Tasks that are there already are skipped, so that a long measurement can be done in pieces
(`--time-limit-s`), and more `--episodes` go on after those that are there; measure with `--again` after a change of the
expert. Every episode that was run counts; of a failed one the parts of the goal that do not hold are kept.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from statevla.commands.entry import run_command
from statevla.errors import UserError
from statevla.worlds.backend import versions
from statevla.worlds.libero.tasks import TaskSpec, find_task, load_init_states, parse_task_indices

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Args:
    """Measure the scripted expert on official initial states."""

    suite: str = "libero_object"
    """LIBERO or LIBERO-PRO suite."""
    tasks: str = "all"
    """`all`, `0,3,5` or `0-4`."""
    episodes: int = 50
    """Initial states per task, from the first."""
    workers: int = 1
    """Worker processes."""
    noise: float = 0.1
    """Execution noise, as in collection."""
    seed: int = 0
    """Base of the random draws."""
    again: bool = False
    """Measure again what is there already."""
    time_limit_s: float = float("inf")
    """Start no further task after this time."""
    max_failures: int | None = None
    """Give a task up after more failures than this; the episodes until then count. All are run by default."""
    out: Path = RESULTS / "expert.json"
    """Where the results go; the settings stand beside it."""


@cache
def last_simulation() -> list[Any]:
    """This worker's simulation, kept for further tasks of its scene: building one takes longer than some episodes."""
    return []


def simulation_for(task: TaskSpec) -> Any:
    from statevla.worlds.libero.simulation import Simulation

    kept = last_simulation()
    if kept and kept[0].task.scene == task.scene:
        kept[0].take_up(task)
    else:
        if kept:
            kept.pop().close()
        kept.append(Simulation(task))
    return kept[0]


def measure_task(args: Args, index: int, before: dict[str, Any]) -> dict[str, Any]:
    """Successes of one task; goes on after the episodes of `before`, a result of the same settings."""
    from statevla.worlds.libero.rollout import run_expert

    task = find_task(args.suite, index)
    simulation = simulation_for(task)
    done = int(before.get("episodes", 0))
    num_steps = before.get("mean_steps", 0.0) * done
    failed = list(before.get("failed_states", ()))
    unmet = Counter(before.get("unmet", {}))
    for number, state in enumerate(load_init_states(task)[done : args.episodes], start=done):
        if args.max_failures is not None and len(failed) > args.max_failures:
            break
        simulation.reset(args.seed, state)
        rng = np.random.default_rng([args.seed, index, number])
        rollout = run_expert(simulation, rng, args.noise, task.max_steps)
        num_steps += len(rollout)
        done += 1
        if not rollout.success:
            failed.append(number)
            unmet.update(" ".join(goal) for goal in simulation.goal if not simulation.holds(goal))
    return {
        "successes": done - len(failed),
        "episodes": done,
        "mean_steps": round(num_steps / done, 1),
        "failed_states": failed,
        "unmet": dict(unmet),
    }


def is_measured(result: dict[str, Any], args: Args) -> bool:
    """Whether a task needs no further measurement: as many episodes as asked for, or given up after failures."""
    if args.max_failures is not None and len(result.get("failed_states", ())) > args.max_failures:
        return True
    return bool(result.get("episodes", 0) >= args.episodes)


def load(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def store(path: Path, content: dict[str, Any]) -> None:
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    os.replace(part, path)


def measure(args: Args) -> int:
    """Measure the scripted expert on official initial states."""
    path = args.out
    path.parent.mkdir(parents=True, exist_ok=True)
    settings_path = path.with_name(f"{path.stem}_settings.json")
    settings = {"seed": args.seed, "noise": args.noise, "versions": versions("sim")}
    measured_with = load(settings_path)
    if measured_with and measured_with != settings and not args.again:
        raise UserError(
            f"{settings_path.name}: results were measured with {measured_with}; use the same, or delete them"
        )
    store(settings_path, settings)
    done = load(path).get(args.suite, {})
    pending = [
        find_task(args.suite, index)
        for index in parse_task_indices(args.suite, args.tasks)
        if args.again or not is_measured(done.get(find_task(args.suite, index).name, {}), args)
    ]
    started, console = time.monotonic(), Console()
    context = multiprocessing.get_context("spawn")
    # MuJoCo's models are not all given back when a simulation is closed: fresh processes keep the memory bounded.
    with ProcessPoolExecutor(args.workers, mp_context=context, max_tasks_per_child=10) as pool:
        running: dict[Future[dict[str, Any]], Any] = {}
        while pending or running:
            if time.monotonic() - started > args.time_limit_s:
                pending = []
            while pending and len(running) < args.workers:
                task = pending.pop(0)
                before = {} if args.again else done.get(task.name, {})
                running[pool.submit(measure_task, args, task.index, before)] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                task, result = running.pop(future), future.result()
                results = load(path)
                results.setdefault(args.suite, {})[task.name] = result
                store(path, results)
                line = f"{task.suite} {task.index} {task.name}: {result['successes']}/{result['episodes']}"
                console.print(
                    f"{line}, {result['mean_steps']} steps {result['unmet']}", soft_wrap=True, highlight=False
                )
    print_table(console, args.suite, load(path).get(args.suite, {}))
    return 0


def print_table(console: Console, suite: str, results: dict[str, Any]) -> None:
    table = Table("task", "successes", "mean steps", title=suite)
    for name, result in results.items():
        table.add_row(name, f"{result['successes']}/{result['episodes']}", str(result.get("mean_steps", "")))
    console.print(table)


if __name__ == "__main__":
    run_command(lambda: measure(tyro.cli(Args, description=__doc__)))
