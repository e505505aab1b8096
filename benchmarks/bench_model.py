"""Acting and training of the whole model: how long, which share of the processor's peak, against earlier code, beside
busy neighbours.

    python benchmarks/bench_model.py [--before REVISION] [--part all|acting|training|neighbours] [--threads 2]

Acting: one chunk (tokenizer, encoder, 4 solver steps, gripper; random weights) at batch 1. Training: whole steps (loss,
backward, clipping, AdamW, target) of phase 1 at both sizes and of phase 2 at the small one, on random data. Every case
runs in processes of its own, as a policy or a training does, which take turns; with `--before` the code of that
revision takes turns with today's. The peak is that of PyTorch's product of two 2048² matrices, measured before and
after each part; PyTorch counts the operations of products and convolutions (scans, norms, activations come on top).
Neighbours: training, and 20 queries a second, beside 0, 1 and 2 programs that want a core each; a fair share is what
the process would get if all threads that want to run were given the cores in equal parts.
Writes `benchmarks/results/model_<part>.json` with every sample.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

import torch
import tyro

from harness import (
    environment,
    of_host,
    operations,
    peak_gflops,
    print_table,
    run_child,
    update_summary,
    write_results,
)
from statevla.commands.entry import run_command
from statevla.config import Config, load_config
from statevla.machine.allocator import keep_freed_memory
from statevla.model.statevla_model import StateVLA
from statevla.types import ChunkBatch, ModelInput, TransitionBatch

ROOT = Path(__file__).parents[1]
# Presets by name; `config` is the specification's.
ACTING = {"compact": "compact", "full": "config"}
TRAINING = {
    "phase 1, compact": ("compact", "1", 32),
    "phase 1, full": ("config", "1", 8),
    "phase 2": ("compact", "2", 256),
}
NEIGHBOURS = (0, 1, 2)
QUERIES_PER_S = 20
BUSY = "while True: sum(range(1_000_000))"


@dataclass(frozen=True)
class Args:
    """Measure acting and training."""

    threads: int = 2
    """CPU threads."""
    turns: int = 4
    """Processes for each case."""
    before: str = ""
    """A git revision to compare with."""
    part: Literal["all", "acting", "training", "neighbours"] = "all"
    """What to measure."""
    host: str = ""
    """Names the results (`model_<part>_<host>.json`, `..._<host>` in the summary): those of other hosts stay."""
    seed: int = 0
    child: str = ""
    """Used by the script itself: a case, in a process of its own."""


def random_input(config: Config, *batch: int) -> ModelInput:
    model = config.model
    return ModelInput(
        images=torch.rand(*batch, len(model.cameras), 3, model.image_size, model.image_size) * 2 - 1,
        robot_state=torch.randn(*batch, model.robot_state_dim),
        language=torch.randn(*batch, model.language_dim),
    )


def acting_case(preset: str, precision: str) -> Callable[[], object]:
    """A call that samples one chunk."""
    model = StateVLA(load_config(preset)).eval()
    observation = random_input(model.config, 1)
    if precision != "count":
        model.prepare_for_inference(precision)

    def call() -> None:
        with torch.inference_mode():
            model.sample_actions(observation)

    return call


def training_case(preset: str, phase: str, batch_size: int, precision: str = "bf16") -> Callable[[], object]:
    """A call that makes one whole step."""
    model = StateVLA(load_config(preset)).train()
    loss = _phase1_loss(model, batch_size) if phase == "1" else _phase2_loss(model, batch_size)
    parameters = [parameter for _, parameter in model.phase_parameters(phase)]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            total = loss()
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, model.config.training.grad_clip_norm)
        optimizer.step()
        if phase == "1":
            model.update_target(1, 100)

    return call


def _phase1_loss(model: StateVLA, batch_size: int) -> Callable[[], torch.Tensor]:
    config, phase1 = model.config, model.config.training.phase1
    frames, width = phase1.num_frames, phase1.frame_skip * config.model.action_dim
    batch = TransitionBatch(
        random_input(config, batch_size, frames),
        torch.rand(batch_size, frames - 1, width) * 2 - 1,
        keyframe=torch.randn(batch_size, frames, model.robot.keyframe_dim),
        keyframe_is_known=torch.ones(batch_size, frames, dtype=torch.bool),
    )
    return lambda: model.jepa_loss(batch).total


def _phase2_loss(model: StateVLA, batch_size: int) -> Callable[[], torch.Tensor]:
    model.freeze_encoder()
    settings = model.config.model
    state = torch.randn(batch_size, sum(model.policy.condition.layout.widths))  # type: ignore[union-attr]
    actions = torch.rand(batch_size, settings.action_seq_len, settings.action_dim) * 2 - 1
    batch = ChunkBatch(None, actions, torch.zeros(actions.shape[:2], dtype=torch.bool), state)
    return lambda: model.action_loss(batch).total


def seconds_of(call: Callable[[], object], at_least: int, budget_s: float, pause_s: float = 0.0) -> list[float]:
    """Seconds of every call after five of warm-up: so many, and as many more as fit into the budget."""
    for _ in range(5):
        call()
    samples: list[float] = []
    end = time.perf_counter() + budget_s
    while len(samples) < at_least or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        samples.append(time.perf_counter() - begin)
        time.sleep(pause_s)
    return samples


def child(args: Args) -> object:
    """What a case's process prints."""
    kind, *what = args.child.split(":")
    if kind == "acting":
        return seconds_of(acting_case(what[0], what[1]), 60, 0.0)
    if kind == "training":
        return seconds_of(training_case(what[0], what[1], int(what[2])), 6, 4.0)
    if kind == "paced":
        return seconds_of(acting_case("compact", "bf16"), 100, 0.0, 1.0 / QUERIES_PER_S)
    return _train_as_the_trainer(training_case("compact", "1", 32))


