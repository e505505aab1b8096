"""What was measured with a checkpoint: found in results, kept in `measured.json` of a shared copy, and put into words.

A copy is shared again where nobody has the rollouts: what is known of its weights travels with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statevla.checkpoints.checkpoint import weights_hash
from statevla.checkpoints.comparisons import binary_lines, comparisons
from statevla.checkpoints.version import CARD, ROUNDED_FROM, VERSION_FILE
from statevla.config import home_dir
from statevla.errors import UserError
from statevla.machine.sealed import check_seal
from statevla.machine.storage import write_json

MEASURED_FILE = "measured.json"
HEADING = "## Measured"
_ROLLOUTS, _EVALUATIONS, _CARD_LINES = "rollouts", "evaluations", "earlier_card"
_SETTINGS = ("weights_sha256", "task_suite", "init_states", "seed", "execute_steps", "instructions")
_NOTHING = "Nothing was measured with this checkpoint."


@dataclass(frozen=True)
class Measured:
    """Where measurements of a checkpoint lie.

    Attributes:
        runs: folders of runs, with offline evaluations in `evaluation*/`.
        rollouts: results folders of `statevla rollout`; those in `$STATEVLA_HOME/rollouts` are found besides.
    """

    runs: Sequence[Path] = ()
    rollouts: Sequence[Path] = ()


@dataclass(frozen=True)
class Results:
    """What is known of a checkpoint.

    Attributes:
        rollouts: summaries of these very weights, or of those that they were rounded from.
        evaluations: offline ones.
        card_lines: of an earlier card, of a copy without `measured.json`.
        weights: hash of these weights, where it is recorded.
        is_rounded: whether they are another checkpoint's in half precision.
    """

    rollouts: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]
    card_lines: Sequence[str]
    weights: str | None
    is_rounded: bool

    def is_own(self, summary: Mapping[str, Any]) -> bool:
        """Whether rollouts are of these very weights."""
        return bool(summary["settings"]["weights_sha256"] == self.weights)


def find_results(checkpoint: Path, measured: Measured, source: Path) -> Results:
    """Gather what is known of a checkpoint.

    Args:
        checkpoint: its folder, perhaps with the `measured.json` that it was shared with.
        measured: where else to look.
        source: the folder that it was copied from, for the card there.
    """
    weights, rounded = weights_hash(checkpoint), read_tree(checkpoint / VERSION_FILE).get(ROUNDED_FROM)
    kept = read_tree(checkpoint / MEASURED_FILE)
    folders = [*measured.rollouts, *sorted((home_dir() / "rollouts").glob("*"))]
    summaries = [_read_result(folder / "summary.json") for folder in dict.fromkeys(path.resolve() for path in folders)]
    wanted = {weights, rounded} - {None}
    summaries = [each for each in summaries if (each.get("settings") or {}).get("weights_sha256") in wanted]
    files = sorted(file for run in measured.runs for file in run.glob("evaluation*/evaluation.json"))
    rollouts = [*_trees(kept, _ROLLOUTS), *map(_shortened, summaries)]
    evaluations = [*_trees(kept, _EVALUATIONS), *(_shortened_evaluation(_read_result(file)) for file in files)]
    lines = kept.get(_CARD_LINES) if kept else _lines_of_card(source / CARD)
    lines = [str(line) for line in lines or ()]
    return Results(_different(rollouts), _different(evaluations), lines, weights, rounded is not None)


def save_results(results: Results, checkpoint: Path) -> None:
    """Write `measured.json` into the folder of a checkpoint, unless nothing is known."""
    if results.rollouts or results.evaluations or results.card_lines:
        parts = (results.rollouts, results.evaluations, results.card_lines)
        names = (_ROLLOUTS, _EVALUATIONS, _CARD_LINES)
        write_json(checkpoint / MEASURED_FILE, {name: list(part) for name, part in zip(names, parts)})


def result_lines(results: Results) -> Iterator[str]:
    """The results in Markdown."""
    if not results.rollouts and not results.evaluations and not results.card_lines:
        yield _NOTHING
    if results.is_rounded:
        yield "The weights are rounded to float16; what was measured before rounding is marked."
        yield ""
    for summary in results.rollouts:
        yield from _rollout_lines(summary, results.is_own(summary))
    for evaluation in results.evaluations:
        yield from _evaluation_lines(evaluation)
    if results.card_lines:
        rounded = ", before rounding" if results.is_rounded else ""
        yield f"- from the card of the copy that this one was made of{rounded}:"
        yield from (f"    {line}" for line in results.card_lines)


def model_index(name: str, results: Results) -> list[dict[str, Any]]:
    """`model-index` of the hub's metadata: success rates of these very weights, complete ones."""
    entries = []
    for summary in filter(results.is_own, results.rollouts):
        settings, total = summary["settings"], summary["total"]
        if not summary.get("complete") or total["success_rate"] is None or settings.get("instructions") == "shuffled":
            continue
        suite, states = str(settings["task_suite"]), str(settings["init_states"])
        metric = {"type": "success_rate", "name": "success rate", "value": total["success_rate"]}
        metric["args"] = {"episodes": total["episodes"], "seed": settings["seed"]}
        data = {"name": f"{suite}, {states} initial states", "type": suite, "config": states}
        entries.append({"task": {"type": "robotics"}, "dataset": data, "metrics": [metric]})
    return [{"name": name, "results": entries}] if entries else []


