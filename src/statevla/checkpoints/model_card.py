"""The README.md of a shared checkpoint: what it is, what it was made of, what it can do and what it cannot."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from statevla.checkpoints.checkpoint import RUN_FILE
from statevla.checkpoints.hub import hub_dataset
from statevla.checkpoints.measured import HEADING, Results, model_index, read_tree, result_lines
from statevla.checkpoints.version import VERSION_FILE
from statevla.config import PHASES
from statevla.robots import RobotSpec
from statevla.robots.describe import camera_text, field_text, group_text

_TAGS = ["robotics", "vision-language-action", "world-model", "flow-matching", "mamba"]
_ENGLISH_ENCODERS = {"minilm"}
"""Text encoders by name that read English alone."""


def model_card(checkpoint: Path, name: str, results: Results) -> str:
    """The card of a checkpoint's folder, in Markdown with the hub's metadata.

    Numbers come from files: the checkpoint's own, and what was measured with it. What was not is said to be so.

    Args:
        checkpoint: the folder of the shared checkpoint, with the run's `run.json`.
        name: what `from_pretrained` is to be called with; its last part is the heading.
        results: what was measured.

    Raises:
        UserError: what the checkpoint says of its robot is damaged.
    """
    config, metrics, data = (read_tree(checkpoint / f"{part}.json") for part in ("config", "metrics", "data"))
    version, run = read_tree(checkpoint / VERSION_FILE), read_tree(checkpoint / RUN_FILE)
    robot = RobotSpec.from_dict(read_tree(checkpoint / "robot.json"), str(checkpoint / "robot.json"))
    relative = read_tree(checkpoint / "statistics.json").get("relative_actions", [])
    title = PurePosixPath(name).name
    lines = ["---", *_metadata(title, config, results), "---", f"# {title}", "", *_introduction(config, metrics, name)]
    lines += ["", "## Robot", "", *_robot(robot, config, relative)]
    lines += ["", "## Training", "", *_training(config, metrics, data, run)]
    lines += ["", HEADING, "", *result_lines(results)]
    lines += ["", "## Surprise alarm", "", *_alarm(checkpoint)]
    lines += ["", "## Limits", "", *_limits(config)]
    lines += ["", "## Versions", "", *_versions(version)]
    return "\n".join(lines) + "\n"


def _metadata(title: str, config: dict[str, Any], results: Results) -> list[str]:
    """The hub's metadata, lines of YAML: data sets, language and results where they are known."""
    tree: dict[str, Any] = {"license": "mit", "library_name": "statevla", "pipeline_tag": "robotics", "tags": _TAGS}
    if str(config.get("language", {}).get("encoder")) in _ENGLISH_ENCODERS:
        tree["language"] = ["en"]
    data = config.get("data", {})
    paths = [data.get("path"), *(source.get("path") for source in data.get("sources", []))]
    if found := [name for path in paths if (name := hub_dataset(str(path)))]:
        tree["datasets"] = list(dict.fromkeys(found))
    if index := model_index(title, results):
        tree["model-index"] = index
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=1000).splitlines()


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


def _alarm(checkpoint: Path) -> Iterator[str]:
    alarm = read_tree(checkpoint / "alarm.json")
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


def _code(text: str) -> str:
    return f"`{text}`"
