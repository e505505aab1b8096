"""The command line of `eval.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from rich.console import Console
from rich.table import Table

from statevla.command import run_command


@dataclass(frozen=True)
class EvalArgs:
    checkpoint: str
    """A checkpoint folder, a run folder, or .../checkpoint_best.pt."""
    out: str | None = None
    """Folder for results; `evaluation_<checkpoint>` beside the checkpoint by default."""
    data: str | None = None
    """Another data set than the one it was trained on."""
    split: Literal["validation", "train", "all"] = "validation"
    """Which episodes."""
    max_samples: int = 2_000
    """Frames to sample action chunks for."""
    num_seeds: int = 4
    """Chunks sampled per frame."""
    steps: int | None = None
    """Solver steps; the configuration's by default."""
    probes: bool = True
    """Also fit probes (what can be read out of z)."""
    device: str = "auto"
    """As in the configuration."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `eval.py`."""
    run_command(lambda: _evaluate(list(sys.argv[1:] if arguments is None else arguments)))


def _evaluate(arguments: list[str]) -> None:
    import tyro

    args = tyro.cli(EvalArgs, prog="eval.py", args=arguments, description="Evaluate a checkpoint on held-out episodes.")
    offline(args)


def offline(args: EvalArgs) -> None:
    """Evaluate a checkpoint on held-out episodes: action errors, world model, probes; JSON, tables and pictures."""
    from statevla.diagnostics.offline import evaluate, finite_tree
    from statevla.diagnostics.plots import draw_all
    from statevla.training.checkpoint import resolve_checkpoint
    from statevla.training.storage import write_json_atomically, writing

    folder = resolve_checkpoint(args.checkpoint)
    out = Path(args.out) if args.out else folder.parent / f"evaluation_{folder.name.strip('.')}"
    evaluation = evaluate(
        args.checkpoint,
        args.data,
        args.split,
        args.max_samples,
        args.num_seeds,
        args.steps,
        args.probes,
        args.device,
    )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_json_atomically(out / "evaluation.json", finite_tree(evaluation.results))
    pictures = draw_all(evaluation.results, evaluation.samples, out)
    console = Console()
    for table in result_tables(evaluation.results):
        console.print(table)
    for note in evaluation.results.get("notes", []):
        console.print(note, soft_wrap=True)
    console.print(f"{out}: evaluation.json, {', '.join(path.name for path in pictures)}", soft_wrap=True)


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
            table.add_row(name, _number(value) + ("" if passed is None else "  ok" if passed else "  too low"))
        tables.append(table)
    if results.get("probes"):
        kinds = list(next(iter(results["probes"].values())))
        table = Table("R² of", *(kind.replace("_", " ") for kind in kinds), title="probes on held-out episodes")
        for name, scores in results["probes"].items():
            table.add_row(name.replace("_", " "), *(_number(scores[kind]) for kind in kinds))
        tables.append(table)
    if goals := results.get("goals"):
        tables.append(_goal_table(goals))
    if surprise := results.get("object_surprise"):
        tables.append(_surprise_table(surprise))
    return tables


def _goal_table(goals: dict[str, dict[str, float]]) -> Table:
    table = Table("control step", "median error, cm", "expecting the mean, cm", title="where is the hand going?")
    for step, values in goals.items():
        table.add_row(step, _number(100 * values["median_m"]), _number(100 * values["chance_m"]))
    return table


def _surprise_table(values: dict[str, Any]) -> Table:
    caption = f"moved over unmoved: in {values['moved_more']:.0%} of the pairs, p = {values['p_value']:.2g}"
    title = f"surprise at a moved object: pictures from {values['source']}, {values['num_pairs']} pairs"
    table = Table("picture", "median over the true frame's", title=title, caption=caption)
    for kind in ("repeated", "unmoved", "moved"):
        table.add_row(kind, _number(values[f"{kind}_ratio"]))
    return table


def _action_table(actions: dict[str, Any], where: str) -> Table:
    from statevla.diagnostics.plots import dim_names

    table = Table("action", "MSE normalised", "MAE normalised", "MSE real", "MAE real", "spread real", title=where)
    normalized, real = actions["normalized"], actions["real"]
    for i, name in enumerate(dim_names(len(normalized["mse_per_dim"]))):
        values = (normalized["mse_per_dim"], normalized["mae_per_dim"], real["mse_per_dim"], real["mae_per_dim"])
        table.add_row(name, *(_number(value[i]) for value in values), _number(actions["spread"][i]))
    table.add_section()
    all_dims = (normalized["mse"], normalized["mae"], real["mse"], real["mae"])
    table.add_row("all", *(_number(value) for value in all_dims), "")
    table.add_row(
        "mean action", _number(normalized["mse_of_mean_action"]), "", _number(real["mse_of_mean_action"]), "", ""
    )
    gripper = actions["gripper"]
    table.caption = f"gripper: accuracy {gripper['accuracy']:.3f}, F1 of closing {gripper['f1']:.3f}"
    return table


def _number(value: float) -> str:
    return f"{value:.4g}"
