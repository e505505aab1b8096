"""Tables of docs/performance.md from `benchmarks/results/model_<part>.json`: acting, training, busy neighbours."""

from __future__ import annotations

from statistics import median, quantiles
from typing import Any

from bench_model import TRAINING

WINDOWS = TRAINING["phase 1, compact"][2]


def performance_tables(acting: dict[str, Any], training: dict[str, Any], neighbours: dict[str, Any]) -> str:
    """All tables, of the three parts' results."""
    machine, versions = training["environment"]["machine"], training["environment"]["versions"]
    peak = max(acting["peak_gflops"] + training["peak_gflops"])
    where = f"{machine['cpu']} (family/model {machine['cpu_family_model']}), {machine['num_threads']} threads"
    lines = [
        f"Measured on {where}, PyTorch {versions['torch']}, against the code of `{training['before']}`; the peak in",
        f"bfloat16 was {peak:.0f} GFLOP/s. Operations are those of products and convolutions.",
        "",
        *acting_table(acting, peak),
        "",
        *training_table(training, peak),
        "",
        *neighbours_table(neighbours, machine["num_threads"]),
    ]
    return "\n".join(lines)


def acting_table(acting: dict[str, Any], peak: float) -> list[str]:
    lines = [
        "| one chunk, batch 1 | median | p95 | products | share of peak | before | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, seconds in acting["seconds"].items():
        now, before = (median(seconds[code]) for code in ("now", "before"))
        flops = acting["flops"][case.split(",")[0]]
        p95 = quantiles(seconds["now"], n=20)[-1]
        lines.append(
            f"| {case} | {1e3 * now:.2f} ms | {1e3 * p95:.2f} ms | {flops / 1e9:.2f} GFLOP | "
            f"{100 * flops / now / 1e9 / peak:.0f} % | {1e3 * before:.1f} ms | {before / now:.1f} |"
        )
    return lines


def training_table(training: dict[str, Any], peak: float) -> list[str]:
    lines = [
        "| one training step, bf16 | batch | now | rate | share of peak | before | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, seconds in training["seconds"].items():
        now, before = (median(seconds[code]) for code in ("now", "before"))
        batch, gflops = TRAINING[case][2], training["flops"][case] / now / 1e9
        lines.append(
            f"| {case} | {batch} | {1e3 * now:.0f} ms | {batch / now:.1f}/s, {gflops:.0f} GFLOP/s | "
            f"{100 * gflops / peak:.0f} % | {1e3 * before:.0f} ms | {before / now:.2f} |"
        )
    return lines


def neighbours_table(neighbours: dict[str, Any], threads: int) -> list[str]:
    pace = neighbours["queries_per_s"]
    lines = [
        "| busy neighbours | fair share | windows/s | of the fair share | before: windows/s | of the fair share "
        f"| p95 at {pace} queries/s | before |",
        "|---|---|---|---|---|---|---|---|",
    ]
    alone = neighbours["seconds"]["0"]["training"]
    for count, cases in neighbours["seconds"].items():
        fair = min(1.0, threads / (threads + int(count)))
        cells = [count, f"{100 * fair:.0f} %"]
        for code in ("now", "before"):
            rate = len(cases["training"][code]) / sum(cases["training"][code])
            share = rate / (len(alone[code]) / sum(alone[code])) / fair
            cells += [f"{WINDOWS * rate:.0f}", f"{100 * share:.0f} %"]
        cells += [f"{1e3 * quantiles(cases['acting'][code], n=20)[-1]:.1f} ms" for code in ("now", "before")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
