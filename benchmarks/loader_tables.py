"""The table of docs/own-data.md: what a frame cache takes and gives, raw and compressed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def cache_table(loader: Mapping[str, Any]) -> str:
    """A row for each value of `data.cache_codec`, out of `benchmarks/results/loader.json`."""
    size, cameras = loader["image_size"], loader["cameras"]
    rows = [
        f"| `data.cache_codec` | bytes per frame of {cameras} cameras, {size} px | frames/s of one core, loading | "
        "decoding alone | frames/s, cold | error |",
        "|---|---|---|---|---|---|",
    ]
    for codec, room in loader["codecs"].items():
        runs = [run for run in loader["runs"] if run["codec"] == codec]
        warm = max(run["frames_per_cpu_s"] for run in runs if run["page_cache"] == "warm")
        cold = max(run["frames_per_s"] for run in runs if run["page_cache"] == "cold")
        decoding = f"{room['decode_frames_per_cpu_s']:,}" if "decode_frames_per_cpu_s" in room else "none"
        error = "none"
        if room.get("largest_error"):
            error = f"{room['psnr_db']} dB PSNR, at most {room['largest_error']} of 255"
        rows.append(f"| `{codec}` | {room['bytes_per_frame']:,} | {warm:,.0f} | {decoding} | {cold:,.0f} | {error} |")
    return "\n".join(rows)
