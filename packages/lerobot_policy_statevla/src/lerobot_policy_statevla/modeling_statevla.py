"""The policy: batches of LeRobot in, the trainer's losses and the acting policy's chunks out."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_statevla.batches import BatchReader
from lerobot_policy_statevla.configuration_statevla import StateVLAConfig
from lerobot_policy_statevla.own_checkpoints import as_policy, is_own_checkpoint
from lerobot_policy_statevla.progress import NOT_YET, Progress
from lerobot_policy_statevla.recorded import record
from lerobot_policy_statevla.resolving import resolve
from statevla.acting.options import ActingOptions
from statevla.acting.policy import StateVLAPolicy as ActingPolicy
from statevla.checkpoints.checkpoint import Contents, DataInfo, TrainingState, load_strict, save_checkpoint
from statevla.checkpoints.lerobot_policy import PolicySettings
from statevla.errors import UserError
from statevla.machine.device import autocast
from statevla.model.language import build_language_encoder
from statevla.model.statevla_model import StateVLA
from statevla.training.optimization import parameter_groups
from statevla.training.phases import PhaseLoss
from statevla.transforms import Transform

logger = logging.getLogger(__name__)


class StateVLAPolicy(PreTrainedPolicy):
    """All phases, and acting.

    Args:
        config: its features are the data set's; it is resolved here.
        dataset_stats: LeRobot's statistics of the data set; needed to train, not to load a trained policy.
        dataset_meta: LeRobot's metadata, asked for the robot; likewise.

    Attributes:
        settings: StateVLA's configuration, robot, statistics and language; keys of the robot's state fields and cameras
            are LeRobot's features.
        model: the model.

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
        resolved = resolve(config, dataset_meta, dataset_stats)
        self.settings: PolicySettings = resolved.settings
        settings = self.settings.config
        self.model = StateVLA(settings, self.settings.robot)
        if resolved.encoder is not None:
            load_strict(self.model.state_encoder, resolved.encoder, "policy.phase1_checkpoint")
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("switched_at", torch.tensor(NOT_YET))
        self._language = build_language_encoder(settings.language, settings.model.language_dim)
        transform = Transform(settings.model, self.settings.statistics, self.settings.robot, settings.data.augmentation)
        trains = dataset_meta is not None and "1" in config.phases
        recorded = record(dataset_meta, resolved.robot_of_data, settings, transform) if trains else None
        sizes = {key: prod(feature.shape) for key, feature in (config.input_features or {}).items()}
        self._batches = BatchReader(
            transform, settings, self._language, resolved.aliases, sizes, recorded, config.default_task
        )
        self._progress = Progress(config.phase1_share)
        self._acting: ActingPolicy | None = None
        self._num_episodes = 0
        self._warned = False
        self._begin(config.phases[0])
        for phase in config.phases:
            for _name, parameter in self.model.phase_parameters(phase):
                parameter.requires_grad_(True)
        self.register_load_state_dict_post_hook(lambda module, _: module._forget_acting())
        self.reset()

    # Training ---------------------------------------------------------------------------------------------------------

    def get_optim_params(self) -> list[dict[str, Any]]:
        """What the phases train, in AdamW's groups; with PEFT, its adapters."""
        if self.config.use_peft or any("lora_" in name for name, _ in self.named_parameters()):
            parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        else:
            parameters = [p for phase in self.config.phases for _, p in self.model.phase_parameters(phase)]
        self._progress.mark(parameters)
        groups = parameter_groups(parameters, self.settings.config.training.weight_decay)
        return [group for group in groups if group["params"]]

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The phase's loss of a batch, and its terms.

        Args:
            batch: where phase 1 is trained, with windows of frames (`observation_delta_indices`); `action` `[B, T, A]`
                with `action_is_pad` `[B, T]`; `task`, one string per sample; `index`.
        """
        if self.training:
            self._enter_phase()
        with autocast(self.num_updates.device, self.settings.config.training.precision):
            if self._phase == "1":
                total, terms = self._loss(self._batches.windows(batch))
            else:
                total, terms = self._loss(self._batches.chunks(batch))
        return total, {name: float(value) for name, value in terms.items() if name != "total"}

    @torch.no_grad()
    def update(self) -> None:
        """After each optimizer step: move phase 1's target."""
        self.num_updates += 1
        done, length = self._progress.step, self._progress.length
        if self._phase == "1":
            both = len(self.config.phases) > 1
            self.model.update_target(done, self._progress.switch_of(done, length) if both else length)

    def _enter_phase(self) -> None:
        """Be in the phase that the run's step belongs to."""
        step = self._progress.step if self._progress.is_running else 0
        if step == 0:
            self.switched_at.fill_(NOT_YET)
        self._progress.switched_at = int(self.switched_at)
        phase = self.config.phases[0]
        if len(self.config.phases) > 1:
            switch = self._progress.switch_of(step, self._progress.length)
            if step >= switch:
                phase = self.config.phases[1]
                self.switched_at.fill_(switch)
                self._progress.switched_at = switch
        if phase != self._phase:
            logger.info("statevla: step %d, phase %s begins", step, phase)
            self._begin(phase)
            self._loss.train()

    def _begin(self, phase: str) -> None:
        self._phase = phase
        # Kept from the modules that nn.Module finds: it holds the whole model once more.
        object.__setattr__(self, "_loss", PhaseLoss(self.model, phase))

    @torch.no_grad()
    def wrap_with_peft(self, peft_config: Any = None, peft_cli_overrides: dict[str, Any] | None = None) -> Any:
        """LeRobot's PEFT around the policy.

        Raises:
            ValueError: in phase 1, or from scratch.
        """
        if "1" in self.config.phases:
            raise ValueError(
                f"peft: phase {self.config.phase} trains the encoder anew, adapters do not; say --policy.phase=2 or bc"
            )
        return super().wrap_with_peft(peft_config, peft_cli_overrides)

    def _get_default_peft_targets(self) -> dict[str, Any]:
        parts = r"policy" if self.config.phase == "2" else r"(policy|state_encoder\.encoder)"
        return {"target_modules": rf"model\.{parts}\..*\.(in_proj|x_proj|dt_proj|out_proj)"}  # of the Mamba blocks

    # Acting -----------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Begin an episode: forget queued actions; each one has noise of its own."""
        self._queue: deque[Tensor] = deque()
        if self._acting is not None:
            self._acting.reset(self._num_episodes)
        self._num_episodes += 1

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], noise: Tensor | None = None, **options: Any) -> Tensor:
        """Actions `[B, H, A]` in the robot's units, as StateVLA's own policy answers; `noise` is `[B, H, C]`.

        Raises:
            UserError: the policy is not trained yet, or an observation does not fit the robot.
        """
        if any(options.get(name) is not None for name in ("inference_delay", "prev_chunk_left_over")):
            raise UserError(NO_RTC)
        self._check_trained()
        self.eval()
        observations = self._batches.observations(batch)
        drawn = None if noise is None else list(noise)
        chunks = self._acting_policy().act_chunk(observations, drawn)
        return torch.stack([torch.from_numpy(chunk.actions) for chunk in chunks]).to(self.num_updates.device)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], noise: Tensor | None = None, **options: Any) -> Tensor:
        """The next action of every environment, `[B, A]`; asks for a chunk when the last one has been executed."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch, noise=noise, **options)
            self._queue.extend(chunk[:, : self.config.n_action_steps].unbind(dim=1))
        return self._queue.popleft()

    def init_rtc_processor(self) -> None:
        """LeRobot's real-time chunking, which there is none of here."""
        raise UserError(NO_RTC)

    def _check_trained(self) -> None:
        if self.config.phases[-1] == "1":
            raise UserError(
                "statevla: phase 1 trains no policy yet; train one on it: lerobot-train --policy.type=statevla "
                "--policy.phase=2 --policy.phase1_checkpoint=<this folder>"
            )
        if len(self.config.phases) == 1 or int(self.switched_at) != NOT_YET:
            return
        if not self._progress.is_running:
            raise UserError(
                f"statevla: this checkpoint is of step {int(self.num_updates)}, still in phase 1, which trains no "
                "policy yet; take a later one"
            )
        if not self._warned:
            logger.warning("statevla: evaluated in phase 1, before its policy is trained; expect nothing yet")
            self._warned = True

    def _acting_policy(self) -> ActingPolicy:
        if self._acting is None:
            self._acting = ActingPolicy(
                self.model,
                self._batches.transform,
                self._language,
                ActingOptions(device=str(self.num_updates.device)),
                has_world_model=self.config.phase != "bc",
            )
            self._acting.reset(max(self._num_episodes - 1, 0))
        return self._acting

    def _forget_acting(self) -> None:
        self._acting = None

    # Weights ----------------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> StateVLAPolicy:
        """Training and evaluation mode."""
        if mode != self.training:
            self._forget_acting()
        super().train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> StateVLAPolicy:
        self._forget_acting()
        return super()._apply(fn, recurse)

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, **options: Any) -> StateVLAPolicy:
        """As LeRobot's; also of a checkpoint of StateVLA's own."""
        if is_own_checkpoint(pretrained_name_or_path):
            pretrained_name_or_path = as_policy(pretrained_name_or_path)
        return super().from_pretrained(pretrained_name_or_path, **options)

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        """As LeRobot loads weights, but a missing or unexpected one is always an error."""
        return super()._load_as_safetensor(model, model_file, map_location, strict=True)


NO_RTC = (
    "statevla: LeRobot's real-time chunking is not supported; leave it out, and look again sooner by a smaller "
    "--policy.n_action_steps"
)


def export_checkpoint(policy: StateVLAPolicy, run: str | Path) -> Path:
    """Write a policy trained by LeRobot as StateVLA's own checkpoint, `<run>/last` and `<run>/best`.

    With PEFT, merge its adapters first (`merge_and_unload`).

    Raises:
        UserError: it cannot be written.
    """
    settings = policy.settings
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in policy.model.state_dict().items()}
    # LeRobot trains on all episodes: none is held out.
    data = DataInfo(cache="", train_split=1.0, split_seed=settings.config.seed)
    metrics = {"phase": policy.config.phases[-1], "step": int(policy.num_updates)}
    contents = Contents(tensors, settings.config, settings.robot, settings.statistics, settings.language, data, metrics)
    save_checkpoint(Path(run), contents, TrainingState({}, {}), is_best=True)
    return Path(run) / "best"