def _train_as_the_trainer(call: Callable[[], object]) -> list[float]:
    """With what the trainer does about neighbours, where the code has it; the first seconds are for it to notice."""
    threads: Any = contextlib.nullcontext()
    with contextlib.suppress(ImportError):
        from statevla.machine.fair_threads import FairThreads

        threads = FairThreads()
    with threads:

        def step() -> None:
            call()
            if hasattr(threads, "step"):
                threads.step()

        seconds_of(step, 3, 8.0)
        return seconds_of(step, 6, 12.0)


@contextlib.contextmanager
def code_of(revision: str) -> Iterator[dict[str, dict[str, str]]]:
    """Today's code, and that of a git revision if there is one, each with the environment that makes it be imported."""
    now = {"now": {"PYTHONPATH": str(ROOT / "src")}}
    if not revision:
        yield now
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", revision, "src", "conf"], capture_output=True)
        if archive.returncode:
            raise SystemExit(f"--before {revision}: expected a revision of this repository; see git log")
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")
        yield {**now, "before": {"PYTHONPATH": str(Path(folder) / "src")}}


@contextlib.contextmanager
def busy_neighbours(count: int) -> Iterator[None]:
    """Programs that want a core each."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def take_turns(
    args: Args, codes: dict[str, dict[str, str]], cases: dict[str, str]
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every call by case and code; each case's codes run right after one another."""
    samples: dict[str, dict[str, list[float]]] = {case: {code: [] for code in codes} for case in cases}
    flags = ["--threads", str(args.threads), "--seed", str(args.seed)]
    for _ in range(args.turns):
        for case, what in cases.items():
            for code, changes in codes.items():
                samples[case][code] += run_child(__file__, what, flags, changes)
    return samples


