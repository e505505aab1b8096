"""`statevla demo`: demonstrations → world model → policy → offline evaluation → simulation → report, in one command.

Every stage runs the very command that it prints, in a process of its own, and leaves a mark when it is done; a demo
that was killed goes on with the stage it was in, and that stage with what it has.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import statevla
from statevla.config import expand_path, home_dir, load_config
from statevla.errors import UserError


@dataclass(frozen=True)
class DemoArgs:
    dir: str | None = None
    """Folder for everything; $STATEVLA_HOME/demo by default."""
    config: str = "conf/demo.yaml"
    """Configuration to train."""
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


@dataclass(frozen=True)
class Stage:
    """One step of the demo.

    Attributes:
        name: of its mark.
        command: of `statevla`.
        arguments: of the command.
        settings: what else the result depends on: the sections of the configuration that the command reads.
        resume: arguments that continue what an interrupted run left, as far as it got.
        fresh: makes room where an earlier demo with other settings left results.
    """

    name: str
    command: str
    arguments: list[str]
    settings: str = ""
    resume: Callable[[], list[str]] = list
    fresh: Callable[[], list[str]] = list

    def shown(self, more: list[str]) -> str:
        return shlex.join(["statevla", self.command, *self.arguments, *more])


def demo(args: DemoArgs) -> int:
    """The whole way on a small scale: collect, train both phases, evaluate, simulate, report."""
    from statevla.report import write_report

    console = Console()
    folder = expand_path(args.dir) if args.dir else home_dir() / "demo"
    stages = plan(args, folder)
    run_stages(stages, folder, console)
    report = write_report([folder], folder / "report.html", title="StateVLA demo")
    console.print(outcome_table(folder))
    seconds = sum(mark["seconds"] for _, mark in marks(folder, stages))
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
    config = load_config(file)
    data = folder / f"demonstrations_{args.suite}_{args.tasks.replace(',', '_')}"
    checkpoints, rollouts = folder / "checkpoints", folder / "rollouts"
    phase1, phase2 = checkpoints / "phase1_temporal_jepa", checkpoints / "phase2_flow_matching"
    common = ["--config", str(file), "--output_dir", str(checkpoints), "--data.path", str(data)]
    # The caches of a demo go with its folder.
    common += ["--data.cache_dir", str(folder / "frame_cache")]

    def train(name: str, run: Path, phase: list[str], steps: int | None) -> Stage:
        section, other = ("phase1", "phase2") if phase[0] == "1" else ("phase2", "phase1")
        read = config.model_copy(update={"training": config.training.model_copy(update={other: None, "bc": None})})
        limit = [] if steps is None else [f"--training.{section}.max_steps", str(steps)]
        return Stage(
            name,
            "train",
            ["--phase", *phase, *common, *limit],
            settings=read.model_dump_json(warnings=False),
            resume=lambda: ["--resume"] if (run / "last").exists() else [],
            fresh=lambda: ["--overwrite"] if (run / "last").exists() else [],
        )

    suite, tasks = ["--suite", args.suite], ["--tasks", args.tasks]
    collect = ["--demos", str(args.demos), "--image-size", str(config.model.image_size), "--workers", str(args.workers)]
    best = str(phase2 / "checkpoint_best.pt")
    rollout = ["--num_trials", str(args.trials), "--videos", str(args.videos), "--num_workers", str(args.workers)]
    return [
        Stage("collect", "collect", ["--out", str(data), *suite, *tasks, *collect]),
        train("phase1", phase1, ["1"], args.phase1_steps),
        train("phase2", phase2, ["2", "--phase1_checkpoint", str(phase1 / "checkpoint_best.pt")], args.phase2_steps),
        Stage("offline", "eval", ["--checkpoint", best, "--out", str(folder / "evaluation")]),
        Stage(
            "rollout",
            "rollout",
            ["--checkpoint", best, "--task_suite", args.suite, *tasks, *rollout, "--out", str(rollouts)],
            fresh=lambda: remove_results(rollouts),
        ),
    ]


def find_config(name: str) -> Path:
    """A configuration by its path, or in the source tree that this package is installed from.

    Raises:
        UserError: it is in neither.
    """
    path = expand_path(name)
    if not path.is_file() and not path.is_absolute():
        beside = Path(statevla.__file__).parents[2] / path
        path = beside if beside.is_file() else path
    if not path.is_file():
        raise UserError(f"config {path}: no such file; run from the source tree, or give --config with your own")
    return path


def run_stages(stages: Sequence[Stage], folder: Path, console: Console) -> None:
    """Run stages in order; one whose command, settings or predecessors have changed since its mark is run anew.

    Raises:
        UserError: a command failed.
    """
    key = ""
    for number, stage in enumerate(stages, 1):
        words = [key, stage.command, *stage.arguments, stage.settings]
        key = hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
        run_stage(stage, key, folder, f"[{number}/{len(stages)}]", console)


def run_stage(stage: Stage, key: str, folder: Path, number: str, console: Console) -> None:
    """Run a stage unless its mark says that it is done with these settings.

    Raises:
        UserError: its command failed.
    """
    path = mark_path(folder, stage)
    mark = read_mark(path)
    same = mark.get("key") == key
    if same and mark.get("done"):
        console.print(f"{number} {stage.name}: done already", highlight=False, markup=False)
        return
    more = stage.resume() if same else stage.fresh()
    spent_s = float(mark.get("seconds", 0.0)) if same else 0.0
    command = stage.shown(more)
    console.print(f"\n{number} {command}", style="bold", highlight=False, markup=False, soft_wrap=True)
    write_mark(path, {"key": key, "done": False, "seconds": spent_s, "command": command})
    began = time.monotonic()
    status = None
    try:
        status = call([sys.executable, "-m", *shlex.split(command)])
    finally:
        spent_s += time.monotonic() - began
        write_mark(path, {"key": key, "done": status == 0, "seconds": spent_s, "command": command})
    if status != 0:
        raise UserError(f"demo: stage '{stage.name}' ended with status {status}; mend what it says and run it again")


def call(command: list[str]) -> int:
    """Run a command to its end; it does not outlive this process, however that dies (on Linux, else if it can)."""

    def stop(number: int, _: object) -> None:
        sys.exit(128 + number)  # as an exception, so that the child is ended on the way out

    before = signal.signal(signal.SIGTERM, stop)
    try:
        return subprocess.run(command, check=False, preexec_fn=_die_with_parent()).returncode
    finally:
        signal.signal(signal.SIGTERM, before)


def _die_with_parent() -> Callable[[], None] | None:
    """For a child to call before it begins: Linux then ends it when its parent is gone."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG in <sys/prctl.h>

    def ask() -> None:
        libc.prctl(set_parent_death_signal, signal.SIGTERM)

    return ask


