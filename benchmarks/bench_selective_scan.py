"""The selective scan on the CPU: time and memory against other implementations of Mamba-1.

    python benchmarks/bench_selective_scan.py [--threads 2] [--lengths 128 395 …] [--parts sweep memory avx2 roofline]

Compares one layer of the spec's encoder (d_inner 512, 16 states, float32, all of D, z, bias and softplus):

- `statevla`: this package's kernel; `chunked`: its fallback in plain PyTorch operators;
- `sequential`: one PyTorch step per token, the published reference algorithm, under autograd;
- `huggingface`: the CPU path of `transformers` (`mamba_selective_scan`: what `MambaModel` runs without CUDA kernels);
- `mambapy`: the parallel scan of that package.

Cases whose predicted time is over `--limit-s` are skipped, and the results say so. Peak memory: each case in a process
of its own, the rise of the resident-set peak (VmHWM, reset before) over one call, after a warm-up on a short sequence.
AVX2: the kernel compiled for a CPU without AVX-512, in processes that alternate. Writes
`benchmarks/results/selective_scan.json`, or `selective_scan_<parts>.json`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from harness import alternate, environment, of_host, print_table, run_child, update_summary, write_results
from statevla.commands.entry import run_command
from statevla.model.mamba import selective_scan
from statevla.model.mamba.backends import ScanInputs
from statevla.model.mamba.scan_reference import scan_sequential

INNER, STATES = 512, 16
AVX2_CPU = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
Scan = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Args:
    """Measure the selective scan."""

    threads: int = 2
    """CPU threads."""
    lengths: tuple[int, ...] = (128, 256, 395, 1024, 2048, 4096)
    """Sequence lengths of the sweep (batch 1); 395 is measured with `batch_size` too."""
    batch_size: int = 8
    """The larger batch at length 395."""
    rounds: int = 30
    """Timed calls per case at most."""
    budget_s: float = 25.0
    """Seconds of timed calls per table row."""
    limit_s: float = 15.0
    """Skip a case whose one call is predicted to take longer."""
    parts: tuple[str, ...] = ("sweep", "memory", "avx2", "roofline")
    """What to measure."""
    host: str = ""
    """Names the results (`..._<host>`, in the summary too), so that those of another host stay."""
    seed: int = 0
    child: str = ""
    """Used by the script itself: `memory:<case>` or `time:<batch>`, in a process of its own."""


def make_inputs(batch: int, length: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {
        "u": normal(batch, length, INNER),
        "delta": normal(batch, length, INNER) - 2,
        "A": -torch.arange(1.0, STATES + 1).repeat(INNER, 1),
        "B": normal(batch, length, STATES),
        "C": normal(batch, length, STATES),
        "D": torch.ones(INNER),
        "z": normal(batch, length, INNER),
        "delta_bias": 0.1 * normal(INNER),
    }
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def ours(t: dict[str, Tensor]) -> Tensor:
    out = selective_scan(**t, delta_softplus=True, backend="numba")  # type: ignore[arg-type]
    assert isinstance(out, Tensor)
    return out


def chunked(t: dict[str, Tensor]) -> Tensor:
    out = selective_scan(**t, delta_softplus=True, backend="chunked")  # type: ignore[arg-type]
    assert isinstance(out, Tensor)
    return out


def sequential(t: dict[str, Tensor]) -> Tensor:
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    return scan_sequential(ScanInputs._make([*(t[n] for n in names), None, True]), False, False).out


def huggingface(t: dict[str, Tensor]) -> Tensor:
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    first = {n: t[n].transpose(1, 2) for n in ("u", "delta", "B", "C", "z")}
    out = mamba_selective_scan(
        first["u"], first["delta"], t["A"], first["B"], first["C"], t["D"], z=first["z"],
        delta_bias=t["delta_bias"], delta_softplus=True, use_mambapy=False,
    )  # fmt: skip
    return out.transpose(1, 2)


def mambapy(t: dict[str, Tensor]) -> Tensor:
    from mambapy.pscan import pscan

    # As `mambapy.mamba.MambaBlock.selective_scan` and its caller do.
    delta = F.softplus(t["delta"] + t["delta_bias"])
    decay = torch.exp(delta.unsqueeze(-1) * t["A"])
    inputs = delta.unsqueeze(-1) * t["B"].unsqueeze(2) * t["u"].unsqueeze(-1)
    y = (pscan(decay, inputs) @ t["C"].unsqueeze(-1)).squeeze(3) + t["D"] * t["u"]
    return y * F.silu(t["z"])


CASES: dict[str, Scan] = {
    "statevla": ours,
    "chunked": chunked,
    "sequential": sequential,
    "huggingface": huggingface,
    "mambapy": mambapy,
}


def call(scan: Scan, tensors: dict[str, Tensor], training: bool) -> Callable[[], object]:
    """One forward without gradients, or one forward and backward."""
    if not training:

        def forward() -> None:
            with torch.no_grad():
                scan(tensors)

        return forward
    grad = torch.ones_like(tensors["u"])
    return lambda: torch.autograd.grad(scan(tensors), list(tensors.values()), grad)


def check_agreement(seed: int) -> dict[str, float]:
    """Largest deviation of each implementation from ours on a short sequence: they must compute the same."""
    tensors = make_inputs(2, 40, seed)
    wanted = ours(tensors).detach()
    errors = {name: float((scan(tensors).detach() - wanted).abs().max()) for name, scan in CASES.items()}
    assert max(errors.values()) < 1e-3, errors
    return errors


def sweep(args: Args) -> list[dict[str, Any]]:
    """All cases over all lengths, forward and training, alternating within a row."""
    rows: list[dict[str, Any]] = []
    shapes = [(1, length) for length in args.lengths] + [(args.batch_size, 395)]
    for training in (False, True):
        last_s: dict[str, tuple[int, float]] = {}
        for batch, length in shapes:
            tensors = make_inputs(batch, length, args.seed)
            calls: dict[str, Callable[[], object]] = {}
            skipped: dict[str, str] = {}
            for name, scan in CASES.items():
                before, seconds = last_s.get(name, (batch * length, 0.0))
                power = 2 if training and name in ("sequential", "huggingface") else 1  # their backward is quadratic
                predicted = seconds * (batch * length / before) ** power
                if predicted > args.limit_s:
                    skipped[name] = f"skipped: one call predicted at {predicted:.0f} s"
                    continue
                calls[name] = call(scan, tensors, training)
                start = time.perf_counter()
                calls[name]()
                if batch == 1:
                    last_s[name] = (length, time.perf_counter() - start)
            samples = alternate(calls, args.rounds, warmup=1, budget_s=args.budget_s, burst_s=0.05)
            mode = "forward+backward" if training else "forward"
            rows.append({"mode": mode, "batch": batch, "length": length, "seconds": samples, "skipped": skipped})
            if length == 395:
                # Each call right after the other implementations', which leave nothing of ours in the caches.
                rows[-1]["seconds_without_warm_calls"] = alternate(calls, args.rounds, 0, args.budget_s)
            print(mode, batch, length, {n: f"{1e3 * statistics.median(s):.2f} ms" for n, s in samples.items()}, skipped)
    return rows


def status_kb(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(field)))


def memory_child(name: str, args: Args) -> None:
    """Print the rise of peak memory in MB over one training call."""
    call(CASES[name], make_inputs(1, 16, args.seed), True)()
    case = call(CASES[name], make_inputs(args.batch_size, 395, args.seed), True)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = status_kb("VmRSS")
    case()
    print(json.dumps((status_kb("VmHWM") - before) / 1024))


def time_child(batch: int, args: Args) -> None:
    """Print milliseconds of the kernel's training calls at length 395."""
    case = call(ours, make_inputs(batch, 395, args.seed), True)
    seconds = alternate({"statevla": case}, args.rounds, warmup=5)["statevla"]
    print(json.dumps([1e3 * s for s in seconds]))


