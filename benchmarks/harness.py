"""What every benchmark shares: alternating timing, where and with what it ran, raw results, the flat summary."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from statevla.checkpoints.provenance import git_commit, versions
from statevla.errors import UserError
from statevla.machine.processor import processor_field

RESULTS = Path(__file__).parent / "results"
INTERESTING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def environment(seed: int) -> dict[str, Any]:
    """Command, seed, versions, commit and machine, to stand beside every result."""
    return {
        "command": " ".join(["python", *([str(Path("benchmarks") / Path(sys.argv[0]).name), *sys.argv[1:]])]),
        "seed": seed,
        "versions": versions(),
        "git_commit": git_commit(),
        "machine": {
            "system": platform.platform(),
            "cpu": processor_field("model name"),
            "cpu_family_model": f"{processor_field('cpu family')}/{processor_field('model')}",
            "cpu_flags": sorted(set(processor_field("flags").split()) & set(INTERESTING_FLAGS)),
            "num_cpus": os.cpu_count(),
            "num_threads": torch.get_num_threads(),
        },
    }


def alternate(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    budget_s: float = float("inf"),
    burst_s: float = 0.0,
) -> dict[str, list[float]]:
    """Time all cases in turn, round after round, so that noise of the machine falls on all of them alike.

    Args:
        cases: name → what to time.
        rounds: calls of each case; fewer where `budget_s` is spent first (but at least one).
        warmup: untimed calls of each case before.
        budget_s: seconds for the timed rounds.
        burst_s: untimed calls before each timed one, as many (up to 5) as fit into these seconds: what runs alone
            in use finds its weights in the cache and its memory mapped, not what the case before it left behind.

    Returns:
        Seconds of every call, by case.
    """
    for case in cases.values():
        for _ in range(warmup):
            case()
    samples: dict[str, list[float]] = {name: [] for name in cases}
    gc.collect()
    gc.disable()
    try:
        begin = time.perf_counter()
        for _ in range(rounds):
            for name, case in cases.items():
                before = samples[name][-1] if samples[name] else float("inf")
                for _ in range(min(5, int(burst_s / before))):
                    case()
                start = time.perf_counter()
                case()
                samples[name].append(time.perf_counter() - start)
            if time.perf_counter() - begin > budget_s:
                break
    finally:
        gc.enable()
    return samples


def run_child(
    script: str,
    kind: str,
    flags: Sequence[str],
    environment_changes: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Any:
    """What `script --child kind` prints as JSON in its last line, in a process of its own.

    Raises:
        UserError: it ends with an error, whose last line is told.
    """
    command = [python, script, "--child", kind, *flags]
    changed = {**os.environ, **(environment_changes or {})}
    out = subprocess.run(command, env=changed, capture_output=True, text=True, check=False)
    if out.returncode:
        reason = (out.stderr.strip().splitlines() or [f"exit status {out.returncode}"])[-1]
        raise UserError(reason.removeprefix("error: "))
    return json.loads(out.stdout.splitlines()[-1])


def median_ms(seconds: Sequence[float]) -> float:
    """The median of seconds, in milliseconds."""
    return 1e3 * statistics.median(seconds)


def of_host(name: str, host: str) -> str:
    """A name of results, with that of a host whose results are kept beside the others'."""
    return f"{name}_{host}" if host else name


def write_results(name: str, tree: Mapping[str, Any]) -> Path:
    """Write `benchmarks/results/<name>.json`, beside and then renamed."""
    return _write(RESULTS / f"{name}.json", tree)


def update_summary(metrics: Mapping[str, float]) -> None:
    """Merge metrics into the flat `benchmarks/results/summary.json`."""
    path = RESULTS / "summary.json"
    present = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rounded = {name: float(f"{value:.4g}") for name, value in metrics.items()}
    _write(path, dict(sorted({**present, **rounded}.items())))
    console = Console()
    for name, value in rounded.items():
        console.print(f"{name} = {value:g}")


def operations(call: Callable[[], object]) -> float:
    """Multiplications and additions of products and convolutions in one call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def peak_gflops(seconds: float = 1.0) -> float:
    """Of a large product in bfloat16, the best of several."""
    a, b = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begin)
    return 2 * 2048**3 / best / 1e9


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows; floats with three significant digits."""
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(table)


def _write(path: Path, tree: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)
    return path