def mark_path(folder: Path, stage: Stage) -> Path:
    return folder / "stages" / f"{stage.name}.json"


def read_mark(path: Path) -> dict[str, Any]:
    try:
        mark = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def write_mark(path: Path, mark: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(mark, indent=1), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise UserError(f"demo {path}: cannot be written ({error.strerror}); give --dir on another disk") from None


def marks(folder: Path, stages: list[Stage]) -> Iterator[tuple[Stage, dict[str, Any]]]:
    for stage in stages:
        yield stage, {"seconds": 0.0, **read_mark(mark_path(folder, stage))}


def outcome_table(folder: Path) -> Table:
    """What came out, in numbers that the stages' own files hold."""
    table = Table("what", "result", title="StateVLA demo")
    rollouts = read_mark(folder / "rollouts" / "summary.json")
    evaluation = read_mark(folder / "evaluation" / "evaluation.json")
    skills = {k: v for k, v in (evaluation.get("world_model") or {}).items() if k.startswith("copy_skill")}
    for name, value in skills.items():
        table.add_row(f"world model, {name.replace('_', ' ')} (1 is perfect, 0 is copying)", _number(value))
    if actions := evaluation.get("actions"):
        table.add_row("held-out actions, normalised MSE (the mean action's)", _error_text(actions["normalized"]))
        table.add_row("held-out gripper, accuracy", _number(actions["gripper"]["accuracy"]))
    for task in rollouts.get("tasks", []):
        table.add_row(task["instruction"], _success_text(task))
    if total := rollouts.get("total"):
        table.add_row("success in simulation", _success_text(total))
    return table


def _success_text(rates: dict[str, Any]) -> str:
    low, high = rates["interval_95"]
    errors = f", {rates['errors']} errors" if rates["errors"] else ""
    return f"{rates['successes']}/{rates['episodes']} (95 %: {low:.0%} to {high:.0%}){errors}"


def _error_text(normalized: dict[str, Any]) -> str:
    return f"{_number(normalized['mse'])} ({_number(normalized['mse_of_mean_action'])})"


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"


def remove_results(folder: Path) -> list[str]:
    """Make room for the results of other settings; no arguments are needed then."""
    shutil.rmtree(folder, ignore_errors=True)
    return []
