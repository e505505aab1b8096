"""The README.md of a shared checkpoint: what it is, what it was made of, what it can do and what it cannot."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from statevla.checkpoints.checkpoint import RUN_FILE, weights_hash
from statevla.checkpoints.comparisons import binary_lines, comparisons
from statevla.checkpoints.version import ROUNDED_FROM, VERSION_FILE
from statevla.config import PHASES, home_dir
from statevla.robots import RobotSpec
from statevla.robots.describe import camera_text, field_text, group_text

_HEAD = """---
license: mit
library_name: statevla
pipeline_tag: robotics
tags: [robotics, vision-language-action, world-model, flow-matching, mamba]
---
"""


@dataclass(frozen=True)
class Measured:
    """Where measurements of a checkpoint lie.

    Attributes:
        runs: folders of runs, with offline evaluations in `evaluation*/`.
        rollouts: results folders of `statevla rollout`; those in `$STATEVLA_HOME/rollouts` are found besides.
    """

    runs: Sequence[Path] = ()
    rollouts: Sequence[Path] = ()


def model_card(checkpoint: Path, name: str, measured: Measured) -> str:
    """The card of a checkpoint's folder, in Markdown with the hub's metadata.

    Numbers come from files: the checkpoint's own, offline evaluations of its run, and summaries of rollouts of the same
    weights. What was not measured is said to be so.

    Args:
        checkpoint: the folder of the shared checkpoint, with the run's `run.json`.
        name: what `from_pretrained` is to be called with; its last part is the heading.
        measured: where to look.

    Raises:
        UserError: what the checkpoint says of its robot is damaged.
    """
    config, metrics, data = (_read(checkpoint / f"{part}.json") for part in ("config", "metrics", "data"))
    version, run = _read(checkpoint / VERSION_FILE), _read(checkpoint / RUN_FILE)
    robot = RobotSpec.from_dict(_read(checkpoint / "robot.json"), str(checkpoint / "robot.json"))
    relative = _read(checkpoint / "statistics.json").get("relative_actions", [])
    lines = [_HEAD + f"# {PurePosixPath(name).name}", "", *_introduction(config, metrics, name)]
    lines += ["", "## Robot", "", *_robot(robot, config, relative)]
    lines += ["", "## Training", "", *_training(config, metrics, data, run)]
    lines += ["", "## Measured", "", *_measured(checkpoint, measured)]
    lines += ["", "## Surprise alarm", "", *_alarm(checkpoint)]
    lines += ["", "## Limits", "", *_limits(config)]
    lines += ["", "## Versions", "", *_versions(version)]
    return "\n".join(lines) + "\n"


def _introduction(config: dict[str, Any], metrics: dict[str, Any], name: str) -> Iterator[str]:
    model, phase = config.get("model", {}), str(metrics.get("phase"))
    yield (
        "A StateVLA policy: one Mamba encoder of language, robot state and cameras, a world model in latent space, and "
        f"chunks of {model.get('action_seq_len')} actions by flow matching. This checkpoint: "
        f"{PHASES[phase].title if phase in PHASES else 'not said'}."
    )
    yield ""
    yield from (
        "```python",
        "from statevla import load_policy",
        "",
        f'policy = load_policy("{name}")',
        "action = policy.act(observation)",
        "```",
    )


def _robot(robot: RobotSpec, config: dict[str, Any], relative: Sequence[str]) -> Iterator[str]:
    yield f"It acts for the robot {_code(robot.name)}, {robot.control_freq_hz:g} times a second."
    yield ""
    yield f"- actions, {robot.action_dim} numbers:"
    yield from (f"    - {_code(group.name)}: {group_text(group)}" for group in robot.actions)
    if relative:
        groups = ", ".join(map(_code, relative))
        yield f"    - trained relative to the state at the start of a chunk: {groups}; it answers absolute ones"
    yield f"- robot state, {robot.state_dim} numbers:" if robot.state_dim else "- robot state: none"
    yield from (f"    - {_code(field.name)}: {field_text(field)}" for field in robot.policy_fields)
    size = config.get("model", {}).get("image_size")
    yield f"- cameras, seen upright at {size} px; how the training data have them:"
    yield from (f"    - {_code(camera.name)}: {camera_text(camera)}" for camera in robot.cameras)
    yield from (f"- assumed: {sentence}" for sentence in robot.assumed)


def _training(
    config: dict[str, Any], metrics: dict[str, Any], data: dict[str, Any], run: dict[str, Any]
) -> Iterator[str]:
    command = run.get("command")
    source = Path(str(config.get("data", {}).get("path", ""))).name
    yield f"- data: `{source}`, cache `{data.get('cache') or 'not said'}`"
    for further in config.get("data", {}).get("sources", []):
        unlabelled = "" if further.get("labelled") else ", not imitated"
        yield f"- and: `{Path(str(further.get('path'))).name}`, weight {further.get('weight')}{unlabelled}"
    limit = f", of these {data['demos_per_task']} a task" if data.get("demos_per_task") else ""
    yield f"- split: {data.get('train_split')} of the episodes of every task{limit}, seed {data.get('split_seed')}"
    yield f"- command: {_code(shlex.join(map(str, command))) if command else 'not recorded'}"
    yield f"- seed: {run.get('seed', config.get('seed'))}"
    yield f"- steps: {metrics.get('step', 'not recorded')}"


def _measured(checkpoint: Path, measured: Measured) -> Iterator[str]:
    found = list(_summaries(checkpoint, measured.rollouts))
    evaluations = sorted(file for run in measured.runs for file in run.glob("evaluation*/evaluation.json"))
    if not found and not evaluations:
        yield "Nothing was measured with this checkpoint."
    rounded = _read(checkpoint / VERSION_FILE).get(ROUNDED_FROM)
    if rounded is not None:
        yield "The weights are rounded to float16; what was measured before rounding is marked."
        yield ""
    for summary in found:
        total, settings = summary["total"], summary["settings"]
        low, high = total["interval_95"]
        rate = "no episodes" if total["success_rate"] is None else f"{total['success_rate']:.1%}"
        complete = "" if summary.get("complete") else ", not complete"
        if "execute_steps" in settings:
            complete += f", {settings['execute_steps']} actions per look"
        complete += ", before rounding" if settings["weights_sha256"] == rounded else ""
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
    for path in evaluations:
        results = _read(path)
        what = f"{results.get('num_episodes')} {results.get('split')} episodes"
        if actions := results.get("actions"):
            yield f"- actions on {what}:"
            yield from (f"    - {line}" for line in [*comparisons(actions), *binary_lines(actions)])
        skill = (results.get("world_model") or {}).get("copy_skill_1")
        if skill is not None:
            yield f"- world model on {what}: copy skill {skill:.3f} (0 is copying the present, 1 perfect)"


def _alarm(checkpoint: Path) -> Iterator[str]:
    alarm = _read(checkpoint / "alarm.json")
    if not alarm:
        yield "Not calibrated (`statevla calibrate`): the policy reports surprise but raises no alarm."
        return
    yield (
        f"Calibrated on {alarm['source']}: at most {alarm['alpha']:.0%} of episodes that are exchangeable with "
        "these raise a false alarm."
    )


def _limits(config: dict[str, Any]) -> Iterator[str]:
    yield "- It knows the tasks, objects, cameras and robot of its data; nothing was measured beyond what stands above."
    yield "- Rates in simulation say nothing about a real robot. No safety function: keep limits and a stop button."
    yield f"- Instructions are read by `{Path(str(config.get('language', {}).get('encoder', ''))).name}`."


def _versions(version: dict[str, Any]) -> Iterator[str]:
    for package, number in (version.get("versions") or {}).items():
        yield f"- {package} {number}"
    yield f"- commit {version.get('git_commit') or 'not recorded'}"


def _summaries(checkpoint: Path, rollouts: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Rollout summaries of these very weights, or of those that they were rounded from."""
    wanted = {weights_hash(checkpoint), _read(checkpoint / VERSION_FILE).get(ROUNDED_FROM)} - {None}
    folders = [*rollouts, *sorted((home_dir() / "rollouts").glob("*"))]
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        summary = _read(folder / "summary.json")
        if (summary.get("settings") or {}).get("weights_sha256") in wanted:
            yield summary


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; what is absent or damaged was not recorded."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _code(text: str) -> str:
    return f"`{text}`"
