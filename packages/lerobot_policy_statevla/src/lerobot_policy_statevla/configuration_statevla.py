"""Configuration: which phases, from which StateVLA settings, for which robot."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamWConfig

from lerobot_policy_statevla.progress import StateVLASchedulerConfig
from statevla.checkpoints.checkpoint import read_config, resolve_checkpoint
from statevla.checkpoints.lerobot_policy import PolicySettings
from statevla.config import PHASES, Config, load_config
from statevla.errors import UserError
from statevla.robots import ImageOrientation

BOTH, AUTO = "both", "auto"
ORIENTATIONS = tuple(orientation.value for orientation in ImageOrientation)
KEPT, OF_DATASET = "kept", "dataset"


@PreTrainedConfig.register_subclass("statevla")
@dataclass
class StateVLAConfig(PreTrainedConfig):
    """Settings of one training run, and of the policy that comes out of it.

    Attributes:
        phase: `both` (Temporal JEPA, then flow matching on its frozen encoder), one of them alone (`1`, `2`), or `bc`
            (end to end).
        phase1_share: of the steps, that phase 1 takes in `both`.
        phase1_checkpoint: for phase 2, a `pretrained_model` folder of a phase-1 run, or a checkpoint of StateVLA's own.
        config_file: StateVLA's YAML configuration, or the name of a preset. Phase 2 takes phase 1's instead.
        overrides: dotted keys over it, such as `training.phase1.frame_skip=4`.
        robot: what actions, state and cameras mean: the name of a known robot or a YAML file; `auto` believes the data
            set's `info.json`, else the names of its features.
        image_orientation: one of `ORIENTATIONS`; `auto` believes the robot's cameras.
        chunk_size: actions per chunk; None takes `model.action_seq_len`.
        n_action_steps: actions executed per chunk; None is the whole chunk.
        optimizer_lr: peak of the learning rate; None takes the configuration's, of each phase.
        statistics: what a trained policy normalises by when it is trained on: its own (`kept`), or the new data set's
            (`dataset`).
        default_task: in words, for environments that say none, such as LeRobot's `aloha` and `pusht`.
        settings: what was resolved (`PolicySettings`), as JSON; written by the policy, not by hand.
    """

    phase: str = BOTH
    phase1_share: float = 0.6
    phase1_checkpoint: str | None = None
    config_file: str = "compact"
    overrides: list[str] = field(default_factory=list)
    robot: str = AUTO
    image_orientation: str = AUTO
    chunk_size: int | None = None
    n_action_steps: int | None = None
    optimizer_lr: float | None = None
    statistics: str = KEPT
    default_task: str = ""
    settings: str | None = None

    # Everything passes through LeRobot's normaliser: what a trained encoder was fed with is part of its weights, while
    # lerobot-train replaces a loaded normaliser's statistics by those of whatever data set it sees next.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.phase = str(self.phase)

    # What LeRobot asks ------------------------------------------------------------------------------------------------

    @property
    def phases(self) -> tuple[str, ...]:
        """The trainer's phases that a run goes through, in turn."""
        return ("1", "2") if self.phase == BOTH else (self.phase,)

    @property
    def observation_delta_indices(self) -> list[int] | None:
        """Phase 1 sees windows of frames; the others see the present one."""
        if "1" not in self.phases:
            return None
        phase1 = self.statevla().training.phase1
        return [phase1.frame_skip * i for i in range(phase1.num_frames)]

    @property
    def action_delta_indices(self) -> list[int]:
        config = self.statevla()
        counts = [config.model.action_seq_len] if self.phases[-1] != "1" else []
        if "1" in self.phases:
            counts.append(config.training.phase1.frame_skip * (config.training.phase1.num_frames - 1))
        return list(range(max(counts)))

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
            lr=self._peaks(training)[0],
            betas=training.betas,
            weight_decay=training.weight_decay,
            grad_clip_norm=training.grad_clip_norm,
        )

    def get_scheduler_preset(self) -> StateVLASchedulerConfig:
        training = self.statevla().training
        warmups = [getattr(training, PHASES[phase].section).warmup_steps for phase in self.phases]
        return StateVLASchedulerConfig(num_warmup_steps=warmups, peaks=self._peaks(training))

    def _peaks(self, training: Any) -> list[float]:
        """Learning rate of each phase."""
        return [self.optimizer_lr or getattr(training, PHASES[phase].section).learning_rate for phase in self.phases]

    def validate_features(self) -> None:
        """Raise a ValueError unless the data set has pictures and actions; the robot says the rest."""
        if not self.image_features:
            raise ValueError("statevla: expected at least one camera (observation.images.*) in the data set, got none")
        if self.action_feature is None:
            raise ValueError("statevla: expected a feature 'action' in the data set, got none")

    # StateVLA's side --------------------------------------------------------------------------------------------------

    def statevla(self) -> Config:
        """StateVLA's configuration, before the robot fills in its dimensions: file or phase 1, and what is set over it.

        Raises:
            UserError: file or checkpoint are missing or wrong, or a value is out of range.
        """
        self._check_choices()
        chosen = list(self.overrides)
        if self.chunk_size is not None:
            chosen.append(f"model.action_seq_len={self.chunk_size}")
        if self.settings is not None:
            trained = self.trained().config
            config = _overridden(trained.model_dump(mode="json"), chosen)
            if config.model.action_seq_len != trained.model.action_seq_len:
                raise UserError(
                    f"policy.chunk_size {config.model.action_seq_len}: this policy answers chunks of "
                    f"{trained.model.action_seq_len}; leave it out, or train anew"
                )
        elif self.phase == "2" and self.phase1_checkpoint is not None:
            config = _overridden(config_of_checkpoint(self.phase1_checkpoint).model_dump(mode="json"), chosen)
        else:
            config = load_config(self.config_file, chosen)
        self._check_steps(config.model.action_seq_len)
        return config

    def trained(self) -> PolicySettings:
        """What a trained policy was resolved to.

        Raises:
            UserError: it was not trained, or its settings are damaged.
        """
        if self.settings is None:
            raise UserError("statevla: this policy was not trained; make it with a data set, or load a trained one")
        return PolicySettings.from_json(self.settings, "policy.settings")

    def _check_choices(self) -> None:
        """Raise a UserError where a setting is none of those that there are; earlier, LeRobot would hide which."""
        _check_choice("phase", self.phase, (BOTH, *PHASES))
        _check_choice("image_orientation", self.image_orientation, (AUTO, *ORIENTATIONS))
        _check_choice("statistics", self.statistics, (KEPT, OF_DATASET))
        if not 0 < self.phase1_share < 1:
            raise UserError(f"policy.phase1_share: expected more than 0 and less than 1, got {self.phase1_share}")
        if self.phase1_checkpoint is not None and self.phase != "2" and self.settings is None:
            raise UserError(
                f"policy.phase1_checkpoint: phase {self.phase} takes none; leave it out, or say --policy.phase=2"
            )
        if any(mode is not NormalizationMode.IDENTITY for mode in self.normalization_mapping.values()):
            raise UserError("policy.normalization_mapping: expected IDENTITY everywhere; statevla normalises by itself")

    def _check_steps(self, horizon: int) -> None:
        steps = horizon if self.n_action_steps is None else self.n_action_steps
        if not 1 <= steps <= horizon:
            raise UserError(
                f"policy.n_action_steps: expected 1 to {horizon} (the chunk), got {steps}; choose one of these"
            )


def config_of_checkpoint(path: str) -> Config:
    """The configuration of a checkpoint, of LeRobot's or of StateVLA's own."""
    return read_config(resolve_checkpoint(path))


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"policy.{name}: expected one of {', '.join(choices)}, got '{value}'")


def _overridden(tree: Mapping[str, Any], overrides: Sequence[str]) -> Config:
    # JSON is YAML: the loader of files does the overriding.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.yaml"
        file.write_text(json.dumps(tree), encoding="utf-8")
        return load_config(file, overrides)
