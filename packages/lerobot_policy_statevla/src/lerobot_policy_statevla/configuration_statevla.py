"""Configuration: which phase, from which StateVLA settings, for which robot."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig

from lerobot_policy_statevla.robot import robot_of_dataset, same_robot
from statevla.checkpoints.checkpoint import read_config, read_robot, resolve_checkpoint
from statevla.config import PHASES, Config, config_from_dict, fit_to_robot, load_config
from statevla.errors import UserError
from statevla.robots import ImageOrientation, RobotSpec, load_robot

ORIENTATIONS = tuple(orientation.value for orientation in ImageOrientation)


@PreTrainedConfig.register_subclass("statevla")
@dataclass
class StateVLAConfig(PreTrainedConfig):
    """Settings of one training run, and of the policy that comes out of it.

    Attributes:
        phase: `1` (Temporal JEPA), `2` (flow matching on the frozen encoder) or `bc` (end to end).
        phase1_checkpoint: for phase 2, a `pretrained_model` folder of a phase-1 run, or a checkpoint of StateVLA's own.
        config_file: StateVLA's YAML configuration; None is the spec's. Phase 2 takes phase 1's instead.
        overrides: dotted keys over it, such as `training.phase1.frame_skip=4`.
        robot: what actions, state and cameras mean: the name of a known robot or a YAML file; `auto` believes the data
            set's `info.json`, else the names of its features.
        n_action_steps: actions executed per chunk; None is the whole chunk.
        image_orientation: one of `ORIENTATIONS`; `auto` believes the robot's cameras.
        training_steps: length of the learning-rate and EMA schedules; give what `--steps` says.
        settings: the whole resolved StateVLA configuration as JSON; written by the policy, not by hand.
        robot_settings: the robot as JSON, with the data set's features as keys; likewise.
    """

    phase: str = "2"
    phase1_checkpoint: str | None = None
    config_file: str | None = None
    overrides: list[str] = field(default_factory=list)
    robot: str = "auto"
    n_action_steps: int | None = None
    image_orientation: str = "auto"
    training_steps: int = 100_000
    settings: str | None = None
    robot_settings: str | None = None

    # Everything passes through LeRobot's normaliser: what a trained encoder was fed with is part of its weights, while
    # lerobot-train replaces a loaded normaliser's statistics by those of whatever data set it sees next.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.phase = str(self.phase)
        if self.phase not in PHASES:
            raise ValueError(f"policy.phase: expected one of {', '.join(PHASES)}, got '{self.phase}'")
        if self.image_orientation not in ("auto", *ORIENTATIONS):
            raise ValueError(
                f"policy.image_orientation: expected auto or one of {', '.join(ORIENTATIONS)}, got "
                f"'{self.image_orientation}'"
            )
        if any(mode is not NormalizationMode.IDENTITY for mode in self.normalization_mapping.values()):
            raise ValueError(
                "policy.normalization_mapping: expected IDENTITY everywhere; statevla normalises by itself"
            )

    # What LeRobot asks ------------------------------------------------------------------------------------------------

    @property
    def observation_delta_indices(self) -> list[int] | None:
        """Phase 1 sees windows of frames; the others see the present one."""
        if self.phase != "1":
            return None
        phase1 = self.statevla().training.phase1
        return [phase1.frame_skip * i for i in range(phase1.num_frames)]

    @property
    def action_delta_indices(self) -> list[int]:
        config = self.statevla()
        phase1 = config.training.phase1
        count = phase1.frame_skip * (phase1.num_frames - 1) if self.phase == "1" else config.model.action_seq_len
        return list(range(count))

    @property
    def reward_delta_indices(self) -> None:
        return None

    @property
    def drop_n_last_frames(self) -> int:
        """Windows of phase 1 end inside their episode; chunks of the others are padded and masked."""
        return len(self.action_delta_indices) if self.phase == "1" else 0

    def get_optimizer_preset(self) -> AdamWConfig:
        training = self.statevla().training
        return AdamWConfig(
            lr=self._phase_section().learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            grad_clip_norm=training.grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        section = self._phase_section()
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=max(1, min(section.warmup_steps, self.training_steps // 10)),
            num_decay_steps=self.training_steps,
            peak_lr=section.learning_rate,
            decay_lr=0.0,
        )

    def validate_features(self) -> None:
        """Raise a ValueError unless the data set has pictures and actions; the robot says the rest."""
        if not self.image_features:
            raise ValueError("statevla: expected at least one camera (observation.images.*) in the data set, got none")
        if self.action_feature is None:
            raise ValueError("statevla: expected a feature 'action' in the data set, got none")

    # StateVLA's side --------------------------------------------------------------------------------------------------

    def statevla(self) -> Config:
        """StateVLA's configuration: the resolved one if there is one, else file, phase 1 and overrides as far as known.

        Raises:
            UserError: file or checkpoint are missing or wrong.
        """
        if self.settings is not None:
            return config_from_dict(json.loads(self.settings), "policy.settings")
        if self.phase == "2" and self.phase1_checkpoint is not None:
            return _overridden(read_phase1(self.phase1_checkpoint)[0].model_dump(mode="json"), self.overrides)
        if self.config_file is not None:
            return load_config(self.config_file, self.overrides)
        return _overridden({}, self.overrides)

    def resolve(self, dataset_meta: Any = None) -> tuple[Config, RobotSpec]:
        """`statevla()` and the robot, each with what the other says; kept in `settings` and `robot_settings`.

        Args:
            dataset_meta: LeRobot's metadata of the data set; needed the first time, checked against later.

        Raises:
            UserError: settings, phase-1 checkpoint and data set do not fit each other.
            ValueError: the data set lacks pictures or actions.
        """
        if self.settings is not None:
            robot = _read_robot(self.robot_settings, "policy.robot_settings")
            if dataset_meta is not None:
                robot_of_dataset(dataset_meta.root, _seen(robot))
            return self.statevla(), robot
        self.validate_features()
        if dataset_meta is None:
            raise UserError(
                "statevla: no data set to learn the robot from; make the policy with one, or load a trained one"
            )
        tree = self.statevla().model_dump(mode="json")
        if self.phase == "2" and self.phase1_checkpoint is not None:
            robot = self._robot_of_phase1(dataset_meta, self.phase1_checkpoint)
        else:
            robot = self._robot_of(dataset_meta)
            tree["model"] |= dict.fromkeys(("cameras", "robot_state_dim", "action_dim"), "auto")
        config, robot = fit_to_robot(config_from_dict(tree, "policy"), robot)
        self.settings = json.dumps(config.model_dump(mode="json"))
        self.robot_settings = json.dumps(robot.to_dict())
        return config, robot

    def _robot_of(self, dataset_meta: Any, otherwise: RobotSpec | None = None) -> RobotSpec:
        """The data set's robot, as `policy.robot` declares it, or `otherwise`."""
        declared = otherwise if self.robot == "auto" else load_robot(self.robot)
        orientation = None if self.image_orientation == "auto" else ImageOrientation(self.image_orientation)
        return robot_of_dataset(dataset_meta.root, declared, orientation)

    def _robot_of_phase1(self, dataset_meta: Any, path: str) -> RobotSpec:
        """Phase 1's robot, bound to the data set; a data set that does not declare its robot is taken for phase 1's."""
        _, trained = read_phase1(path)
        robot = self._robot_of(dataset_meta)
        # The keys of StateVLA's own checkpoints are those of its own data sets, these are LeRobot's.
        if self.robot == "auto" and robot.assumed and is_lerobot_checkpoint(path):
            robot = self._robot_of(dataset_meta, _seen(trained))
        return same_robot(trained, robot, f"policy.phase1_checkpoint {path}")

    def _phase_section(self) -> Any:
        training = self.statevla().training
        return getattr(training, PHASES[self.phase].section)


