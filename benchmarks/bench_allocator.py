"""What keeping freed memory is worth: training steps with and without `statevla.machine.allocator.keep_freed_memory`.

    python benchmarks/bench_allocator.py [--preset compact] [--rounds 5]

A process cannot go back, so processes of both kinds run in turn, each a few steps of phase 1. Writes
`benchmarks/results/allocator_<preset>.json`.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro

from bench_model import training_case
from harness import environment, print_table, run_child, update_summary, write_results
from statevla.commands.entry import run_command
from statevla.machine.allocator import keep_freed_memory

KINDS = ("given back", "kept")


@dataclass(frozen=True)
class Args:
    """Measure training steps with freed memory kept and given back."""

    preset: Literal["full", "compact"] = "compact"
    """Configuration; a batch of 32 windows, of 8 for the full one."""
    rounds: int = 5
    """Processes of each kind."""
    steps: int = 20
    """Timed in each, after three others."""
    threads: int = 2
    """CPU threads."""
    seed: int = 0
    child: Literal["", "given back", "kept"] = ""
    """Be one of the processes."""


def measure(args: Args) -> dict[str, Any]:
    """Seconds of each step, page faults a step, and peak memory, of this process."""
    if args.child == "kept" and not keep_freed_memory():
        raise SystemExit("this system's allocator cannot be told to keep freed memory")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    call = training_case(args.preset, "1", 8 if args.preset == "full" else 32)
    for _ in range(3):
        call()
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
    for _ in range(args.steps):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "page_faults_per_step": (usage.ru_minflt - before) / args.steps,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def main(args: Args) -> None:
    if args.child:
        print(json.dumps(measure(args)))
        return
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(args.rounds):
        for kind in KINDS:
            flags = ["--preset", args.preset, "--steps", str(args.steps), "--threads", str(args.threads)]
            runs[kind].append(run_child(__file__, kind, [*flags, "--seed", str(args.seed)]))
    medians = {kind: [statistics.median(run["seconds"]) for run in found] for kind, found in runs.items()}
    ratios = [given / kept for given, kept in zip(*medians.values())]
    rows = [
        [
            kind,
            1e3 * statistics.median(medians[kind]),
            statistics.median(run["page_faults_per_step"] for run in found),
            max(run["peak_mib"] for run in found),
        ]
        for kind, found in runs.items()
    ]
    print_table(
        f"freed memory, phase-1 step, {args.preset}", ["kind", "ms a step", "page faults a step", "peak MiB"], rows
    )
    print(f"speed-up per round: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
    write_results(f"allocator_{args.preset}", {"environment": environment(args.seed), "runs": runs})
    update_summary({f"allocator_train_speedup_{args.preset}": statistics.median(ratios)})


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Args)))
