"""What an evaluation or a probe found, as rows of tables, and as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from statevla.checkpoints.comparisons import binary_lines, format_number, names_with_units


class Rows(NamedTuple):
    """A table.

    Attributes:
        rows, totals: a name each, then numbers or words; None where there is nothing to say.
    """

    title: str
    columns: list[str]
    rows: list[list[Any]]
    caption: str | None = None
    totals: Sequence[list[Any]] = ()


def result_tables(results: dict[str, Any]) -> list[Table]:
    """All that an evaluation or a probe found, for the terminal."""
    parts = list(measured_rows(results))
    if actions := results.get("actions"):
        parts.insert(0, action_rows(actions)._replace(caption="\n".join(binary_lines(actions))))
    where = f"{results['checkpoint']}, {results['num_episodes']} {results['split']} episodes"
    return [_table(part._replace(title=part.title if i else f"{part.title}: {where}")) for i, part in enumerate(parts)]


def _table(found: Rows) -> Table:
    table = Table(*found.columns, title=found.title, caption=found.caption)
    for part in (found.rows, found.totals):
        for name, *values in part:
            table.add_row(name, *(value if isinstance(value, str) else format_number(value) for value in values))
        table.add_section()
    return table


def measured_rows(results: dict[str, Any]) -> Iterator[Rows]:
    """What an evaluation or a probe found beside the actions, for tables here and on a page."""
    if values := results.get("world_model"):
        passed = results.get("go_no_go", {})
        verdict = {True: "ok", False: "too low", None: ""}
        rows = [[_label(name), value, verdict[passed.get(name)]] for name, value in values.items()]
        yield Rows("world model", ["measure", "value", ""], rows)
    if goals := results.get("goals"):
        caption = "median error of the next keyframe on held-out episodes; before the hand moves only words tell"
        rows = [[step, *(100 * values[key] for key in ("median_m", "chance_m"))] for step, values in goals.items()]
        yield Rows("where is the hand going?", ["control step", "error, cm", "expecting the mean, cm"], rows, caption)
    if probes := results.get("probes"):
        kinds = list(next(iter(probes.values())))
        caption = "R² on held-out episodes; the columns beside the probes of z are baselines"
        rows = [[_label(name), *(scores[kind] for kind in kinds)] for name, scores in probes.items()]
        yield Rows("what can be read out of z", ["target", *map(_label, kinds)], rows, caption)
    if values := results.get("object_surprise"):
        title = f"surprise at a moved object: pictures from {values['source']}, {values['num_pairs']} pairs"
        caption = f"moved over unmoved: in {values['moved_more']:.0%} of the pairs, p = {values['p_value']:.2g}"
        rows = [[kind, values[f"{kind}_ratio"]] for kind in ("repeated", "unmoved", "moved")]
        yield Rows(title, ["picture", "median over the true frame's"], rows, caption)


def _label(name: str) -> str:
    return name.replace("_", " ")


def action_rows(actions: dict[str, Any]) -> Rows:
    """What `action_metrics` found of continuous numbers, if there are any: errors by name, with their units; totals are
    None where a mean over several units would say nothing."""
    if "normalized" not in actions:
        return Rows("actions", [], [])
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
    totals = [["all", *_means(normalized, real, units), *padding], ["mean action", *of_mean, *padding]]
    if still is not None:
        part = "" if len(still["names"]) == len(actions["names"]) else f" ({len(still['names'])} numbers)"
        means = _means(still["normalized"], still["real"], still["units"])
        totals.append([f"present state{part}", *means, *padding])
    numbers = [list(row) for row in zip(names_with_units(actions), *columns.values())]
    return Rows("actions", ["number", *columns], numbers, totals=totals)


def _means(normalized: dict[str, Any], real: dict[str, Any], units: Sequence[str]) -> list[float | None]:
    return [normalized["mse"], normalized["mae"], _mixed(real["mse"], units), _mixed(real["mae"], units)]


def _mixed(value: float, units: Sequence[str]) -> float | None:
    return value if len(set(units)) == 1 else None
