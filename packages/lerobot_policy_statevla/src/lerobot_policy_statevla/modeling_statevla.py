"""The policy: batches of LeRobot in, StateVLA's losses and actions out."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from lerobot_policy_statevla.configuration_statevla import ORIENTATIONS, StateVLAConfig, is_lerobot_checkpoint
from statevla.errors import UserError
from statevla.language import build_language_encoder
from statevla.statevla_model import StateVLA
from statevla.training.checkpoint import (
    Contents,
    DataInfo,
    LanguageInfo,
    TrainingState,
    load_checkpoint,
    load_strict,
    save_checkpoint,
)
from statevla.transforms import FieldStatistics, Statistics, Transform
from statevla.types import ChunkBatch, ModelInput, TransitionBatch

FIELDS = tuple(FieldStatistics.__dataclass_fields__)
ENCODER, MODEL_FILE = "model.state_encoder.", "model.safetensors"
STATISTICS_BUFFERS = ("action_statistics", "state_statistics")


class StateVLAPolicy(PreTrainedPolicy):
    """Both phases, behaviour cloning, and acting.

    Args:
        config: its features are the data set's; it is resolved here.
        dataset_stats: LeRobot's statistics of the data set; needed to train, not to load a trained policy.
        dataset_meta: LeRobot's metadata, asked for a declared picture orientation.

    Raises:
        UserError: settings, phase-1 checkpoint and features do not fit each other.
        ValueError: the data set lacks what the policy needs.
    """

    config_class = StateVLAConfig
    name = "statevla"

    def __init__(
        self,
        config: StateVLAConfig,
        dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
        dataset_meta: Any = None,
        **_: Any,
    ) -> None:
        super().__init__(config)
        fresh = config.settings is None
        self.settings = config.resolve()
        self._cameras = config.cameras()
        if config.image_orientation == "auto":
            config.image_orientation = _declared_orientation(dataset_meta)
        self.model = StateVLA(self.settings)
        action_dim, state_dim = self.settings.model.action_dim, self.settings.model.robot_state_dim
        self.register_buffer("action_statistics", _stacked(dataset_stats, ACTION, action_dim))
        self.register_buffer("state_statistics", _stacked(dataset_stats, OBS_STATE, state_dim))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self._transform: Transform | None = None
        self.register_load_state_dict_post_hook(lambda module, _: setattr(module, "_transform", None))
        language, width = self.settings.language, self.settings.model.language_dim
        self._language = build_language_encoder(language, width)
        self._embeddings: dict[str, Tensor] = {}
        if fresh and config.phase == "2":
            self._take_phase1(config.phase1_checkpoint)
        self._choose_trained(config.phase)
        self.reset()

    # Training ---------------------------------------------------------------------------------------------------------

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        """What the phase trains."""
        return [parameter for _, parameter in self.model.phase_parameters(self.config.phase)]

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch and its terms.

        Args:
            batch: in phase 1 with `T` frames per sample (`observation_delta_indices`), else with one; `action`
                `[B, T, A]`; `action_is_pad` `[B, T]`; `task`, one string per sample.
        """
        actions = self.transform.normalize_actions(batch[ACTION])
        if self.config.phase == "1":
            frames = len(self.config.observation_delta_indices or ())
            blocks = actions.reshape(len(actions), frames - 1, -1)
            losses = self.model.jepa_loss(TransitionBatch(self._observation(batch), blocks))._asdict()
        else:
            is_pad = batch.get("action_is_pad")
            is_pad = torch.zeros_like(actions[..., 0], dtype=torch.bool) if is_pad is None else is_pad
            losses = self.model.action_loss(ChunkBatch(self._observation(batch), actions, is_pad))._asdict()
        terms = {name: float(value.detach()) for name, value in losses.items() if name != "total"}
        return losses["total"], terms

    @torch.no_grad()
    def update(self) -> None:
        """After each optimizer step: move the EMA target of phase 1."""
        if self.config.phase == "1":
            step = min(int(self.num_updates), self.config.training_steps)
            self.model.update_target(step, self.config.training_steps)
        self.num_updates += 1

    # Acting -----------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget queued actions."""
        self._queue: deque[Tensor] = deque()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], noise: Tensor | None = None, **_: Any) -> Tensor:
        """Actions `[B, H, A]` in the robot's units, gripper -1 or +1; `noise` is `[B, H, A-1]`."""
        self.eval()
        sampled = self.model.sample_actions(self._observation(batch), noise=noise)
        actions = self.transform.denormalize_actions(sampled)
        low, high = (self.action_statistics[FIELDS.index(name)][:-1].float() for name in ("min", "max"))
        # Never ask a robot for more than any demonstration did.
        return torch.cat([torch.minimum(torch.maximum(actions[..., :-1], low), high), actions[..., -1:]], dim=-1)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], noise: Tensor | None = None, **_: Any) -> Tensor:
        """The next action of every environment, `[B, A]`; asks for a chunk when the last one has been executed."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch, noise=noise)
            self._queue.extend(chunk[:, : self.config.n_action_steps].unbind(dim=1))
        return self._queue.popleft()

    # Between the two worlds -------------------------------------------------------------------------------------------

    @property
    def transform(self) -> Transform:
        """StateVLA's own transform, with the statistics that live in the weights."""
        if self._transform is None:
            self._transform = Transform(self.settings.model, self.statistics())
        return self._transform

    def statistics(self) -> Statistics:
        """The statistics of the data that the encoder was trained on.

        Raises:
            UserError: there are none: neither a data set nor trained weights were given.
        """
        if not bool(torch.isfinite(self.action_statistics).all()):
            raise UserError("statevla: no statistics; make the policy with a data set, or load a trained one")
        actions, states = (_unstacked(getattr(self, name)) for name in STATISTICS_BUFFERS)
        normalization = self.settings.data.action_normalization
        return Statistics(actions, {self.settings.model.robot_state_layout: states}, normalization)

    @property
    def language_info(self) -> LanguageInfo:
        return LanguageInfo(self._language.name, self._language.dim, self._language.fingerprint())

    def _observation(self, batch: Mapping[str, Any]) -> ModelInput:
        states = self.transform.normalize_robot_state(batch[OBS_STATE])
        frames = torch.stack([self._frames(batch[key]) for key in self._cameras.values()], dim=-4)
        language = self._embed(batch.get("task"), len(states)).to(states.device)
        if states.ndim == 3:  # [B, T, S]
            language = language[:, None].expand(-1, states.shape[1], -1)
        return ModelInput(images=frames, robot_state=states, language=language)

    def _frames(self, images: Tensor) -> Tensor:
        """LeRobot's float `[..., 3, H, W]` in [0, 1] → `[..., 3, P, P]` in [-1, 1], as `statevla.transforms` has it."""
        size = self.settings.model.image_size
        upright = (images.flip(ORIENTATIONS[self.config.image_orientation]) * 255).round()
        if upright.shape[-2:] != (size, size):
            flat = upright.flatten(0, -4)
            resized = functional.interpolate(flat, (size, size), mode="bilinear", antialias=True, align_corners=False)
            upright = resized.round().clamp(0, 255).unflatten(0, upright.shape[:-3])
        return upright / 127.5 - 1

    def _embed(self, tasks: Any, count: int) -> Tensor:
        if isinstance(tasks, str):
            tasks = [tasks] * count
        if not isinstance(tasks, Sequence) or len(tasks) != count:
            raise UserError(f"statevla: expected a task in words per sample ({count}), got {tasks!r:.80}")
        for task in set(tasks) - self._embeddings.keys():
            self._embeddings[task] = torch.as_tensor(self._language.encode([task]))[0].float()
        return torch.stack([self._embeddings[task] for task in tasks])

    def _choose_trained(self, phase: str) -> None:
        trained = {name for name, _ in self.model.phase_parameters(phase)}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trained)
        if phase == "2":
            self.model.freeze_encoder()

    def _take_phase1(self, path: str | None) -> None:
        """Encoder and statistics of phase 1, from LeRobot's or StateVLA's own checkpoint."""
        if path is None:
            raise UserError("policy.phase=2 needs --policy.phase1_checkpoint; run --policy.phase=1 first")
        if is_lerobot_checkpoint(path):
            tensors = load_file(Path(path) / MODEL_FILE)
            encoder = {name.removeprefix(ENCODER): t for name, t in tensors.items() if name.startswith(ENCODER)}
            statistics = {name: tensors[name] for name in STATISTICS_BUFFERS}
        else:
            loaded = load_checkpoint(path)
            if loaded.language.fingerprint != self.language_info.fingerprint:
                raise UserError(f"policy.phase1_checkpoint {path}: trained with another language encoder; use its own")
            encoder = loaded.model.state_encoder.state_dict()
            states = loaded.statistics.robot_states.get(self.settings.model.robot_state_layout)
            if states is None:
                raise UserError(
                    f"policy.phase1_checkpoint {path}: trained on another robot-state layout than this data"
                )
            fields = (loaded.statistics.actions, states)
            statistics = {name: _tensor_of(field) for name, field in zip(STATISTICS_BUFFERS, fields)}
        load_strict(self.model.state_encoder, encoder, f"policy.phase1_checkpoint {path}")
        for name, tensor in statistics.items():
            setattr(self, name, tensor)

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        """As LeRobot loads weights, but a missing or unexpected one is always an error."""
        return super()._load_as_safetensor(model, model_file, map_location, strict=True)


