"""Draw the measured figures of docs/ from the raw results, as SVG.

python benchmarks/render_figures.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deployment_tables import KINDS
from statevla.commands.entry import run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS, FIGURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "figures"
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # Okabe & Ito
STEPS_AROUND = (-32, 97)
"""What is drawn of the episodes around a disturbance, in control steps."""


def main() -> None:
    import matplotlib

    matplotlib.rcParams.update({"svg.hashsalt": "statevla", "font.size": 9, "axes.grid": True, "grid.alpha": 0.25})
    draw(alarm, RESULTS / "alarm.json", FIGURES / "alarm.svg")
    draw(world_model, RESULTS / "experiments" / "object-keypoints-s0.json", FIGURES / "world_model.svg")


def draw(picture: Callable[[dict[str, Any]], Figure], source: Path, target: Path) -> None:
    """`picture` of a file of results, without a date, so that the same results give the same file."""
    figure = picture(json.loads(source.read_text()))
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})
    print(target.relative_to(ROOT))


def alarm(results: dict[str, Any]) -> Figure:
    """Surprise and novelty over the control steps before and after a disturbance: median, and middle half."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3), layout="constrained")
    for axis, detector in zip(figure.subplots(1, 2), ("surprise", "novelty")):
        for (kind, label), color in zip(KINDS.items(), COLORS):
            steps, low, middle, high = _around(results["episodes"][kind], detector)
            axis.plot(steps, middle, color=color, marker="o", markersize=3, label=label)
            axis.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        threshold = results["results"][detector]["demonstrations"]["threshold"]
        axis.axhline(threshold, color="black", linestyle="--", linewidth=1, label="threshold")
        axis.axvline(0, color="#888888", linewidth=1)
        axis.set(xlabel="control steps since the disturbance", title=detector, ylim=(0, None))
        axis.legend(frameon=False, fontsize=8)
    return figure


def _around(episodes: list[dict[str, Any]], detector: str) -> tuple[np.ndarray, ...]:
    """Quartiles of a score by the time of the look relative to the first disturbed moment."""
    width = 16
    edges = np.arange(STEPS_AROUND[0], STEPS_AROUND[1], width)
    bins: list[list[float]] = [[] for _ in edges]
    for episode in episodes:
        if episode["visible_from"] is None:
            continue
        values = episode[detector]
        for look, value in zip(episode["looks"][len(episode["looks"]) - len(values) :], values):
            place = int((look - episode["visible_from"] - edges[0]) // width)
            if 0 <= place < len(bins):
                bins[place].append(value)
    kept = [i for i, found in enumerate(bins) if len(found) >= 10]
    quartiles = np.array([np.percentile(bins[i], (25, 50, 75)) for i in kept]).T
    return (edges[kept] + width / 2, *quartiles)


def world_model(experiment: dict[str, Any]) -> Figure:
    """Copy skill by horizon, and what probes read out of z beside the baselines."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3.2), layout="constrained")
    skill_axis, probe_axis = figure.subplots(1, 2, width_ratios=(1, 2))
    values = experiment["diagnostics"]["world_model"]
    skills = {int(key.rpartition("_")[2]): v for key, v in values.items() if key.startswith("copy_skill_")}
    skill_axis.plot(list(skills), list(skills.values()), color=COLORS[0], marker="o")
    skill_axis.axhline(0, color="black", linestyle="--", linewidth=1)
    skill_axis.set(xlabel="retained steps ahead", ylabel="copy skill (0: as good as copying)", ylim=(-0.05, 1.05))
    probes = experiment["diagnostics"]["probes"]
    kinds = list(next(iter(probes.values())))
    width = 0.8 / len(kinds)
    for number, (kind, color) in enumerate(zip(kinds, COLORS)):
        heights = [max(scores[kind] or 0.0, 0.0) for scores in probes.values()]
        label = {"ridge": "z, ridge", "mlp": "z, MLP"}.get(kind, kind.replace("_", " "))
        probe_axis.bar(np.arange(len(probes)) + number * width, heights, width, color=color, label=label)
    names = [name.replace("_", " ").replace("object from hand", "object\nfrom hand") for name in probes]
    probe_axis.set_xticks(np.arange(len(probes)) + 0.4 - width / 2, names, fontsize=8)
    probe_axis.set(ylabel="R² on held-out episodes", ylim=(0, 1.45))
    probe_axis.legend(frameon=False, fontsize=7, ncols=3, loc="upper center")
    return figure


if __name__ == "__main__":
    run_command(main)
