"""What each part contributes: rows of docs/experiments.md that differ from one row, all of a row's seeds together."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from statevla.worlds.rollout_results import success_interval

REFERENCES = ("quick", "short")
"""Experiments that others differ from, whose names begin with theirs: of the present recipe, and of an earlier one."""
_NAME = re.compile(rf"(({'|'.join(REFERENCES)})(?:-[a-z0-9-]+?)?)-s(\d+)")


def is_ablation(name: str) -> bool:
    """Whether a record belongs to one of these tables."""
    return _NAME.fullmatch(name) is not None


def ablation_table(records: Sequence[dict[str, Any]], reference: str) -> list[str]:
    """Lines of Markdown, `reference` first and then by success; nothing if there are no such records."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for tree in records:
        match = _NAME.fullmatch(tree["name"])
        if match is not None and match[2] == reference:
            rows.setdefault(match[1], []).append(tree)
    order = sorted(rows, key=lambda name: (name != reference, -_total(rows[name])[0] / max(_total(rows[name])[1], 1)))
    lines = [
        "| what | success | p | each seed | goal, cm | S₄ | A₁ | object | MSE | minutes |",
        "|---" * 10 + "|",
    ]
    return [*lines, *(_row(name, rows[name], rows.get(reference, [])) for name in order)] if rows else []


def _row(name: str, trees: list[dict[str, Any]], reference: list[dict[str, Any]]) -> str:
    successes, episodes = _total(trees)
    low, high = success_interval(successes, episodes)
    each = ", ".join(str(_total([tree])[0]) for tree in trees)
    cells = [
        f"`{name}`: {trees[0]['note']}",
        f"{100 * successes / max(episodes, 1):.0f} % ({100 * low:.0f} to {100 * high:.0f})",
        "–" if trees is reference else f"{_p_value(trees, reference):.2g}",
        f"{each} of {episodes // len(trees)}",
        _span(trees, _goal_cm),
        _span(trees, lambda tree: (tree["diagnostics"].get("world_model") or {}).get("copy_skill_4")),
        _span(trees, lambda tree: (tree["diagnostics"].get("world_model") or {}).get("action_sensitivity_1")),
        _span(trees, _object_r2),
        _span(trees, lambda tree: ((tree["offline"] or {}).get("normalized") or {}).get("mse")),
        _span(trees, lambda tree: tree["training_s"] / 60 if tree.get("training_s") else None),
    ]
    return "| " + " | ".join(cells) + " |"


def _p_value(trees: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]]) -> float:
    """Fisher's exact test, two-sided, of the same success rate; all episodes count as independent."""
    from scipy.stats import fisher_exact

    counts = [(won, episodes - won) for won, episodes in (_total(trees), _total(reference))]
    return float(fisher_exact(counts).pvalue)


def _total(trees: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Successes and episodes of all seeds."""
    totals = [rollout["total"] for tree in trees for rollout in tree["simulated"]]
    return sum(total["successes"] for total in totals), sum(total["episodes"] for total in totals)


def _goal_cm(tree: dict[str, Any]) -> float | None:
    """Median error of the goal that z tells before the hand moves."""
    first = (tree["diagnostics"].get("goals") or {}).get("0")
    return None if first is None else 100 * first["median_m"]


def _object_r2(tree: dict[str, Any]) -> float | None:
    return best_probe((tree["diagnostics"].get("probes") or {}).get("object_from_hand") or {})


def best_probe(scores: dict[str, float | None]) -> float | None:
    """R² of the better probe on z, of what a record says of probes and baselines; None where there is none."""
    return max((score for kind in ("ridge", "mlp") if (score := scores.get(kind)) is not None), default=None)


def _span(trees: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> str:
    """The least and the largest over the seeds."""
    known = sorted(v for v in map(value, trees) if v is not None)
    if not known:
        return "–"
    shown = list(dict.fromkeys(f"{v:.2g}" for v in (known[0], known[-1])))
    return " to ".join(shown)
