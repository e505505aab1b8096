"""Training by several processes against one with as many threads, both on this machine's CPU.

    statevla data draw lift --out $STATEVLA_HOME/datasets/lift/lift_demo.hdf5 --image-size 128
    python benchmarks/bench_processes.py --data $STATEVLA_HOME/datasets/lift

Phase 1 of the compact preset, by `train.py` alone and by `torchrun`, with the same global batch. The two take turns; a
rate is the median of what a run's log says after its first steps. It shows what DDP itself costs (gradients are summed
over the processes, and phase 1's terms over the batch gather every sample's z): GPUs bring their own arithmetic.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import tyro

from harness import environment, print_table, write_results
from statevla.commands.entry import run_command
from statevla.errors import UserError

ROOT = Path(__file__).parents[1]
LOG_EVERY, SKIPPED = 10, 3
"""Steps between two lines of the log, and lines in which a run warms up."""


@dataclass(frozen=True)
class Args:
    data: Path
    """Demonstrations to train on."""
    threads: int = 2
    """Of all processes together."""
    steps: int = 110
    turns: int = 2
    seed: int = 0
    out: str = "processes"
    """Name of the file in benchmarks/results."""


def rates(args: Args, processes: int, folder: Path) -> list[float]:
    """Windows a second of all processes, as one training logs them."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    command += [str(ROOT / "train.py"), "--phase", "1", "--config", "compact", "--overwrite", "--seed", str(args.seed)]
    command += ["--data.path", str(args.data), "--output_dir", str(folder)]
    command += ["--training.phase1.max_steps", str(args.steps), "--training.phase1.warmup_steps", "10"]
    command += ["--training.log_every_steps", str(LOG_EVERY), "--training.validate_every_steps", str(args.steps)]
    threads = {"OMP_NUM_THREADS": str(args.threads // processes)}
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    log = folder / "phase1_temporal_jepa" / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    logged: list[float] = [line["samples_per_s"] for line in lines if line["kind"] == "train"]
    return logged[SKIPPED:]


def main(args: Args) -> None:
    if not args.data.is_dir():
        raise UserError(f"--data {args.data}: no such folder; collect some, or draw human ones (see --help)")
    samples: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.turns):
            for processes in (1, args.threads):
                name = f"{processes} x {args.threads // processes}"
                samples.setdefault(name, []).append(rates(args, processes, Path(folder) / str(processes)))
    summary: dict[str, Any] = {name: median(rate for run in runs for rate in run) for name, runs in samples.items()}
    alone = summary[f"1 x {args.threads}"]
    rows = [[name, rate, rate / alone] for name, rate in summary.items()]
    print_table("phase 1, compact", ["processes x threads", "windows/s", "of one process"], rows)
    tree = {"environment": environment(args.seed), "threads": args.threads, "steps": args.steps}
    write_results(args.out, {**tree, "windows_per_s": summary, "samples": samples})


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Args, description=__doc__)))
