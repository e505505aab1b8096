"""The policy: batches of LeRobot in, StateVLA's losses and actions out."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from safetensors.torch import load_file
from torch import Tensor

from lerobot_policy_statevla.configuration_statevla import StateVLAConfig, is_lerobot_checkpoint, read_phase1
from lerobot_policy_statevla.robot import actions_of_batch, frames_of_batch, state_of_batch
from lerobot_policy_statevla.statistics import FIELDS, relative_target_statistics, stacked, tensor_of, unstacked
from statevla.checkpoints.checkpoint import (
    Contents,
    DataInfo,
    TrainingState,
    load_checkpoint,
    load_strict,
    save_checkpoint,
)
from statevla.data.keys import split_key
from statevla.errors import UserError
from statevla.model.language import LanguageInfo, build_language_encoder
from statevla.model.statevla_model import StateVLA
from statevla.training.sources import relative_groups
from statevla.transforms import RelativeActions, Statistics, Transform
from statevla.types import ChunkBatch, ModelInput, TransitionBatch

ENCODER, MODEL_FILE = "model.state_encoder.", "model.safetensors"
STATISTICS_BUFFERS = ("action_statistics", "state_statistics", "target_statistics")


class StateVLAPolicy(PreTrainedPolicy):
    """Both phases, behaviour cloning, and acting.

    Args:
        config: its features are the data set's; it is resolved here.
        dataset_stats: LeRobot's statistics of the data set; needed to train, not to load a trained policy.
        dataset_meta: LeRobot's metadata, asked for the robot; likewise.

    Attributes:
        settings: StateVLA's configuration.
        robot: whose data these are; keys of its state fields and cameras are LeRobot's features.

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
        self.settings, self.robot = config.resolve(dataset_meta)
        self.model = StateVLA(self.settings, self.robot)
        self._register_statistics(dataset_stats)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self._transform: Transform | None = None
        self.register_load_state_dict_post_hook(lambda module, _: setattr(module, "_transform", None))
        language, width = self.settings.language, self.settings.model.language_dim
        self._language = build_language_encoder(language, width)
        if fresh and config.phase == "2":
            self._take_phase1(config.phase1_checkpoint)
        elif fresh:
            self._measure_targets(dataset_meta)
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
        actions, state = actions_of_batch(self.robot, batch), state_of_batch(self.robot, batch)
        observation = self._observation(batch, state)
        if self.config.phase == "1":
            frames = len(self.config.observation_delta_indices or ())
            blocks = self.transform.normalize_actions(actions).reshape(len(actions), frames - 1, -1)
            losses = self.model.jepa_loss(TransitionBatch(observation, blocks))._asdict()
        else:
            targets = self.transform.chunks_to_targets(actions, state)
            is_pad = batch.get("action_is_pad")
            is_pad = torch.zeros_like(targets[..., 0], dtype=torch.bool) if is_pad is None else is_pad
            losses = self.model.action_loss(ChunkBatch(observation, targets, is_pad))._asdict()
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
        """Actions `[B, H, A]` in the robot's units, binary ones one of their commands; `noise` is `[B, H, C]`."""
        self.eval()
        state = state_of_batch(self.robot, batch)
        sampled = self.model.sample_actions(self._observation(batch, state), noise=noise)
        actions = self.transform.targets_to_chunks(sampled, state)
        low, high = (self.action_statistics[FIELDS.index(name)].float() for name in ("min", "max"))
        # Never ask a robot for more than any demonstration did; binary commands are exact already.
        bounded = torch.minimum(torch.maximum(actions, low), high)
        return torch.where(torch.from_numpy(self.robot.is_binary).to(actions.device), actions, bounded)

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
            self._transform = Transform(self.settings.model, self.statistics(), self.robot)
        return self._transform

    def statistics(self) -> Statistics:
        """The statistics of the data that the encoder was trained on.

        Raises:
            UserError: there are none: neither a data set nor trained weights were given.
        """
        if not bool(torch.isfinite(self.action_statistics).all()):
            raise UserError("statevla: no statistics; make the policy with a data set, or load a trained one")
        actions, states, targets = (unstacked(getattr(self, name)) for name in STATISTICS_BUFFERS)
        normalization, groups = self.settings.data.action_normalization, self._relative_groups()
        return Statistics(actions, states, normalization, groups, targets if groups else None)

    @property
    def language_info(self) -> LanguageInfo:
        return self._language.info

    def _observation(self, batch: Mapping[str, Any], state: Tensor) -> ModelInput:
        """What the model takes; `state` `[..., S]` is the batch's, raw."""
        language = self._embed(batch.get("task"), len(state)).to(state.device)
        if state.ndim == 3:  # [B, T, S]
            language = language[:, None].expand(-1, state.shape[1], -1)
        frames = frames_of_batch(self.robot, batch, self.settings.model.image_size)
        return ModelInput(images=frames, robot_state=self.transform.normalize_robot_state(state), language=language)

    def _embed(self, tasks: Any, count: int) -> Tensor:
        if isinstance(tasks, str):
            tasks = [tasks] * count
        if not isinstance(tasks, Sequence) or len(tasks) != count:
            raise UserError(f"statevla: expected a task in words per sample ({count}), got {tasks!r:.80}")
        return self._language.encode(tasks)  # it remembers the latest of them

    def _register_statistics(self, stats: Mapping[str, Mapping[str, Any]] | None) -> None:
        actions = stacked(stats, [(ACTION, slice(None))], self.robot.action_dim)
        fields = [split_key(str(field.key)) for field in self.robot.policy_fields]
        states = stacked(stats, fields, self.robot.state_dim)
        for name, rows in zip(STATISTICS_BUFFERS, (actions, states, actions.clone())):
            self.register_buffer(name, rows)

    def _relative_groups(self) -> tuple[str, ...]:
        return relative_groups(self.robot, self.settings.data.relative_actions)

    def _measure_targets(self, dataset_meta: Any) -> None:
        """Statistics of relative targets, which a first look at the data set tells; others are the actions'."""
        relative = RelativeActions(self.robot, self._relative_groups())
        if relative:
            horizon = self.settings.model.action_seq_len
            measured = relative_target_statistics(dataset_meta.root, self.robot, relative, horizon)
            self.target_statistics = tensor_of(measured)

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
            trained = read_phase1(path)[0].data.relative_actions
        else:
            loaded = load_checkpoint(path)
            if loaded.language.fingerprint != self.language_info.fingerprint:
                raise UserError(f"policy.phase1_checkpoint {path}: trained with another language encoder; use its own")
            encoder = loaded.model.state_encoder.state_dict()
            own, trained = loaded.statistics, loaded.config.data.relative_actions
            fields = (own.actions, own.robot_state, own.targets or own.actions)
            statistics = {name: tensor_of(field) for name, field in zip(STATISTICS_BUFFERS, fields)}
        if (here := self._relative_groups()) != (there := relative_groups(self.robot, trained)):
            raise UserError(
                f"policy.phase1_checkpoint {path}: data.relative_actions {list(there)}, here {list(here)}; use the "
                "same, statistics are part of a checkpoint"
            )
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
    contents = Contents(
        tensors, policy.settings, policy.robot, policy.statistics(), policy.language_info, data, metrics
    )
    save_checkpoint(Path(run), contents, TrainingState({}, {}), is_best=True)
    return Path(run) / "best"