def read_tree(path: Path) -> dict[str, Any]:
    """A JSON file; what is absent or damaged was not recorded."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _read_result(path: Path) -> dict[str, Any]:
    """A result's tree; what is not as it was written is no result."""
    tree = read_tree(path)
    try:
        check_seal(tree, str(path), "make it anew", was_sealed=False)
    except UserError:
        return {}
    return tree


def _rollout_lines(summary: Mapping[str, Any], is_own: bool) -> Iterator[str]:
    total, settings = summary["total"], summary["settings"]
    low, high = total["interval_95"]
    rate = "no episodes" if total["success_rate"] is None else f"{total['success_rate']:.1%}"
    complete = "" if summary.get("complete") else ", not complete"
    if "execute_steps" in settings:
        complete += f", {settings['execute_steps']} actions per look"
    complete += "" if is_own else ", before rounding"
    told = ", each task under another one's instruction" if settings.get("instructions") == "shuffled" else ""
    yield (
        f"- success in simulation, `{settings['task_suite']}`, {settings['init_states']} initial states{told}, "
        f"seed {settings['seed']}: {total['successes']}/{total['episodes']} = {rate} (Wilson 95 %: {low:.1%} to "
        f"{high:.1%}), {total['errors']} errors{complete}"
    )
    rates = [f"{task['successes']}/{task['episodes']}" for task in summary["tasks"]]
    if len(set(rates)) == 1:
        yield f"    - {'every task' if len(rates) > 1 else summary['tasks'][0]['instruction']}: {rates[0]}"
    else:
        for task, result in zip(summary["tasks"], rates):
            yield f"    - {task['instruction']}: {result}"


def _evaluation_lines(results: Mapping[str, Any]) -> Iterator[str]:
    what = f"{results.get('num_episodes')} {results.get('split')} episodes"
    if actions := results.get("actions"):
        yield f"- actions on {what}:"
        yield from (f"    - {line}" for line in [*comparisons(actions), *binary_lines(actions)])
    skill = (results.get("world_model") or {}).get("copy_skill_1")
    if skill is not None:
        yield f"- world model on {what}: copy skill {skill:.3f} (0 is copying the present, 1 perfect)"


def _shortened(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of a summary of rollouts, and nothing of the machine."""
    settings = {key: summary["settings"][key] for key in _SETTINGS if key in summary["settings"]}
    tasks = [{key: task[key] for key in ("instruction", "episodes", "successes")} for task in summary["tasks"]]
    return {"settings": settings, "complete": summary.get("complete"), "total": summary["total"], "tasks": tasks}


def _shortened_evaluation(results: Mapping[str, Any]) -> dict[str, Any]:
    skill = (results.get("world_model") or {}).get("copy_skill_1")
    found = {key: results[key] for key in ("num_episodes", "split", "actions") if key in results}
    return found | ({} if skill is None else {"world_model": {"copy_skill_1": skill}})


def _lines_of_card(card: Path) -> list[str]:
    """The results in the card of a copy from before `measured.json`."""
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    section = text.partition(f"\n{HEADING}\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.lstrip().startswith("- ")]


def _trees(kept: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = kept.get(name)
    return found if isinstance(found, list) else []


def _different(trees: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without those that stand there twice."""
    return list({json.dumps(tree, sort_keys=True): tree for tree in trees}.values())