def is_lerobot_checkpoint(path: str) -> bool:
    """Whether a folder was written by LeRobot with this policy, rather than by StateVLA's own trainer."""
    file = Path(path) / "config.json"
    return file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("type") == "statevla"


def read_phase1(path: str) -> tuple[Config, RobotSpec]:
    """The configuration that a phase-1 run ended with, and its robot.

    Raises:
        UserError: there is no such checkpoint.
    """
    if is_lerobot_checkpoint(path):
        saved = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        if not saved.get("settings"):
            raise UserError(f"policy.phase1_checkpoint {path}: its config.json has no settings; it was not trained")
        robot = _read_robot(saved.get("robot_settings"), f"policy.phase1_checkpoint {path}")
        return config_from_dict(json.loads(saved["settings"]), path), robot
    folder = resolve_checkpoint(path)
    return read_config(folder), read_robot(folder)


def _seen(robot: RobotSpec) -> RobotSpec:
    """The robot without the state that the policy does not see, which no data set needs to have."""
    return robot.model_copy(update={"state": robot.policy_fields})


def _read_robot(text: str | None, source: str) -> RobotSpec:
    if text is None:
        raise UserError(f"{source}: it declares no robot, an older version wrote it; train it again")
    return RobotSpec.from_dict(json.loads(text), source)


def _overridden(tree: Mapping[str, Any], overrides: list[str]) -> Config:
    # JSON is YAML: the loader of files does the overriding.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.yaml"
        file.write_text(json.dumps(tree), encoding="utf-8")
        return load_config(file, overrides)
