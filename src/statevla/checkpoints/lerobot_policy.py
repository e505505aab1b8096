"""Policies that LeRobot trained with this repository's plugin, as checkpoints that every command takes.

LeRobot keeps a policy as `config.json`, with the policy's type, and `model.safetensors`. Both are read here without
LeRobot; the checkpoint made of them lies in `$STATEVLA_HOME/lerobot_policies`, by its run and what it was made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from statevla.checkpoints.version import MODEL_FILE, write_version
from statevla.config import Config, config_from_dict, home_dir
from statevla.config.paths import LEROBOT_POLICIES
from statevla.errors import UserError
from statevla.machine.lock import only_writer_of
from statevla.machine.storage import (
    read_json,
    read_tensors,
    replacing_folder,
    sha256,
    write_json,
    write_tensors,
    writing,
)
from statevla.model.language import LanguageInfo
from statevla.robots import RobotSpec
from statevla.transforms import Statistics

POLICY_TYPE = "statevla"
PREFIX = "model."
"""Of the model's tensors; others are the plugin's own."""
NUM_UPDATES, SWITCHED_AT = "num_updates", "switched_at"
"""Optimizer steps so far; the step at which a run of both phases began its second one, or -1."""
_MAX_NAME = 40
_VERSION = 1
"""Of the checkpoints made here; raise it when the same policy would give another one."""


@dataclass(frozen=True)
class PolicySettings:
    """What a policy of the plugin was resolved to when it was made with a data set."""

    config: Config
    robot: RobotSpec
    statistics: Statistics
    language: LanguageInfo

    def to_json(self) -> str:
        """One line of JSON, numbers exact."""
        return json.dumps(
            {
                "config": self.config.model_dump(mode="json"),
                "robot": self.robot.to_dict(),
                "statistics": self.statistics.to_dict(),
                "language": asdict(self.language),
            }
        )

    @classmethod
    def from_json(cls, text: str, source: str) -> PolicySettings:
        """Inverse of `to_json`.

        Raises:
            UserError: malformed; `source` names where it stands.
        """
        try:
            tree = json.loads(text)
            language = TypeAdapter(LanguageInfo).validate_python(tree["language"])
            config, robot, statistics = tree["config"], tree["robot"], tree["statistics"]
        except (TypeError, ValueError, KeyError, ValidationError):
            raise UserError(
                f"{source}: not what the plugin writes; the file is damaged, or of another version"
            ) from None
        return cls(
            config_from_dict(config, source),
            RobotSpec.from_dict(robot, source),
            Statistics.from_dict(statistics, source),
            language,
        )


def is_lerobot_policy(folder: Path) -> bool:
    """Whether LeRobot wrote a policy of the plugin there."""
    file = folder / "config.json"
    if not file.is_file() or (folder / "version.json").exists():
        return False
    try:
        tree = read_json(file)
    except UserError:
        return False
    return isinstance(tree, dict) and tree.get("type") == POLICY_TYPE


def as_checkpoint(folder: Path) -> Path:
    """The checkpoint of a policy's folder, made where there is none yet.

    Raises:
        UserError: the policy is damaged or was not trained, or the disk does not take it.
    """
    tree = read_json(folder / "config.json")
    text = tree.get("settings")
    if not isinstance(text, str):
        raise UserError(f"policy {folder}: its config.json has no settings; it was not trained")
    identity = [str(_VERSION), sha256(folder / MODEL_FILE), text, str(tree.get("phase"))]
    key = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    target = home_dir() / LEROBOT_POLICIES / f"{_run_name(folder)}_{key}"
    if not (target / MODEL_FILE).exists():
        with only_writer_of(target), writing(target):
            if not (target / MODEL_FILE).exists():
                with replacing_folder(target) as part:
                    _write(part, folder, tree, PolicySettings.from_json(text, f"policy {folder / 'config.json'}"))
    return target


def _run_name(folder: Path) -> str:
    """What results and servers call the policy: its run, in which it is `checkpoints/000100/pretrained_model`."""
    policy = folder.resolve()
    run = policy.parents[2] if policy.parent.parent.name == "checkpoints" else policy
    return run.name[:_MAX_NAME]


def _write(target: Path, folder: Path, tree: Mapping[str, Any], settings: PolicySettings) -> None:
    tensors = read_tensors(folder / MODEL_FILE)
    own = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    write_tensors(target / MODEL_FILE, own)
    phase = str(tree.get("phase"))
    if phase == "both":
        phase = "2" if int(tensors[SWITCHED_AT]) >= 0 else "1"
    parts = {
        "config": settings.config.model_dump(mode="json"),
        "robot": settings.robot.to_dict(),
        "statistics": settings.statistics.to_dict(),
        "language": asdict(settings.language),
        # LeRobot trains on all episodes: none is held out.
        "data": {"cache": "", "train_split": 1.0, "split_seed": settings.config.seed},
        "metrics": {"phase": phase, "step": int(tensors[NUM_UPDATES])},
    }
    for name, part in parts.items():
        write_json(target / f"{name}.json", part)
    write_version(target)
