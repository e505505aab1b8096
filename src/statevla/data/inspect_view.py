"""An inspection as a text table and as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from statevla.data.inspect import Inspection, TaskSummary
from statevla.machine.storage import write_text
from statevla.robots import RobotSpec
from statevla.transforms import FieldStatistics

_HINT = "two values only; this action group would declare them binary"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222;
       background: #fff }
table { border-collapse: collapse; margin: .6em 0 }
td, th { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left }
img { max-width: 100%; image-rendering: pixelated }
.bad { color: #a00 } .good { color: #060 } .frames { display: inline-block; margin: 0 1em 1em 0 }
"""


def facts(result: Inspection) -> list[tuple[str, str]]:
    """The head of the report: name and value."""
    lengths = [length for task in result.tasks for length in task.lengths] or [0]
    read = "" if result.num_read == result.num_episodes else f" ({result.num_read} read)"
    return [
        ("path", result.path),
        ("format", result.format or "unknown"),
        ("episodes", f"{result.num_episodes}{read}, {result.num_steps} steps"),
        ("length", f"{min(lengths)} to {max(lengths)} steps, mean {np.mean(lengths):.0f}"),
        *(_robot_facts(result.robot, result) if result.robot else [("robot", "unknown")]),
        ("objects", ", ".join(result.objects) or "no poses"),
        ("no-ops", f"{result.no_op_share:.1%} of the actions"),
    ]


def _robot_facts(robot: RobotSpec, result: Inspection) -> list[tuple[str, str]]:
    fields = []
    for field in robot.state:
        parts = [str(field.size), field.units or "units not known", *([] if field.policy else ["not for the policy"])]
        fields.append(f"{field.name} ({', '.join(parts)})")
    cameras = []
    for camera in robot.cameras:
        sizes = " / ".join(result.image_sizes.get(camera.name, [])) or "?"
        cameras.append(f"{camera.name} {sizes} px, stored {camera.orientation.value}, fit {camera.fit}")
    return [
        ("robot", f"{robot.name}, {robot.control_freq_hz:g} Hz"),
        ("actions", robot.describe_actions()),
        ("state", "; ".join(fields) or "none"),
        ("cameras", "; ".join(cameras) or "none"),
    ]


def print_inspection(result: Inspection, console: Console) -> None:
    """Print the report as tables."""
    head = Table.grid(padding=(0, 2))
    for name, value in facts(result):
        head.add_row(f"[bold]{name}", escape(value))
    console.print(head)
    tasks = Table("task", "episodes", "steps", "instruction", title="tasks", title_justify="left")
    for task in result.tasks:
        tasks.add_row(escape(task.task), str(len(task.lengths)), str(sum(task.lengths)), escape(task.instruction))
    console.print(tasks)
    for title, names, values in _tables(result):
        table = Table(title, *_COLUMNS, title_justify="left")
        for row in _rows(names, values):
            table.add_row(*map(escape, row))
        console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    for hint in result.binary_hints:
        console.print(f"{_HINT}: {hint}", markup=False, highlight=False)
    if not result.anomalies:
        console.print("[green]no anomalies")
        return
    console.print(f"[red]{len(result.anomalies)} anomalies")
    for anomaly in result.anomalies:
        console.print(f"  {anomaly.where}: {anomaly.message}", markup=False, highlight=False)


def write_html(result: Inspection, path: Path) -> None:
    """Write the report with pictures and plots; the page refers to nothing outside itself.

    Raises:
        UserError: it cannot be written.
    """
    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(result.path)}</title><style>{_STYLE}</style>"]
    parts.append(f"<h1>Data set {html.escape(Path(result.path).name)}</h1>")
    rows = "".join(f"<tr><td>{name}<td>{html.escape(value)}" for name, value in facts(result))
    parts.append(f"<table>{rows}</table>")
    parts += [f"<p>{html.escape(note)}</p>" for note in result.notes]
    parts += [f"<p>{_HINT}: <code>{html.escape(hint)}</code></p>" for hint in result.binary_hints]
    if result.anomalies:
        found = "".join(f"<li><b>{html.escape(a.where)}</b> {html.escape(a.message)}" for a in result.anomalies)
        parts.append(f"<h2 class=bad>{len(result.anomalies)} anomalies</h2><ul class=bad>{found}</ul>")
    else:
        parts.append("<p class=good>No anomalies.</p>")
    parts.append("<h2>Tasks</h2>")
    parts += [_task_html(task) for task in result.tasks]
    for title, names, values in _tables(result):
        cells = "".join("<tr><td>" + "<td>".join(map(html.escape, row)) for row in _rows(names, values))
        parts.append(f"<h2>{title}</h2><table><tr><th><th>{'<th>'.join(_COLUMNS)}{cells}</table>")
        parts.append(f"<img alt='histograms of {title}' src='{_histograms(names, values)}'>")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(parts), "choose another file")


_HISTOGRAMS_A_ROW = 8
_COLUMNS = ("mean", "std", "min", "q01", "q99", "max")


def _tables(result: Inspection) -> list[tuple[str, tuple[str, ...], np.ndarray]]:
    """Title, one label per number, and values `[steps, n]`."""
    robot, found = result.robot, []
    if robot is None:
        return []
    if len(result.actions):
        found.append(("actions", robot.action_names, result.actions))
    fields = [field for field in robot.state if field.name in result.robot_states]
    if fields:
        labels = [f"{f.name} {dim}" + (f" ({f.units})" if f.units else "") for f in fields for dim in f.dims]
        values = np.concatenate([result.robot_states[field.name] for field in fields], axis=1)
        found.append(("robot state", tuple(labels), values))
    return found


def _rows(names: tuple[str, ...], values: np.ndarray) -> list[tuple[str, ...]]:
    statistics = FieldStatistics.of(values)
    return [
        (label, *(f"{getattr(statistics, column)[dim]:.3f}" for column in _COLUMNS)) for dim, label in enumerate(names)
    ]


def _task_html(task: TaskSummary) -> str:
    title = f"<h3>{html.escape(task.instruction)}</h3><p>{len(task.lengths)} episodes, {sum(task.lengths)} steps</p>"
    pictures = "".join(
        f"<div class=frames><img alt='{html.escape(camera)}' src='{_png(np.concatenate(list(frames), axis=1))}'>"
        f"<br>{html.escape(camera)}: first, middle, last frame</div>"
        for camera, frames in task.pictures.items()
    )
    return title + pictures


def _png(picture: np.ndarray) -> str:
    from matplotlib import image

    buffer = io.BytesIO()
    image.imsave(buffer, picture, format="png")
    return _data_url(buffer)


def _histograms(names: tuple[str, ...], values: np.ndarray) -> str:
    from matplotlib.figure import Figure

    columns = min(values.shape[1], _HISTOGRAMS_A_ROW)
    rows = -(-values.shape[1] // columns)
    figure = Figure(figsize=(2.0 * columns, 1.8 * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[values.shape[1] :]:
        axis.set_axis_off()
    for dim, axis in enumerate(axes.flat[: values.shape[1]]):
        axis.hist(values[:, dim], bins=40, color="#47a")
        axis.set_title(names[dim].replace("$", r"\$"), fontsize=6 if len(names[dim]) > 24 else 8)
        axis.tick_params(labelsize=6)
        axis.set_yticks([])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return _data_url(buffer)


def _data_url(buffer: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
