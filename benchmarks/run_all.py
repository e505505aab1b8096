"""Run every benchmark, one after the other: `python benchmarks/run_all.py [--only bench_model …]`.

Each script can be run alone and writes its own raw results; all merge their headline numbers into
`benchmarks/results/summary.json`. What needs a trained checkpoint or the simulator is not run here; the list says how.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

HERE = Path(__file__).parent
SCRIPTS = ("bench_selective_scan", "bench_encoder", "bench_model", "bench_phase2_latents", "bench_loader")
ELSEWHERE = {
    "bench_collect": "needs the simulators",
    "bench_lerobot": "needs an environment with LeRobot and the plugin, and a data set of a world's robot",
    "bench_peers": "needs an environment with LeRobot, and a machine that does nothing else for half an hour",
    "bench_processes": "needs demonstrations",
    "bench_rollout": "needs the simulator and a checkpoint",
    "bench_server": "needs a checkpoint, and ten minutes",
    "bench_server_fairness": "needs ten minutes and a machine that does nothing else",
    "measure_expert": "needs the simulator, and an hour for all suites",
}


@dataclass(frozen=True)
class Args:
    """Run the benchmarks that need neither a checkpoint nor the simulator."""

    only: tuple[str, ...] = ()
    """Names of scripts, without `.py`; all by default."""


def main(args: Args) -> int:
    console = Console()
    failed = []
    for name in args.only or SCRIPTS:
        console.rule(name)
        if subprocess.run([sys.executable, HERE / f"{name}.py"]).returncode:
            failed.append(name)
    console.rule("not run here")
    for name, why in ELSEWHERE.items():
        console.print(f"{name}: {why} (python benchmarks/{name}.py --help)")
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="red")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
