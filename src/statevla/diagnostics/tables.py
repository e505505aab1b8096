"""What an evaluation or a probe found, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.table import Table

from statevla.checkpoints.comparisons import binary_lines, format_number, names_with_units


def result_tables(results: dict[str, Any]) -> list[Table]:
    """What an evaluation or a probe found, as tables for the terminal."""
    tables = []
    where = f"{results['checkpoint']}, {results['num_episodes']} {results['split']} episodes"
    if "actions" in results:
        tables.append(_action_table(results["actions"], where))
    if results.get("world_model"):
        table = Table("measure", "value", title=f"world model: {where}")
        for name, value in results["world_model"].items():
            passed = results["go_no_go"].get(name)
            table.add_row(name, format_number(value) + ("" if passed is None else "  ok" if passed else "  too low"))
        tables.append(table)
    if results.get("probes"):
        kinds = list(next(iter(results["probes"].values())))
        table = Table("R² of", *(kind.replace("_", " ") for kind in kinds), title="probes on held-out episodes")
        for name, scores in results["probes"].items():
            table.add_row(name.replace("_", " "), *(format_number(scores[kind]) for kind in kinds))
        tables.append(table)
    if goals := results.get("goals"):
        tables.append(_goal_table(goals))
    if surprise := results.get("object_surprise"):
        tables.append(_surprise_table(surprise))
    return tables


def _goal_table(goals: dict[str, dict[str, float]]) -> Table:
    table = Table("control step", "median error, cm", "expecting the mean, cm", title="where is the hand going?")
    for step, values in goals.items():
        table.add_row(step, format_number(100 * values["median_m"]), format_number(100 * values["chance_m"]))
    return table


def _surprise_table(values: dict[str, Any]) -> Table:
    caption = f"moved over unmoved: in {values['moved_more']:.0%} of the pairs, p = {values['p_value']:.2g}"
    title = f"surprise at a moved object: pictures from {values['source']}, {values['num_pairs']} pairs"
    table = Table("picture", "median over the true frame's", title=title, caption=caption)
    for kind in ("repeated", "unmoved", "moved"):
        table.add_row(kind, format_number(values[f"{kind}_ratio"]))
    return table


def _action_table(actions: dict[str, Any], where: str) -> Table:
    """Errors of the continuous numbers by name; empty but for its caption where there are none."""
    table = Table("action", title=where, caption="\n".join(binary_lines(actions)))
    if "normalized" not in actions:
        return table
    rows = action_rows(actions)
    for column in rows.columns:
        table.add_column(column)
    for name, values in rows.numbers:
        table.add_row(name, *map(format_number, values))
    table.add_section()
    for name, values in rows.totals:
        table.add_row(name, *map(format_number, values))
    return table


class ActionRows(NamedTuple):
    """Errors of the continuous numbers of an action: names, with as many values as there are columns.

    Attributes:
        columns: what the values are.
        numbers: a row for each number, with its unit.
        totals: over all numbers; None where a mean over several units would say nothing.
    """

    columns: list[str]
    numbers: list[tuple[str, list[float | None]]]
    totals: list[tuple[str, list[float | None]]]


def action_rows(actions: dict[str, Any]) -> ActionRows:
    """What `action_metrics` found of continuous numbers (there must be some), for a table."""
    normalized, real, still = actions["normalized"], actions["real"], actions.get("repeat_state")
    columns = {
        "MSE normalised": normalized["mse_per_dim"],
        "MAE normalised": normalized["mae_per_dim"],
        "MSE real": real["mse_per_dim"],
        "MAE real": real["mae_per_dim"],
        "spread real": actions["spread"],
    }
    if still is not None:
        of_state = dict(zip(still["names"], still["real"]["mae_per_dim"]))
        columns["MAE real of present state"] = [of_state.get(name) for name in actions["names"]]
    padding = [None] * (len(columns) - 4)
    units = actions.get("units", [])
    of_mean = [normalized["mse_of_mean_action"], None, _mixed(real["mse_of_mean_action"], units), None]
    totals = [("all", _means(normalized, real, units) + padding), ("mean action", of_mean + padding)]
    if still is not None:
        part = "" if len(still["names"]) == len(actions["names"]) else f" ({len(still['names'])} numbers)"
        totals.append((f"present state{part}", _means(still["normalized"], still["real"], still["units"]) + padding))
    numbers = [(name, list(values)) for name, *values in zip(names_with_units(actions), *columns.values())]
    return ActionRows(list(columns), numbers, totals)


def _means(normalized: dict[str, Any], real: dict[str, Any], units: Sequence[str]) -> list[float | None]:
    return [normalized["mse"], normalized["mae"], _mixed(real["mse"], units), _mixed(real["mae"], units)]


def _mixed(value: float, units: Sequence[str]) -> float | None:
    return value if len(set(units)) == 1 else None