def measure_acting(args: Args, codes: dict[str, dict[str, str]]) -> dict[str, Any]:
    cases = {f"{size}, {p}": f"acting:{preset}:{p}" for size, preset in ACTING.items() for p in ("bf16", "fp32")}
    peaks = [peak_gflops()]
    samples = take_turns(args, codes, cases)
    peaks.append(peak_gflops())
    counted = {size: operations(acting_case(preset, "count")) for size, preset in ACTING.items()}
    rows = []
    for case, by_code in samples.items():
        now, flops = median(by_code["now"]), counted[case.split(",")[0]]
        before = median(by_code["before"]) / now if "before" in by_code else float("nan")
        share = flops / now / 1e9 / max(peaks)
        rows.append([case, 1e3 * now, 1e3 * quantiles(by_code["now"], n=20)[-1], flops / 1e9, share, before])
    columns = ["one chunk, batch 1", "median ms", "p95 ms", "GFLOP", "x of bf16 peak", "before / now"]
    print_table(f"acting, {args.threads} threads", columns, rows)
    for size in ACTING:
        update_summary({of_host(f"sample_actions_ms_{size}", args.host): 1e3 * median(samples[f"{size}, bf16"]["now"])})
    return {"seconds": samples, "flops": counted, "peak_gflops": peaks}


def measure_training(args: Args, codes: dict[str, dict[str, str]]) -> dict[str, Any]:
    cases = {name: "training:" + ":".join(map(str, what)) for name, what in TRAINING.items()}
    peaks = [peak_gflops()]
    samples = take_turns(args, codes, cases)
    peaks.append(peak_gflops())
    counted = {name: operations(training_case(*what, precision="fp32")) for name, what in TRAINING.items()}
    rows = []
    for case, by_code in samples.items():
        now, size = median(by_code["now"]), TRAINING[case][2]
        before = median(by_code["before"]) / now if "before" in by_code else float("nan")
        gflops = counted[case] / now / 1e9
        rows.append([case, 1e3 * now, size / now, gflops, gflops / max(peaks), before])
    columns = ["one step", "median ms", "samples/s", "GFLOP/s", "x of bf16 peak", "before / now"]
    print_table(f"training in bf16, {args.threads} threads", columns, rows)
    names = {"phase 1, compact": "train_windows_per_s_compact", "phase 1, full": "train_samples_per_s_full"}
    for case, name in {**names, "phase 2": "train_chunks_per_s_compact"}.items():
        update_summary({of_host(name, args.host): TRAINING[case][2] / median(samples[case]["now"])})
    return {"seconds": samples, "flops": counted, "peak_gflops": peaks}


def measure_neighbours(args: Args, codes: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Without a number of threads that somebody chose: it is the program that has to cope."""
    samples: dict[str, dict[str, dict[str, list[float]]]] = {}
    for count in NEIGHBOURS:
        with busy_neighbours(count):
            samples[str(count)] = take_turns(args, codes, {"training": "neighbours", "acting": "paced"})
    rows = []
    for count in NEIGHBOURS:
        fair = min(1.0, args.threads / (args.threads + count))
        row: list[object] = [str(count), fair]
        for code in codes:
            alone, here = samples["0"]["training"][code], samples[str(count)]["training"][code]
            got = (len(here) / sum(here)) / (len(alone) / sum(alone))
            p95 = quantiles(samples[str(count)]["acting"][code], n=20)[-1]
            row += [32 * len(here) / sum(here), got / fair, 1e3 * p95]
        rows.append(row)
    columns = ["neighbours", "fair share"]
    for code in codes:
        columns += [f"{code}: windows/s", "of fair share", f"p95 ms at {QUERIES_PER_S} queries/s"]
    print_table(f"beside busy neighbours, {args.threads} threads", columns, rows)
    return {"seconds": samples, "queries_per_s": QUERIES_PER_S}


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.child:
        keep_freed_memory()  # as training and acting do
        print(json.dumps(child(args)))
        return
    parts = {"acting": measure_acting, "training": measure_training, "neighbours": measure_neighbours}
    wanted = parts if args.part == "all" else {args.part: parts[args.part]}
    with code_of(args.before) as codes:
        for name, measure in wanted.items():
            tree = {"environment": environment(args.seed), "before": args.before, **measure(args, codes)}
            write_results(of_host(f"model_{name}", args.host), tree)


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Args)))
