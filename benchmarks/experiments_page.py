"""docs/experiments.md from `benchmarks/results/experiments/*.json` (written by `record_experiment.py`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablation_table import REFERENCES, ablation_table, best_probe, is_ablation

HEAD = """# Experiments

Every recorded training run, failures included: what was called, what changed against the preset, what the world model
knows, how far the actions are off on held-out frames, and success in simulation with Wilson's 95 % interval. The raw
records are in `benchmarks/results/experiments/`. What an experiment is stands in `benchmarks/experiments.yaml`; one
command collects its data, trains, evaluates, simulates and records it, and goes on where it was cut off:

```bash
python benchmarks/run_experiment.py --list
python benchmarks/run_experiment.py object --seed 0
python benchmarks/render_tables.py
python benchmarks/render_figures.py
```

Another run is recorded with `benchmarks/record_experiment.py`.
"""
COLUMNS = """
Columns: S, copy skill one and four retained steps ahead (0 is copying); A, action sensitivity (1 ignores actions);
object, R² of the better probe for the target object relative to the hand, and of the best baseline; MSE of normalised
actions; success in simulation, 8 actions between looks unless it says otherwise.
"""
ABLATION = """
## What each part contributes

`conf/compact.yaml` cut to a twentieth of its steps of phase 1, on three tasks with the objects all over the table;
each row changes what it says, and all seeds of a row count together. Success on the first 15 of the 50 fixed wide
states of each task, with Wilson's 95 % interval over all episodes, and p of Fisher's exact test against a table's first
row. Two runs at a time, on a core each, in minutes: the figures compare, and do not show what the preset reaches. Goal:
median error of the place that z names before the hand moves; object: R² of the better probe. From the least to the
largest over the seeds. What showed nothing is no longer in the code: positions that begin as waves, flow times more
often near noise, an average of phase 2's weights, several augmented views of a frame in phase 2.
"""
EARLIER = """
As the preset was when phase 1 also cloned actions, and phase 2 went on with its heads (commits as the records say).
What these rows showed to be of no use is no longer in the code: cloning in phase 1, an L1 head.
"""

_EXECUTE_STEPS = 8
"""Actions between looks, unless a rollout's name says otherwise."""


def experiments_page(folder: Path) -> str:
    """The page; experiments in the order of their names."""
    experiments = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not experiments:
        return f"{HEAD}\nNone is recorded yet.\n"
    lines = [
        HEAD + COLUMNS,
        "| run | phase | seed | S₁ | S₄ | A₁ | object (baseline) | MSE | success |",
        "|---" * 9 + "|",
    ]
    lines += [_row(tree) for tree in experiments if not is_ablation(tree["name"])]
    present, earlier = (ablation_table(experiments, reference) for reference in REFERENCES)
    lines += [ABLATION] if present or earlier else []
    lines += [*present, *([EARLIER, *earlier] if earlier else [])]
    for tree in experiments:
        lines += ["", *_section(tree)]
    return "\n".join(lines) + "\n"


def _row(tree: dict[str, Any]) -> str:
    world = tree["diagnostics"].get("world_model") or {}
    actions = tree["offline"] or {}
    cells = [
        f"[{tree['name']}](#{_anchor(tree['name'])})",
        tree["phase"],
        tree["seed"],
        _number(world.get("copy_skill_1")),
        _number(world.get("copy_skill_4")),
        _number(world.get("action_sensitivity_1")),
        _object(tree["diagnostics"].get("probes") or {}),
        _number(actions.get("normalized", {}).get("mse")),
        "<br>".join(f"{_name(rollout)}: {_success(rollout)}" for rollout in tree["simulated"]) or "not simulated",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _section(tree: dict[str, Any]) -> list[str]:
    lines = [f"## {tree['name']}", ""]
    if tree["note"]:
        lines += [tree["note"], ""]
    changed = ", ".join(f"`{key}={_yaml(value)}`" for key, value in tree["overrides"].items())
    lines.append(
        f"Preset `{tree['preset'] or 'defaults'}`{', with ' + changed if changed else ''}; data `{tree['data']}`."
    )
    last = tree["training"].get("last")
    if last is None:
        lines.append("Training wrote no checkpoint.")
    else:
        seconds = last["trained_s"]
        took = f", {seconds / 60:.0f} minutes" if seconds is not None else ""
        commit = f"; commit `{tree['git_commit'][:12]}`" if tree["git_commit"] else ""
        lines.append(f"{last['step']} steps{took}{commit}.")
    surprise = tree["diagnostics"].get("object_surprise")
    if surprise:
        lines.append(
            f"A moved object surprises {_number(surprise['moved_ratio'])} times as much as the true frame, an unmoved "
            f"one {_number(surprise['unmoved_ratio'])} times ({surprise['num_pairs']} pairs, p = "
            f"{surprise['p_value']:.2g}; pictures from {surprise['source']})."
        )
    if goals := tree["diagnostics"].get("goals"):
        steps = "; ".join(
            f"step {step}: {100 * values['median_m']:.1f} ({100 * values['chance_m']:.1f})"
            for step, values in goals.items()
        )
        lines.append(
            f"Where the hand is going (median error on held-out episodes, cm, and that of expecting the mean): {steps}."
        )
    lines += ["", "```bash", tree["command"], "```"]
    for rollout in tree["simulated"]:
        lines += ["", *_tasks(rollout)]
    return lines


def _tasks(rollout: dict[str, Any]) -> list[str]:
    state = "" if rollout["complete"] else f", of {rollout['planned']} planned"
    # Folded: a page of many experiments is read for the totals.
    lines = ['<details markdown="1">', f"<summary>{_name(rollout)}: {_success(rollout)}{state}</summary>", ""]
    lines += [
        f"`{' '.join(rollout['command'])}`",
        "",
        "| task | successes / episodes | interval | errors |",
        "|---|---|---|---|",
    ]
    for task in rollout["tasks"]:
        name = task["name"].replace("_", " ")
        lines.append(f"| {name} | {task['successes']} / {task['episodes']} | {_interval(task)} | {task['errors']} |")
    return [*lines, "", "</details>"]


def _name(rollout: dict[str, Any]) -> str:
    """Suite and, where they are not its own, the initial states and the instructions; noise that was scaled."""
    settings = rollout["settings"]
    more = [settings.get("init_states"), settings.get("instructions")]
    kinds = [kind for kind in more if kind not in (None, "official", "own")]
    scale = settings.get("sampling_temperature", 1.0)
    kinds += [] if scale == 1.0 else [f"(noise x {scale:g})"]
    looks = settings["execute_steps"]
    kinds += [] if looks == _EXECUTE_STEPS else [f"({looks} actions a look)"]
    return " ".join([settings["task_suite"], *kinds])


def _success(rollout: dict[str, Any]) -> str:
    total = rollout["total"]
    return f"{total['successes']} / {total['episodes']} ({_interval(total)})"


def _interval(rates: dict[str, Any]) -> str:
    low, high = rates["interval_95"]
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def _object(probes: dict[str, Any]) -> str:
    scores = probes.get("object_from_hand")
    if not scores:
        return "–"
    baselines = [score for kind, score in scores.items() if kind not in ("ridge", "mlp")]
    return f"{_number(best_probe(scores))} ({_number(_largest(baselines))})"


def _largest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _anchor(name: str) -> str:
    """As GitHub and Python-Markdown make it from a heading."""
    return "".join(c for c in name.lower() if c.isalnum() or c in "-_")


def _yaml(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | bool) or value is None else str(value)
