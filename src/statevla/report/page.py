"""The page itself: sections out of what was found, in plain HTML that a phone can show."""

from __future__ import annotations

import base64
import html
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from statevla.checkpoints.comparisons import binary_lines, comparisons
from statevla.config import PHASES
from statevla.diagnostics.tables import Rows, action_rows, measured_rows
from statevla.machine.lock import only_writer_of
from statevla.machine.storage import check_own, write_text
from statevla.report.charts import copy_skill_curves, success_bars, surprise_curves, training_curves
from statevla.report.sources import Run, Sources, Tree, find_sources, read_episodes
from statevla.robots import RobotSpec

MAX_VIDEOS = 16
_PICTURES = {
    "action_errors.png": "Errors per step of the chunk and per dimension",
    "chunks.png": "Demonstrated chunks and sampled ones",
    "world_model.png": "World model",
    "probes.png": "Probes",
    "goal_places.png": "Where on the table the goal is known before the hand moves (all episodes, most trained on)",
    "object_surprise.png": "Surprise at an object that was moved",
}
_STYLE = """
:root { --ink: #1d232a; --soft: #5b6570; --line: #dfe3e8; --paper: #ffffff; --tile: #f4f6f8; --accent: #0072B2; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 62rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: .4rem 0 .2rem; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem;
  padding-top: .6rem; border-top: 1px solid var(--line); } h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 46rem; } .soft, figcaption, caption { color: var(--soft); font-size: .88rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.tile { background: var(--tile); border-radius: .5rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; color: var(--accent); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; margin: .4rem 0 1rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
.words th, .words td { text-align: left; white-space: normal; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem; }
th { font-weight: 600; } caption { text-align: left; padding-bottom: .2rem; }
figure { margin: .6rem 0 1.2rem; } img, svg { max-width: 100%; height: auto; }
.chart { overflow-x: auto; } .chart svg { width: 100%; min-width: 34rem; } svg text { font-family: inherit; }
.videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; }
video { width: 100%; border-radius: .4rem; background: #181a1e; }
pre { background: var(--tile); padding: .7rem .9rem; border-radius: .5rem; overflow-x: auto; font-size: .82rem; }
"""


