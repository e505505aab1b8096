"""Charts as inline SVG, in colours that are told apart without red-green vision (Okabe & Ito)."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

from statevla.report.sources import Run

BLUE, ORANGE, GREEN, PINK, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
_COLORS = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILION)
_BOOKKEEPING = {"kind", "step", "time", "learning_rate", "epoch", "samples_per_s", "grad_norm"}
_COPY_SKILL = re.compile(r"copy_skill_(\d+)$")
_salts = itertools.count()


def training_curves(run: Run) -> str:
    """Loss terms over the steps; held-out values as dots. Empty where nothing was logged."""
    train, validation = run.records("train"), run.records("validation")
    last = train[-1] if train else {}
    names = [name for name, value in last.items() if name not in _BOOKKEEPING and _is_number(value)]
    names = [name for name in names if any(abs(entry.get(name, 0.0) or 0.0) > 0 for entry in train)]
    if not names:
        return ""
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure, axes = _figure(rows, columns, (9.0, 2.3 * rows))
    for ax, name, color in zip(axes, names, itertools.cycle(_COLORS)):
        steps, values = _series(train, name)
        ax.plot(steps, values, color=color, linewidth=1.2, label="training")
        held_out = _series(validation, "loss" if name == "total" and not _has(validation, "total") else name)
        if held_out[0]:
            ax.plot(*held_out, color="#222222", marker="o", markersize=3, linewidth=0.8, label="held out")
        ax.set_title(name.replace("_", " "), fontsize=9)
        ax.grid(alpha=0.25)
        if len(values) == len(train) and min(values) > 0:
            _scale(ax, values)
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    axes[0].legend(fontsize=7, frameon=False)
    return _svg(figure)


def copy_skill_curves(run: Run) -> str:
    """How much better than copying the world model predicts, over training; empty for other phases."""
    validation = run.records("validation")
    names = sorted({name for entry in validation for name in entry if _COPY_SKILL.match(name)}, key=_horizon)
    if not names:
        return ""
    figure, (ax,) = _figure(1, 1, (9.0, 2.6))
    for name, color in zip(names, itertools.cycle(_COLORS)):
        steps, values = _series(validation, name)
        ax.plot(steps, values, color=color, marker="o", markersize=3, label=f"{_horizon(name)} frame(s) ahead")
    ax.axhline(0, color="#222222", linewidth=0.8, linestyle="--")
    ax.set(xlabel="step", ylabel="copy skill")
    # Early values may lie far below zero; what matters is above it.
    lowest = min(value for name in names for value in _series(validation, name)[1])
    ax.set_ylim(max(lowest - 0.1, -1.0), 1.0)
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8, frameon=False, ncols=4)
    return _svg(figure)


def success_bars(rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Success rates with their 95 % intervals.

    Args:
        rows: (label, rates as `summary.json` has them).
    """
    shown = [(label, rates) for label, rates in rows if rates.get("success_rate") is not None]
    if not shown:
        return ""
    figure, (ax,) = _figure(1, 1, (9.0, 0.7 + 0.34 * len(shown)))
    for place, (_, rates) in enumerate(shown):
        rate, (low, high) = rates["success_rate"], rates["interval_95"]
        ax.barh(place, rate, height=0.6, color=SKY)
        ax.plot([low, high], [place, place], color="#222222", linewidth=1.4)
        ax.plot([low, high], [place, place], "|", color="#222222", markersize=7)
    ax.set_yticks(range(len(shown)), [_short(label) for label, _ in shown], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    ax.grid(axis="x", alpha=0.25)
    return _svg(figure)


def surprise_curves(episodes: Sequence[dict[str, Any]], execute_steps: int, threshold: float | None) -> str:
    """Surprise over the control steps of simulated episodes, a line each; empty where none was recorded.

    Args:
        episodes: lines of `episodes.jsonl`.
        execute_steps: control steps from one look to the next.
        threshold: of the alarm, drawn dashed.
    """
    shown = [entry for entry in episodes if entry.get("surprise") and entry.get("success") is not None]
    if not shown:
        return ""
    figure, (ax,) = _figure(1, 1, (9.0, 2.8))
    labels = {True: "success", False: "failure"}
    for entry in shown:
        success, values = bool(entry["success"]), entry["surprise"]
        steps = [execute_steps * (number + 1) for number in range(len(values))]
        color = BLUE if success else VERMILION
        # One label per outcome: a legend of fifty lines tells nothing.
        ax.plot(steps, values, color=color, alpha=0.4, linewidth=0.9, label=labels.pop(success, None), marker=".")
    if threshold is not None:
        ax.axhline(threshold, color="#222222", linewidth=1.0, linestyle="--", label="alarm above")
    _scale(ax, [value for entry in shown for value in entry["surprise"]])
    ax.set(xlabel="control step", ylabel="surprise")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8, frameon=False, ncols=3)
    return _svg(figure)


def _scale(ax: Any, values: Sequence[float]) -> None:
    """Logarithmic where the positive values span more than a factor of thirty."""
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 30 * min(positive):
        ax.set_yscale("log")


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return figure, axes


def _svg(figure: Any) -> str:
    """The figure as an `<svg>` element that scales with the page."""
    import matplotlib

    # Several charts share a page: each needs ids of its own.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": f"chart {next(_salts)}"}
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    start, end = text.index("<svg"), text.index(">", text.index("<svg"))
    return re.sub(r' (width|height)="[^"]*"', "", text[start:end]) + text[end:]


def _series(records: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = [(entry["step"], entry[name]) for entry in records if _is_number(entry.get(name))]
    return [step for step, _ in points], [float(value) for _, value in points]


def _has(records: Sequence[dict[str, Any]], name: str) -> bool:
    return any(name in entry for entry in records)


def _horizon(name: str) -> int:
    match = _COPY_SKILL.match(name)
    assert match is not None
    return int(match[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(text: str, limit: int = 46) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
