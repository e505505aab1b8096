"""What the metrics of actions say, in words for terminal, report and model card."""

from __future__ import annotations

from typing import Any


def names_with_units(actions: dict[str, Any]) -> list[str]:
    """Names of the continuous numbers, with their units where they are known: `elbow (rad)`."""
    if "names" not in actions:  # evaluated before robots were declared
        return [f"number {i}" for i in range(len(actions["normalized"]["mse_per_dim"]))]
    return [f"{name} ({unit})" if unit else name for name, unit in zip(actions["names"], actions["units"])]


def binary_lines(actions: dict[str, Any]) -> list[str]:
    """How often binary numbers are right, a line each."""
    return [
        f"{name}: accuracy {scores['accuracy']:.3f}, F1 of switching on {scores['f1']:.3f}"
        for name, scores in actions.get("binary", {}).items()
    ]


def comparisons(actions: dict[str, Any]) -> list[str]:
    """By how much the policy beats answers that need none, a sentence each; none without continuous numbers."""
    if "normalized" not in actions:
        return []
    normalized, still = actions["normalized"], actions.get("repeat_state")
    lines = [_compared("always answering the mean action", normalized["mse"], normalized["mse_of_mean_action"])]
    if still is not None:
        measured, count = len(still["names"]), len(actions["names"])
        part = "" if measured == count else f", {measured} of {count} numbers"
        squares = still["normalized"]["policy"]["mse"], still["normalized"]["mse"]
        lines.append(_compared(f"repeating the present state{part}", *squares) + _offs(still))
    return lines


def _compared(what: str, own: float, other: float) -> str:
    share = own / max(other, 1e-12)
    verdict = f"{1 - share:.0%} below" if share <= 1 else f"{share:.3g} times"
    numbers = f"{format_number(own)} against {format_number(other)}"
    return f"the policy's normalised MSE is {verdict} that of {what} ({numbers})"


def _offs(still: dict[str, Any]) -> str:
    """Mean absolute errors of the policy and of the present state, unit by unit."""
    pairs = zip(still["units"], still["real"]["policy"]["mae_per_dim"], still["real"]["mae_per_dim"])
    by_unit: dict[str, list[tuple[float, float]]] = {}
    for unit, own, other in pairs:
        by_unit.setdefault(unit, []).append((own, other))
    text = ""
    for unit, values in by_unit.items():
        if unit:
            own, other = (format_number(sum(column) / len(values)) for column in zip(*values))
            text += f"; off by {own} against {other} on average ({unit})"
    return text


def format_number(value: float | None) -> str:
    """Four digits; nothing where there is none."""
    return "" if value is None else f"{value:.4g}"
