"""The tables of docs/scaling.md: what a million episodes take, reckoned from measured rates."""

from __future__ import annotations

from statistics import median
from typing import Any

from bench_model import TRAINING

EPISODES, STEPS = 1e6, 150
"""An episode of LIBERO has some 150 control steps."""
FRAMES = EPISODES * STEPS
GPUS, CORES = 8, 128
"""Of the machine that the tables are about."""
GPU_PEAK = 989e12
"""Dense bfloat16 operations a second of an H100 or H200, as its maker says."""
GPU_SHARES = (0.05, 0.2)
"""Parts of that peak which small models get; assumed, not measured."""


def scaling_tables(
    collect: dict[str, Any], loader: dict[str, Any], training: dict[str, Any], processes: dict[str, Any]
) -> str:
    """All tables, of the results of `bench_collect`, `bench_loader`, `bench_model` and `bench_processes`."""
    parts = [collect_table(collect), cache_table(loader), gpu_table(loader, training), process_table(processes)]
    return "\n\n".join("\n".join(lines) for lines in parts)


def collect_table(collect: dict[str, Any]) -> list[str]:
    lines = [
        f"| simulated demonstrations | steps/s of a core | demonstrations an hour and core | a million, {CORES} cores "
        "|",
        "|---|---|---|---|",
    ]
    for world, by_code in collect["summaries"].items():
        rate = by_code["now"]["demonstrations_per_hour"]
        lines.append(
            f"| `{world}` | {by_code['now']['steps_per_s']:.0f} | {rate:,.0f} | {_hours(EPISODES / rate / CORES)} |"
        )
    return lines


def cache_table(loader: dict[str, Any]) -> list[str]:
    lines = [
        f"| cache of {FRAMES:,.0f} frames, {loader['cameras']} cameras, {loader['image_size']} px | size | compressing"
        f", {CORES} cores | checking all of it, {CORES} cores | frames/s that {CORES} cores load |",
        "|---|---|---|---|---|",
    ]
    for codec, room in loader["codecs"].items():
        size = FRAMES * room["bytes_per_frame"]
        encoding = "–"
        if "encode_frames_per_cpu_s" in room:
            encoding = _hours(FRAMES / room["encode_frames_per_cpu_s"] / CORES / 3600)
        checking = size / (loader["checksum_gb_per_cpu_s"]["sha256"] * 1e9 * CORES) / 3600
        loading = CORES * _loading(loader, codec)
        lines.append(f"| `{codec}` | {size / 1e12:.1f} TB | {encoding} | {_hours(checking)} | {loading:,.0f} |")
    return lines


def gpu_table(loader: dict[str, Any], training: dict[str, Any]) -> list[str]:
    shares = " | ".join(f"at {100 * share:.0f} % of a GPU's peak" for share in GPU_SHARES)
    lines = [
        f"| phase 1, {GPUS} GPUs, every frame begins a window once | operations a window | {shares} | frames/s for "
        f"that | loading alone, {CORES} cores, raw |",
        "|---|---|" + "---|" * (len(GPU_SHARES) + 2),
    ]
    for case, frames, pixels in (("phase 1, compact", 3, 1.0), ("phase 1, full", 2, (224 / loader["image_size"]) ** 2)):
        operations = training["flops"][case] / TRAINING[case][2]
        rates = [GPUS * share * GPU_PEAK / operations for share in GPU_SHARES]
        loading = CORES * _loading(loader, "raw") / pixels
        cells = [_hours(FRAMES / rate / 3600) for rate in rates]
        lines.append(
            f"| {case.split(', ')[1]} | {operations / 1e9:.2f} GFLOP | {' | '.join(cells)} | "
            f"{' to '.join(f'{frames * rate:,.0f}' for rate in rates)} | {_hours(FRAMES * frames / loading / 3600)} |"
        )
    return lines


def process_table(processes: dict[str, Any]) -> list[str]:
    alone = next(iter(processes["windows_per_s"].values()))
    lines = ["| processes x threads | windows/s | of one process |", "|---|---|---|"]
    for name, rate in processes["windows_per_s"].items():
        rates = [median(run) for run in processes["samples"][name]]
        spread = f"{min(rates):.0f} to {max(rates):.0f}"
        lines.append(f"| {name} | {rate:.0f} (runs: {spread}) | {100 * rate / alone:.0f} % |")
    return lines


def _loading(loader: dict[str, Any], codec: str) -> float:
    """Frames a second that one core loads."""
    return max(float(run["frames_per_cpu_s"]) for run in loader["runs"] if run["codec"] == codec)


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"