def build_page(sources: Sources, title: str) -> str:
    """The whole page as one string that refers to nothing outside itself.

    Raises:
        UserError: a picture, a video or a log is a link out of the folders that were looked through.
    """
    sections: list[str] = [f"<h1>{_text(title)}</h1>", _tiles(sources)]
    for rollout in sources.rollouts:
        sections += _rollout(rollout, sources.folders)
    for evaluation in sources.evaluations:
        sections += _evaluation(evaluation, sources.folders)
    for run in sources.runs:
        sections += _run(run, sources.folders)
    sections += _provenance(sources)
    body = "\n".join(section for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _tiles(sources: Sources) -> str:
    """The few numbers that one looks for first."""
    tiles: list[tuple[str, str]] = []
    for rollout in sources.rollouts:
        total = rollout.values["total"]
        if total["success_rate"] is not None:
            low, high = total["interval_95"]
            text = f"success in {total['episodes']} simulated episodes (95 %: {low:.0%} to {high:.0%})"
            tiles.append((f"{total['success_rate']:.0%}", text))
        if latency := rollout.values.get("policy_latency_ms"):
            tiles.append((f"{latency['p50']:.0f} ms", f"per policy query (95th percentile {latency['p95']:.0f} ms)"))
    for evaluation in sources.evaluations:
        world_model = evaluation.values.get("world_model") or {}
        if world_model.get("copy_skill_1") is not None:
            tiles.append((f"{world_model['copy_skill_1']:.2f}", "copy skill one frame ahead (0 is copying, 1 perfect)"))
        tiles += _action_tiles(evaluation.values.get("actions") or {})
    if sources.commands:
        tiles.append((f"{sum(seconds for _, seconds in sources.commands) / 60:.0f} min", "from nothing to this page"))
    cells = "".join(f'<div class="tile"><b>{_text(value)}</b>{_text(label)}</div>' for value, label in tiles)
    return f'<div class="tiles">{cells}</div>' if cells else ""


def _action_tiles(actions: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The policy's squared error over that of answers that need no policy."""
    if "normalized" in actions:
        normalized = actions["normalized"]
        share = normalized["mse"] / max(normalized["mse_of_mean_action"], 1e-12)
        yield f"{share:.0%}", "of the mean action's error on held-out frames"
    if "repeat_state" in actions:
        normalized = actions["repeat_state"]["normalized"]
        share = normalized["policy"]["mse"] / max(normalized["mse"], 1e-12)
        yield f"{share:.0%}", "of the error of repeating the present state"


def _rollout(rollout: Tree, folders: Sequence[Path]) -> Iterator[str]:
    summary, folder = rollout.values, rollout.folder
    settings, total = summary["settings"], summary["total"]
    yield f"<h2>Success in simulation: {_text(settings['task_suite'])}</h2>"
    how = f"{settings['execute_steps']} actions per query, {settings['num_sampling_steps']} solver steps"
    if settings.get("sampling_temperature", 1.0) != 1.0:
        how += f", noise scaled by {settings['sampling_temperature']}"
    if settings.get("temporal_ensembling") is not None:
        how += f", temporal ensembling with decay {settings['temporal_ensembling']}"
    yield (
        f"<p>{_text(settings['init_states'].capitalize())} initial states; {_text(how)}. Success is the environment's "
        "own check; lines are Wilson's 95 % intervals. An exception is an error, never a failed episode.</p>"
    )
    if not summary.get("complete"):
        yield "<p><b>Not complete:</b> some of the planned episodes are missing.</p>"
    rows = [(task["instruction"], task) for task in summary["tasks"]]
    yield _chart(success_bars([*rows, ("all tasks", total)]))
    header = ["task", "success", "rate", "95 % interval", "steps to success", "errors"]
    yield _table(header, [[name, *rate_cells(rates)] for name, rates in [*rows, ("all tasks", total)]])
    for error in summary.get("errors", []):
        yield f"<p class='soft'>Error in task {error['task']}, trial {error['trial']}: {_text(error['error'])}</p>"
    episodes = read_episodes(folder, folders)
    curves = surprise_curves(episodes, settings["execute_steps"], settings.get("surprise_threshold"))
    yield _chart(curves, "Surprise of the world model at every look of every episode")
    if alarm := summary.get("alarm"):
        good, bad = alarm["successes"], alarm["failures"]
        yield (
            f"<p>Surprise alarm, set on {_text(alarm['source'])} to at most {alarm['alpha']:.0%} false alarms per "
            f"episode: it rose in {good['alarms']} of {good['episodes']} successes and in {bad['alarms']} of "
            f"{bad['episodes']} failures.</p>"
        )
    yield _picture(folder / "contact_sheet.png", "Recorded episodes: one row each, from start to end", folders)
    yield _videos(folder, folders)


def rate_cells(rates: Mapping[str, Any]) -> list[str]:
    """Successes, their share with Wilson's interval, steps and errors, of rates as `summary.json` has them."""
    low, high = rates["interval_95"]
    rate, steps = rates["success_rate"], rates["mean_steps_to_success"]
    return [
        f"{rates['successes']}/{rates['episodes']}",
        "–" if rate is None else f"{rate:.1%}",
        f"{low:.1%} to {high:.1%}",
        "–" if steps is None else f"{steps:.0f}",
        str(rates["errors"]),
    ]


def _videos(folder: Path, folders: Sequence[Path]) -> str:
    files = sorted((folder / "videos").glob("*.mp4"))
    if not files:
        return ""
    items = []
    for path in files[:MAX_VIDEOS]:
        check_own(path, folders)
        source = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
        items.append(
            f'<figure><video controls muted playsinline preload="metadata" src="{source}"></video>'
            f"<figcaption>{_text(_video_caption(path))}</figcaption></figure>"
        )
    more = f"<p class='soft'>{len(files) - MAX_VIDEOS} more in {_text(folder.name)}/videos.</p>"
    return f'<h3>Videos</h3><div class="videos">{"".join(items)}</div>' + (more if len(files) > MAX_VIDEOS else "")


def _video_caption(path: Path) -> str:
    task, trial, outcome = path.stem.split("_")
    return f"{outcome}: task {int(task.removeprefix('task'))}, trial {int(trial.removeprefix('trial'))}"


def _evaluation(evaluation: Tree, folders: Sequence[Path]) -> Iterator[str]:
    results = evaluation.values
    yield f"<h2>Offline evaluation: {results.get('num_episodes', '?')} {_text(results.get('split', ''))} episodes</h2>"
    if tree := results.get("robot"):
        robot = RobotSpec.from_dict(tree, str(evaluation.folder / "evaluation.json"))
        text = f"Robot {robot.name}, {robot.control_freq_hz:g} Hz. Actions: {robot.describe_actions()}. "
        yield f"<p class='soft'>{_text(text)}State: {_text(robot.describe_state())}.</p>"
    for note in results.get("notes", []):
        yield f"<p class='soft'>{_text(_capital(note))}.</p>"
    if actions := results.get("actions"):
        yield from _actions(actions)
    for found in measured_rows(results):
        yield from _rows(found)
    for name, text in _PICTURES.items():
        yield _picture(evaluation.folder / name, text, folders)


def _actions(actions: dict[str, Any]) -> Iterator[str]:
    yield from _rows(action_rows(actions))
    lines = [*comparisons(actions), *binary_lines(actions)]
    yield f"<ul>{''.join(f'<li>{_text(_capital(line))}.</li>' for line in lines)}</ul>"


def _rows(found: Rows) -> Iterator[str]:
    yield f"<h3>{_text(_capital(found.title))}</h3>"
    if found.rows:
        cells = [[_number(value) for value in row] for row in (*found.rows, *found.totals)]
        yield _table(found.columns, cells, found.caption)


def _run(run: Run, folders: Sequence[Path]) -> Iterator[str]:
    yield f"<h2>{_text(_title(run.phase))}</h2>"
    train = run.records("train")
    rates = [entry["samples_per_s"] for entry in train if entry.get("samples_per_s")]
    if train:
        rate = sorted(rates)[len(rates) // 2] if rates else 0.0
        yield (
            f"<p>{train[-1]['step']:,} optimizer steps, {rate:,.0f} samples per second (median), seed "
            f"{run.info.get('seed')}, on {_text(str(run.info.get('device')))}.</p>"
        )
    yield _chart(training_curves(run), "Loss terms; a logarithmic scale where they span more than a factor of thirty")
    yield _chart(copy_skill_curves(run), "Better than copying the present? Held-out episodes")
    seen = "What the model saw: the first batch, augmented as in training"
    yield _picture(run.folder / "first_batch.png", seen, folders)


def _provenance(sources: Sources) -> Iterator[str]:
    yield "<h2>How this was made</h2>"
    if sources.commands:
        lines = [f"{command}   # {seconds / 60:.1f} min" for command, seconds in sources.commands]
    else:
        trees = [run.info for run in sources.runs] + [rollout.values for rollout in sources.rollouts]
        lines = [shlex.join(map(str, tree["command"])) for tree in trees if isinstance(tree.get("command"), list)]
    if lines:
        yield f"<pre>{_text(chr(10).join(lines))}</pre>"
    trees = [tree.values for tree in (*sources.rollouts, *sources.evaluations)] + [run.info for run in sources.runs]
    merged: dict[str, list[str]] = {}
    for tree in trees:
        facts = {**tree.get("versions", {}), **tree.get("machine", {}), "commit": tree.get("git_commit")}
        for name, value in facts.items():
            if value is not None and str(value) not in merged.setdefault(name, []):
                merged[name].append(str(value))
    rows = [[name.replace("_", " "), ", ".join(values)] for name, values in merged.items() if values]
    yield _table(["what", "version"], rows, kind="words")


def _table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str | None = None,
    kind: Literal["numbers", "words"] = "numbers",
) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    title = f"<caption>{_text(caption)}</caption>" if caption else ""
    table = f'<table class="{kind}">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _figure(content: str, caption: str = "") -> str:
    if not content:
        return ""
    return f"<figure>{content}{f'<figcaption>{_text(caption)}</figcaption>' if caption else ''}</figure>"


def _chart(svg: str, caption: str = "") -> str:
    """On a narrow screen a chart scrolls sideways rather than becoming too small to read."""
    return _figure(f'<div class="chart">{svg}</div>' if svg else "", caption)


def _picture(path: Path, caption: str, folders: Sequence[Path]) -> str:
    if not path.is_file():
        return ""
    check_own(path, folders)
    source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return _figure(f'<img src="{source}" alt="{_text(caption)}">', caption)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)


def _text(value: Any) -> str:
    return html.escape(str(value))


def _title(phase: str) -> str:
    title = PHASES[phase].title if phase in PHASES else f"training, phase {phase}"
    return _capital(title)


def write_report(folders: Sequence[Path], out: Path, title: str = "StateVLA report") -> Path:
    """Write the page; pictures, charts and videos are inside it.

    Raises:
        UserError: nothing to show, a file that is damaged or a link out of the folders, or `out` cannot be written.
    """
    fix = "choose another --out"
    with only_writer_of(out, fix):
        write_text(out, build_page(find_sources(folders), title), fix)
    return out
