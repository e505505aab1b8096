"""`statevla demo`: demonstrations → world model → policy → offline evaluation → simulation → report, in one command.

Every stage runs the very command that it prints, in a process of its own, and leaves a mark when it is done; a demo
that was killed goes on with the stage it was in, and that stage with what it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from statevla.checkpoints.measured import read_tree
from statevla.commands.stages import Stage, mark_path, run_stages, set_aside, training_stage
from statevla.config import PHASES, expand_path, find_config, home_dir, load_config
from statevla.errors import UserError
from statevla.machine.extras import require


@dataclass(frozen=True)
class DemoArgs:
    dir: str | None = None
    """Folder for everything; $STATEVLA_HOME/demo by default."""
    config: str = "demo"
    """Configuration to train: a preset's name or a YAML file."""
    suite: str = "libero_object"
    """LIBERO suite."""
    tasks: str = "0,2"
    """Task indices: `all`, `0,3,5` or `0-4`."""
    demos: int = 20
    """Demonstrations per task."""
    phase1_steps: int | None = None
    """Optimizer steps of phase 1; the configuration's by default."""
    phase2_steps: int | None = None
    """Optimizer steps of phase 2; the configuration's by default."""
    trials: int = 20
    """Simulated episodes per task."""
    videos: int = 2
    """Videos per task: so many successes and so many failures."""
    workers: int = 2
    """Simulator processes, about 2 GB each."""


def demo(args: DemoArgs) -> int:
    """The whole way on a small scale: collect, train both phases, evaluate, simulate, report."""
    from statevla.report import write_report

    # Found at once, not after half an hour.
    require("demo", "language", "sim", "plots")
    console = Console(markup=False)
    folder = expand_path(args.dir) if args.dir else home_dir() / "demo"
    stages = plan(args, folder)
    run_stages(stages, folder, console)
    report = write_report([folder], folder / "report.html", title="StateVLA demo")
    console.print(outcome_table(folder))
    seconds = sum(read_tree(mark_path(folder, stage)).get("seconds", 0.0) for stage in stages)
    console.print(f"{seconds / 60:.1f} minutes in all; report: {report}", markup=False, highlight=False, soft_wrap=True)
    return 0


def plan(args: DemoArgs, folder: Path) -> list[Stage]:
    """The stages with their commands.

    Raises:
        UserError: the configuration is absent or invalid, or a number is out of range.
    """
    file = find_config(args.config)
    if min(args.demos, args.trials, args.workers) < 1 or args.videos < 0:
        raise UserError("demo: expected demos, trials and workers of at least 1; raise them")
    data = folder / f"demonstrations_{args.suite}_{args.tasks.replace(',', '_')}"
    checkpoints, rollouts = folder / "checkpoints", folder / "rollouts"
    common = ["--config", str(file), "--output_dir", str(checkpoints), "--data.path", str(data)]
    # The caches of a demo go with its folder.
    common += ["--data.cache_dir", str(folder / "frame_cache")]
    config = load_config(file)

    def train(phase: str, steps: int | None) -> Stage:
        limit = [] if steps is None else [f"--training.phase{phase}.max_steps", str(steps)]
        return training_stage(phase, config, [*common, *limit], checkpoints, reads=(data,))

    suite, tasks = ["--suite", args.suite], ["--tasks", args.tasks]
    collect = ["--demos", str(args.demos), "--image-size", str(config.model.image_size)]
    best = str(checkpoints / PHASES["2"].folder / "checkpoint_best.pt")
    rollout = ["--num_trials", str(args.trials), "--videos", str(args.videos)]
    return [
        Stage(
            "collect",
            "collect",
            ["--out", str(data), *suite, *tasks, *collect],
            resources=("--workers", str(args.workers)),
            makes=data,
        ),
        train("1", args.phase1_steps),
        train("2", args.phase2_steps),
        Stage("offline", "eval", ["--checkpoint", best, "--out", str(folder / "evaluation")]),
        Stage(
            "rollout",
            "rollout",
            ["--checkpoint", best, "--task_suite", args.suite, *tasks, *rollout, "--out", str(rollouts)],
            fresh=lambda: set_aside(rollouts),
            resources=("--num_workers", str(args.workers)),
        ),
    ]


def outcome_table(folder: Path) -> Table:
    """What came out, in numbers that the stages' own files hold."""
    table = Table("what", "result", title="StateVLA demo")
    rollouts = read_tree(folder / "rollouts" / "summary.json")
    evaluation = read_tree(folder / "evaluation" / "evaluation.json")
    for name, value in (evaluation.get("world_model") or {}).items():
        if name.startswith("copy_skill"):
            table.add_row(f"world model, {name.replace('_', ' ')} (1 is perfect, 0 is copying)", _number(value))
    if actions := evaluation.get("actions"):
        own, mean = (_number(actions["normalized"][name]) for name in ("mse", "mse_of_mean_action"))
        table.add_row("held-out actions, normalised MSE (the mean action's)", f"{own} ({mean})")
        for name, scores in actions.get("binary", {}).items():
            table.add_row(f"held-out {name}, accuracy", _number(scores["accuracy"]))
    total = [{"instruction": "success in simulation", **rollouts["total"]}] if "total" in rollouts else []
    for rates in [*rollouts.get("tasks", []), *total]:
        low, high = rates["interval_95"]
        errors = f", {rates['errors']} errors" if rates["errors"] else ""
        success = f"{rates['successes']}/{rates['episodes']} (95 %: {low:.0%} to {high:.0%}){errors}"
        table.add_row(rates["instruction"], success)
    return table


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"
