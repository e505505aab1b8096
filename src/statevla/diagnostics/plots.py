"""Pictures of an evaluation, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from statevla.checkpoints.comparisons import names_with_units
from statevla.diagnostics.actions import ChunkSamples
from statevla.machine.extras import install_line, missing
from statevla.machine.storage import replacing, writing

NUM_CHUNKS, MAX_COLUMNS = 4, 4


def draw_all(results: dict[str, Any], samples: ChunkSamples | None, folder: Path) -> list[Path]:
    """Write every picture that the results have data for; returns their paths, none without the extra `plots`."""
    if missing("plots"):
        return []
    figures = {}
    if "normalized" in results.get("actions", {}):
        figures["action_errors"] = _draw_errors(results["actions"])
    if samples is not None:
        figures["chunks"] = _draw_chunks(samples)
    figures |= {part: draw(results[part]) for part, draw in _DRAWINGS.items() if results.get(part)}
    return [_save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def names_of(pictures: Sequence[Path]) -> str:
    """What `draw_all` has written, in words."""
    return ", ".join(path.name for path in pictures) or f"no pictures ({install_line('plots')} draws them)"


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _save(figure: Any, path: Path) -> Path:
    with writing(path), replacing(path) as part:
        figure.savefig(part, format="png", dpi=110)
    return path


def _draw_errors(actions: dict[str, Any]) -> Any:
    """Left: over the steps of the chunk; right: a bar per number, whatever their number."""
    names, still = names_with_units(actions), actions.get("repeat_state")
    figure, (steps, axis) = _figure(1, 2, (10, max(3.5, 0.8 + 0.24 * len(names))))
    normalized = actions["normalized"]
    steps.plot(normalized["mae_per_step"], marker="o", markersize=4, label="policy")
    axis.barh(range(len(names)), normalized["mse_per_dim"])
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.axvline(normalized["mse_of_mean_action"], color="black", linestyle="--", label="mean action, on average")
    if still is not None:
        if len(still["names"]) == len(names):
            steps.plot(still["normalized"]["mae_per_step"], marker="o", markersize=4, label="present state")
        rows = [actions["names"].index(name) for name in still["names"]]
        axis.plot(still["normalized"]["mse_per_dim"], rows, "|", color="tab:red", markersize=9, label="present state")
    steps.set(xlabel="step of the chunk", ylabel="mean absolute error (normalised)", ylim=(0, None))
    steps.legend(fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel="mean squared error (normalised)")
    axis.legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def _draw_chunks(samples: ChunkSamples) -> Any:
    """A panel per number: chunks of some frames side by side, the demonstrated ones and every sampled one."""
    # Whole chunks say most; the ends of episodes are cut short.
    whole = np.flatnonzero(samples.valid.all(axis=1))
    whole = whole if len(whole) else np.arange(len(samples.truth))
    shown = whole[np.linspace(0, len(whole) - 1, min(NUM_CHUNKS, len(whole))).astype(int)]
    count, horizon = len(samples.names), samples.truth.shape[1]
    columns = min(MAX_COLUMNS, count)
    rows = -(-count // columns)
    figure, axes = _figure(rows, columns, (2.5 * columns, 1.5 * rows + 0.4))
    for axis in axes[count:]:
        axis.set_visible(False)
    for dim, (name, axis) in enumerate(zip(samples.names, axes)):
        for place, index in enumerate(shown):
            valid = samples.valid[index]
            steps = place * (horizon + 1) + np.flatnonzero(valid)
            axis.plot(steps, samples.sampled[:, index, :, dim][:, valid].T, color="tab:blue", alpha=0.5, linewidth=1)
            axis.plot(steps, samples.truth[index, valid, dim], color="black", linewidth=1.5)
        axis.set_title(name, fontsize=8)
        axis.set_xticks([])
        axis.tick_params(labelsize=6)
    title = f"chunks of {len(shown)} frames side by side: demonstrated (black), sampled (blue); normalised"
    figure.suptitle(title, fontsize=9)
    return figure


def _draw_world_model(values: dict[str, float]) -> Any:
    figure, axes = _figure(1, 2, (10, 3.5))
    trivial_answers = (("copy_skill", 0.0, "copying the present"), ("action_sensitivity", 1.0, "ignoring actions"))
    for axis, (name, trivial, label) in zip(axes, trivial_answers):
        points = {int(key.rpartition("_")[2]): value for key, value in values.items() if key.startswith(name)}
        axis.plot(list(points), list(points.values()), marker="o")
        axis.axhline(trivial, color="black", linestyle="--", label=label)
        axis.set(xlabel="retained steps ahead", ylabel=name.replace("_", " "))
        axis.legend()
    return figure


def _draw_probes(probes: dict[str, dict[str, float]]) -> Any:
    figure, (axis,) = _figure(1, 1, (10, 4))
    kinds = list(next(iter(probes.values())))
    width = 0.8 / len(kinds)
    for offset, kind in enumerate(kinds):
        heights = [max(scores[kind], -0.2) for scores in probes.values()]
        axis.bar(np.arange(len(probes)) + offset * width, heights, width, label=kind.replace("_", " "))
    axis.set_xticks(np.arange(len(probes)) + 0.4 - width / 2, [name.replace("_", " ") for name in probes])
    axis.set(ylabel="R² on held-out episodes (cut at -0.2)", ylim=(-0.2, 1))
    axis.legend(fontsize=8)
    return figure


def _draw_goal_places(squares: Sequence[dict[str, float]]) -> Any:
    """The table as the front camera sees it: the robot above, its left (y > 0) on the right."""
    figure, (axis,) = _figure(1, 1, (6, 5))
    x, y, medians = (np.array([square[key] for square in squares]) for key in ("x_m", "y_m", "median_m"))
    points = axis.scatter(y, x, c=100 * medians, cmap="YlOrRd", vmin=0, s=900, marker="s")
    for square, across, along in zip(squares, y, x):
        axis.text(across, along, f"{100 * square['median_m']:.0f}", ha="center", va="center", fontsize=8)
    axis.invert_yaxis()
    axis.margins(0.15)
    axis.set(
        xlabel="y (m)",
        ylabel="x (m)",
        title="goal read off z before the hand moves, cm off\n(medians over all episodes, most trained on)",
    )
    figure.colorbar(points, ax=axis)
    return figure


def _draw_object_surprise(values: dict[str, Any]) -> Any:
    figure, (axis,) = _figure(1, 1, (6, 3.5))
    kinds = ("repeated", "unmoved", "moved")
    axis.bar(kinds, [values[f"{kind}_ratio"] for kind in kinds], color=("tab:gray", "tab:blue", "tab:red"))
    axis.axhline(1.0, color="black", linestyle="--")
    title = f"pictures from {values['source']}, {values['num_pairs']} pairs, p = {values['p_value']:.2g}"
    axis.set(ylabel="median surprise over that of the true frame", title=title)
    return figure


_DRAWINGS: dict[str, Callable[[Any], Any]] = {
    "world_model": _draw_world_model,
    "probes": _draw_probes,
    "goal_places": _draw_goal_places,
    "object_surprise": _draw_object_surprise,
}
"""Part of the results → what draws it into a picture of the same name."""