def child(kind: str, args: Args, extra: dict[str, str] | None = None) -> Any:
    flags = ["--threads", str(args.threads), "--seed", str(args.seed), "--batch-size", str(args.batch_size)]
    return run_child(__file__, kind, flags, extra)


def memory(args: Args) -> dict[str, float]:
    """Peak MB of one training call, by case (the loops' memory grows with their time; they are left out)."""
    return {name: child(f"memory:{name}", args) for name in ("statevla", "chunked", "mambapy")}


def avx2(args: Args) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of our training call at length 395, for this CPU and for one without AVX-512, by batch."""
    samples: dict[str, dict[str, list[float]]] = {}
    for batch in (1, args.batch_size):
        case = samples[str(batch)] = {"native": [], "avx2": []}
        for _ in range(6):
            case["native"] += child(f"time:{batch}", args)
            case["avx2"] += child(f"time:{batch}", args, AVX2_CPU)
    return samples


def roofline(args: Args, training_ms: float, forward_ms: float) -> dict[str, float]:
    """How near the kernel comes to the time that its exponentials alone need (forward one, training two per state)."""
    from numba import njit

    from statevla.model.kernels import exponential, memory
    from statevla.model.kernels.call import LANES

    @njit
    def exponentials(source, target, vectors, repeats):
        for _ in range(repeats):
            for i in range(vectors):
                memory.store(target, i * LANES, exponential.exp2(memory.load(source, i * LANES)))  # type: ignore[call-arg]

    source, target = -torch.rand(2048), torch.empty(2048)
    repeats = 2000
    exponentials(source.data_ptr(), target.data_ptr(), 2048 // LANES, 1)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        exponentials(source.data_ptr(), target.data_ptr(), 2048 // LANES, repeats)
        best = min(best, time.perf_counter() - start)
    rate = 2048 * repeats / best
    bound_ms = 1e3 * 395 * INNER * STATES / (rate * args.threads)
    return {
        "exponentials_per_s_per_core": rate,
        "forward_bound_ms": bound_ms,
        "forward_fraction": bound_ms / forward_ms,
        "training_fraction": 2 * bound_ms / training_ms,
    }


def best_ms(rows: list[dict[str, Any]], mode: str, batch: int, name: str, protocol: str = "seconds") -> float:
    """The fastest call at length 395, in milliseconds: what other load on the machine disturbs least."""
    row = next(r for r in rows if (r["mode"], r["batch"], r["length"]) == (mode, batch, 395))
    return 1e3 * min(row[protocol][name])


def ratio(rows: list[dict[str, Any]], mode: str, batch: int, name: str, protocol: str = "seconds") -> float:
    """Its fastest training or forward call over our fastest, of calls that alternated."""
    return best_ms(rows, mode, batch, name, protocol) / best_ms(rows, mode, batch, "statevla", protocol)


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    if args.child:
        kind, _, name = args.child.partition(":")
        memory_child(name, args) if kind == "memory" else time_child(int(name), args)
        return
    tree: dict[str, Any] = {**environment(args.seed), "inner": INNER, "states": STATES}
    summary: dict[str, float] = {}
    tree["deviation_from_ours"] = check_agreement(args.seed)
    if "sweep" in args.parts:
        rows = tree["sweep"] = sweep(args)
        report_sweep(rows)
        for protocol, suffix in (("seconds", ""), ("seconds_without_warm_calls", "_without_warm_calls")):
            for name, key, batch in (("mambapy", "mambapy", args.batch_size), ("huggingface", "hf", 1)):
                speedup = ratio(rows, "forward+backward", batch, name, protocol)
                summary[f"scan_train_speedup_vs_{key}_L395{suffix}"] = speedup
        if "roofline" in args.parts:
            forward = best_ms(rows, "forward", 1, "statevla")
            training = best_ms(rows, "forward+backward", 1, "statevla")
            tree["roofline"] = roofline(args, training, forward)
            summary["scan_forward_fraction_of_exponential_bound"] = tree["roofline"]["forward_fraction"]
    if "memory" in args.parts:
        peak = tree["peak_memory_mb"] = memory(args)
        summary["scan_train_memory_ratio_vs_mambapy_L395"] = peak["mambapy"] / peak["statevla"]
        print_table(f"peak MB, batch {args.batch_size}, L 395, training", ("case", "MB"), list(peak.items()))
    if "avx2" in args.parts:
        tree["avx2_ms"] = avx2(args)
        for batch, timings in tree["avx2_ms"].items():
            summary[f"scan_avx2_slowdown_B{batch}"] = min(timings["avx2"]) / min(timings["native"])
    is_whole = set(args.parts) == set(Args.parts)
    name = "selective_scan" if is_whole else f"selective_scan_{'_'.join(args.parts)}"
    write_results(of_host(name, args.host), tree)
    update_summary({of_host(key, args.host): value for key, value in summary.items()})


def report_sweep(rows: list[dict[str, Any]]) -> None:
    table = []
    for row in rows:
        mine = min(row["seconds"]["statevla"])
        cells = [f"{row['mode']} B={row['batch']} L={row['length']}", 1e3 * mine]
        for name in list(CASES)[1:]:
            found = row["seconds"].get(name)
            cells.append(f"{min(found) / mine:.1f}x" if found else "skipped")
        table.append(cells)
    print_table(
        "selective scan, fastest calls: ours in ms, others as multiples",
        ("case", "statevla ms", *list(CASES)[1:]),
        table,
    )


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Args)))