def export_checkpoint(policy: StateVLAPolicy, run: str | Path) -> Path:
    """Write a policy trained by LeRobot as StateVLA's own checkpoint, `<run>/last` and `<run>/best`.

    Raises:
        UserError: it cannot be written.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in policy.model.state_dict().items()}
    data = DataInfo(cache="", train_split=policy.settings.data.train_split, split_seed=policy.settings.seed)
    metrics = {"phase": policy.config.phase, "step": int(policy.num_updates)}
    contents = Contents(tensors, policy.settings, policy.statistics(), policy.language_info, data, metrics)
    save_checkpoint(Path(run), contents, TrainingState({}, {}), is_best=True)
    return Path(run) / "best"


def _declared_orientation(meta: Any) -> str:
    declared = getattr(meta, "info", {}).get("statevla", {}).get("image_orientation", "upright")
    if declared not in ORIENTATIONS:
        raise UserError(f"data set: image_orientation '{declared}', expected one of {', '.join(ORIENTATIONS)}")
    return str(declared)


def _stacked(stats: Mapping[str, Mapping[str, Any]] | None, key: str, dim: int) -> Tensor:
    """LeRobot's statistics of a feature, float32 `[6, D]` in the order of `FIELDS`; NaN where there are none."""
    if stats is None or key not in stats:
        return torch.full((len(FIELDS), dim), torch.nan)
    fallback = {"q01": "min", "q99": "max"}  # older data sets have no quantiles
    names = [name if name in stats[key] else fallback.get(name, name) for name in FIELDS]
    return torch.stack([torch.as_tensor(stats[key][name], dtype=torch.float32).reshape(dim) for name in names])


def _tensor_of(field: FieldStatistics) -> Tensor:
    return torch.from_numpy(np.stack([getattr(field, name) for name in FIELDS])).float()


def _unstacked(rows: Tensor) -> FieldStatistics:
    return FieldStatistics(*rows.cpu().double().numpy())
