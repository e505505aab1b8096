"""Record a training run for docs/experiments.md, whatever came out of it.

    python benchmarks/record_experiment.py --name NAME --checkpoint RUN [--rollout DIR …] [--command "…"] [--note "…"]

RUN is the folder of a run; its `evaluation.json` (eval.py) and `probe.json` are found below it, or given. What is not
there is recorded as missing: a run that failed is an experiment too. Then run `benchmarks/render_tables.py`.
"""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from harness import update_summary
from statevla.checkpoints.checkpoint import BEST, LAST
from statevla.commands.entry import run_command
from statevla.config import Config, config_from_dict, load_config, portable_text
from statevla.errors import UserError
from statevla.machine.storage import read_json, write_json
from statevla.worlds.rollout_results import read_results

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "results" / "experiments"
PLACES = ("output_dir", "device", "num_threads", "data.path", "data.cache_dir", "data.num_workers", "training.wandb")
"""Keys that say where and how often, not what; `seed` is recorded by itself."""


@dataclass(frozen=True)
class Args:
    """Record a run as `benchmarks/results/experiments/<name>.json`, its simulated episodes as CSV beside it."""

    name: str
    """Short and unique: letters, digits, hyphens."""
    checkpoint: Path
    """Folder of the run, with run.json."""
    rollout: tuple[Path, ...] = ()
    """Folders of simulated evaluations, with summary.json."""
    evaluation: Path | None = None
    """evaluation.json or its folder; by default what lies in the run's folder."""
    command: str | None = None
    """What was called, all of it; by default the command of run.json."""
    training_s: float | None = None
    """Seconds that all phases took, with opening data and encoding states; unknown by default."""
    note: str = ""
    """What was learnt, in a sentence."""
    headline: tuple[str, ...] = ()
    """For summary.json, `KEY=ROLLOUT,…`: the mean success rate of some of the rollouts, named as their folders are."""
    out: Path = FOLDER
    """Where the JSON goes."""


def record(args: Args) -> int:
    """Write the JSON of one experiment."""
    if not args.name or not all(c.isalnum() or c in "-_." for c in args.name):
        raise UserError(f"--name '{args.name}': expected letters, digits and hyphens")
    info = _read(args.checkpoint / "run.json", "--checkpoint")
    config = config_from_dict(info["config"], source=str(args.checkpoint / "run.json"))
    preset = _preset(info["command"])
    evaluation = _evaluation(args)
    tree: dict[str, Any] = {
        "name": args.name,
        "note": args.note,
        "command": args.command or shlex.join(info["command"]),
        "phase": info["phase"],
        "seed": info["seed"],
        "data": config.data.path,
        "preset": preset.name if preset else None,
        "overrides": _overrides(config, preset),
        "training": _training(args.checkpoint),
        "training_s": args.training_s,
        "diagnostics": {
            key: evaluation.get(key)
            for key in ("world_model", "go_no_go", "goals", "goal_places", "probes", "object_surprise")
        },
        "offline": evaluation.get("actions"),
        "simulated": [_rollout(folder) for folder in args.rollout],
        "versions": info["versions"],
        "git_commit": info["git_commit"],
        "machine": info["machine"],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.out / f"{args.name}.json"
    write_json(target, json.loads(portable_text(json.dumps(tree))))
    for folder in args.rollout:
        write_episodes(args.out / f"{args.name}-{folder.name}.csv", folder)
    update_summary(headlines(args.headline, dict(zip((folder.name for folder in args.rollout), tree["simulated"]))))
    print(f"{target}; now run python benchmarks/render_tables.py")
    return 0


def headlines(wanted: Sequence[str], rollouts: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """Numbers of summary.json: each `KEY=ROLLOUT,…` is the mean success rate of these rollouts, and how many episodes
    an hour they were.

    Raises:
        UserError: there is no such rollout, or one of them has not been simulated to its end.
    """
    found: dict[str, float] = {}
    for entry in wanted:
        key, _, names = entry.partition("=")
        if missing := [name for name in names.split(",") if name not in rollouts]:
            raise UserError(f"--headline {entry}: no rollout '{missing[0]}'; expected some of {', '.join(rollouts)}")
        chosen = [rollouts[name] for name in names.split(",")]
        if unfinished := [name for name, each in zip(names.split(","), chosen) if not each["complete"]]:
            raise UserError(f"--headline {entry}: rollout '{unfinished[0]}' is not complete; run it again to go on")
        found[key] = sum(each["total"]["success_rate"] for each in chosen) / len(chosen)
        wall_s = sum(each["wall_s"] for each in chosen)
        found[f"{key}_episodes_per_h"] = 3600 * sum(each["episodes_in_this_run"] for each in chosen) / wall_s
    return found


def _read(path: Path, flag: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{flag} {path.parent}: expected a folder with {path.name}, found none; check the path")
    return dict(read_json(path))


def _preset(command: list[str]) -> Path | None:
    """The YAML file that a `train.py` command names, where it is still there."""
    words = [word for argument in command for word in argument.split("=", 1)]
    named = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--config"]
    path = ROOT / (named[0] if named else "conf/config.yaml")
    return path if path.is_file() else None


def _overrides(config: Config, preset: Path | None) -> dict[str, Any]:
    """Dotted keys of the run that differ from its preset (from the defaults where there is none)."""
    ours = _flat(config.model_dump(mode="json"))
    theirs = _flat((load_config(preset) if preset else Config()).model_dump(mode="json"))
    differing = {key: value for key, value in ours.items() if value != theirs.get(key)}
    return {key: value for key, value in differing.items() if key not in PLACES and key != "seed"}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _training(run: Path) -> dict[str, Any]:
    """Steps, time and validation of the best and the last checkpoint; empty where training wrote none."""
    found = {}
    for name in (BEST, LAST):
        path = run / name / "metrics.json"
        if path.is_file():
            metrics = read_json(path)
            found[name] = {key: metrics.get(key) for key in ("step", "trained_s", "validation")}
    return found


def _evaluation(args: Args) -> dict[str, Any]:
    """`evaluation.json`, else `probe.json`; the one that is given, or that lies in the run's folder."""
    if args.evaluation is not None:
        path = args.evaluation / "evaluation.json" if args.evaluation.is_dir() else args.evaluation
        return _read(path, "--evaluation")
    for pattern in ("evaluation_*/evaluation.json", "probe_*/probe.json", "probe.json"):
        for path in sorted(args.checkpoint.glob(pattern)):
            return dict(read_json(path))
    return {}


def write_episodes(target: Path, folder: Path) -> None:
    """Every simulated episode, a row each: what it was, and what came out."""
    columns = ("task", "trial", "init_state_index", "seed", "success", "error", "num_steps")
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for _, result in sorted(read_results(folder).items()):
            writer.writerow([getattr(result, column) for column in columns])


def _rollout(folder: Path) -> dict[str, Any]:
    summary = _read(folder / "summary.json", "--rollout")
    kept = ["complete", "planned", "total", "settings", "policy_latency_ms", "wall_s", "episodes_in_this_run", "time_s"]
    kept += ["command", "versions", "git_commit", "machine"]
    tasks = [
        {key: task[key] for key in ("name", "successes", "episodes", "interval_95", "errors")}
        for task in summary["tasks"]
    ]
    return {**{key: summary.get(key) for key in kept}, "tasks": tasks}


if __name__ == "__main__":
    run_command(lambda: record(tyro.cli(Args)))
