"""Configuration: which phase, from which StateVLA settings, on which features of a LeRobot data set."""

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
from lerobot.utils.constants import OBS_IMAGES

from statevla.config import Config, config_from_dict, load_config
from statevla.errors import UserError
from statevla.training.checkpoint import resolve_checkpoint
from statevla.types import RobotStateLayout

PHASES = ("1", "2", "bc")
ORIENTATIONS: Mapping[str, tuple[int, ...]] = {
    "upright": (),
    "flipped_vertically": (-2,),
    "rotated_180": (-2, -1),
    "mirrored": (-1,),
}
"""How pictures are stored → dims of `[..., 3, H, W]` to flip so that they stand upright."""
CAMERA_NAMES = {"image": "agentview", "image2": "eye_in_hand", "wrist_image": "eye_in_hand"}
"""LIBERO's cameras on the hub → StateVLA's names; others keep theirs."""


@PreTrainedConfig.register_subclass("statevla")
@dataclass
class StateVLAConfig(PreTrainedConfig):
    """Settings of one training run, and of the policy that comes out of it.

    Attributes:
        phase: `1` (Temporal JEPA), `2` (flow matching on the frozen encoder) or `bc` (end to end).
        phase1_checkpoint: for phase 2, a `pretrained_model` folder of a phase-1 run, or a checkpoint of StateVLA's own.
        config_file: StateVLA's YAML configuration; None is the spec's. Phase 2 takes phase 1's instead.
        overrides: dotted keys over it, such as `training.phase1.frame_skip=4`.
        n_action_steps: actions executed per chunk; None is the whole chunk.
        image_orientation: a key of `ORIENTATIONS`; `auto` believes the data set's `info.json`, else `upright`.
        training_steps: length of the learning-rate and EMA schedules; give what `--steps` says.
        settings: the whole resolved StateVLA configuration as JSON; written by the policy, not by hand.
    """

    phase: str = "2"
    phase1_checkpoint: str | None = None
    config_file: str | None = None
    overrides: list[str] = field(default_factory=list)
    n_action_steps: int | None = None
    image_orientation: str = "auto"
    training_steps: int = 100_000
    settings: str | None = None

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
        """Raise a ValueError unless the data set has pictures, a known robot state and actions."""
        if not self.image_features:
            raise ValueError("statevla: expected at least one camera (observation.images.*) in the data set, got none")
        state, action = self.robot_state_feature, self.action_feature
        dims = {layout.dim: layout for layout in RobotStateLayout}
        if state is None or len(state.shape) != 1 or state.shape[0] not in dims:
            known = " or ".join(f"{layout.dim} ({layout.value})" for layout in RobotStateLayout)
            raise ValueError(
                f"statevla: expected observation.state of {known} numbers, got "
                f"{'none' if state is None else list(state.shape)}"
            )
        if action is None or len(action.shape) != 1 or action.shape[0] < 2:
            raise ValueError("statevla: expected action of continuous numbers and a gripper, last, at -1 or +1")

    # StateVLA's side --------------------------------------------------------------------------------------------------

    def statevla(self) -> Config:
        """StateVLA's configuration: the resolved one if there is one, else file, phase 1 and overrides as far as known.

        Raises:
            UserError: file or checkpoint are missing or wrong.
        """
        if self.settings is not None:
            return config_from_dict(json.loads(self.settings), "policy.settings")
        if self.phase == "2" and self.phase1_checkpoint is not None:
            return _overridden(read_phase1_config(self.phase1_checkpoint).model_dump(mode="json"), self.overrides)
        if self.config_file is not None:
            return load_config(self.config_file, self.overrides)
        return _overridden({"language": {"zero_pad": True}}, self.overrides)

    def resolve(self) -> Config:
        """`statevla()` with cameras, robot state and action of the features; kept in `settings` from now on."""
        if self.settings is None:
            self.validate_features()
            state, action = self.robot_state_feature, self.action_feature
            assert state is not None and action is not None  # noqa: PT018
            layout = next(known for known in RobotStateLayout if known.dim == state.shape[0])
            tree = self.statevla().model_dump(mode="json")
            tree["model"] |= {
                "cameras": list(self.cameras()),
                "robot_state_layout": layout.value,
                "robot_state_dim": layout.dim,
                "action_dim": action.shape[0],
            }
            self.settings = json.dumps(config_from_dict(tree, "policy").model_dump(mode="json"))
        return self.statevla()

    def cameras(self) -> dict[str, str]:
        """StateVLA's camera names, sorted → keys of the data set."""
        names = {}
        for key in self.image_features:
            suffix = key.removeprefix(OBS_IMAGES + ".")
            names[CAMERA_NAMES.get(suffix, suffix)] = key
        return dict(sorted(names.items()))

    def _phase_section(self) -> Any:
        training = self.statevla().training
        return {"1": training.phase1, "2": training.phase2, "bc": training.bc}[self.phase]


def is_lerobot_checkpoint(path: str) -> bool:
    """Whether a folder was written by LeRobot with this policy, rather than by StateVLA's own trainer."""
    file = Path(path) / "config.json"
    return file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("type") == "statevla"


def read_phase1_config(path: str) -> Config:
    """The configuration that a phase-1 run ended with.

    Raises:
        UserError: there is no such checkpoint.
    """
    if is_lerobot_checkpoint(path):
        saved = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        if not saved.get("settings"):
            raise UserError(f"policy.phase1_checkpoint {path}: its config.json has no settings; it was not trained")
        return config_from_dict(json.loads(saved["settings"]), path)
    folder = resolve_checkpoint(path)
    return config_from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")), str(folder))


def _overridden(tree: Mapping[str, Any], overrides: list[str]) -> Config:
    # JSON is YAML: the loader of files does the overriding.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.yaml"
        file.write_text(json.dumps(tree), encoding="utf-8")
        return load_config(file, overrides)
