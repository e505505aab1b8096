"""The whole model and its verbs: encode, jepa_loss, action_loss, sample_actions, freeze_encoder, update_target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from statevla.config import Config, fit_to_robot, phase_of
from statevla.errors import UserError
from statevla.model.action_policy import FlowMatchingPolicy, GripperClassifier, StateWays, gripper_command, gripper_loss
from statevla.model.flow import FlowDraws, check_steps
from statevla.model.jepa.loss import (
    JepaLosses,
    covariance_loss,
    keyframe_loss,
    mean_squared_error,
    prediction_loss,
    sigreg,
    variance_loss,
    weighted,
)
from statevla.model.jepa.stem import ConvolutionalStem, PatchEmbedding
from statevla.model.mamba.backends import resolve_backend
from statevla.model.state_encoder import PHASE_1_PARTS, JepaStateEncoder
from statevla.robots import LIBERO, RobotSpec
from statevla.types import ChunkBatch, ModelInput, TransitionBatch

if TYPE_CHECKING:
    from statevla.model.program import ActingPrograms


class ActionLosses(NamedTuple):
    """Scalars: `total = flow + gripper`; a term is 0 where the robot has no such numbers."""

    total: Tensor
    flow: Tensor
    gripper: Tensor


class StateVLA(nn.Module):
    """State-based Vision-Language-Action model: a world model's state, and a flow policy on top of it.

    Args:
        config: dimensions that it leaves open (`auto`) are the robot's.
        robot: whose actions it answers; the specification's by default. C of an action's A numbers are continuous and
            come from the flow, G are binary and come from the classifier; a head that has none is None.

    Raises:
        UserError: the configuration says another dimension or camera than the robot.
    """

    policy: FlowMatchingPolicy | None
    gripper: GripperClassifier | None

    def __init__(self, config: Config, robot: RobotSpec = LIBERO) -> None:
        super().__init__()
        config, robot = fit_to_robot(config, robot)
        self.config, self.robot = config, robot
        self.state_encoder = JepaStateEncoder(config, robot.keyframe_dim)
        is_binary = torch.from_numpy(robot.is_binary)
        self._continuous, self._binary = (~is_binary).nonzero().flatten(), is_binary.nonzero().flatten()
        self.policy = FlowMatchingPolicy(config.model, robot.num_continuous) if robot.num_continuous else None
        self.gripper = GripperClassifier(config.model, robot.num_binary) if robot.num_binary else None
        self._state_ways = StateWays(config.model, robot) if robot.state_ways else None
        self._encoder_is_frozen = False
        self._programs: ActingPrograms | None = None

    def encode(self, observation: ModelInput) -> Tensor:
        """Observations with leading dims `[...]` → z `[..., Z]`."""
        if programs := self._current_programs():
            return programs.encode(observation.flatten()).reshape(*observation.batch_shape, -1)
        return self.state_encoder.encode(observation)

    def encode_target(self, observation: ModelInput) -> Tensor:
        """The target's z `[..., Z]`, without gradient."""
        return self.state_encoder.encode_target(observation)

    def encode_for_policy(self, observation: ModelInput) -> Tensor:
        """Observations `[B]` → all that the policy is conditioned on, flat, `[B, P]`; z alone in the spec."""
        return self.state_encoder.policy_state(self.encode(observation), observation)

    def predict_next(self, state: Tensor, actions: Tensor) -> Tensor:
        """z_t `[..., Z]` and the action block `[..., K·A]` → the expected z after it, `[..., Z]`."""
        return self.state_encoder.predictor(state, actions)

    def jepa_loss(self, batch: TransitionBatch, gather: Callable[[Tensor], Tensor] | None = None) -> JepaLosses:
        """Phase 1: predict every next retained frame's target from the online z before it.

        Args:
            batch: windows of T frames; with `keyframe` where `loss.keyframe_weight` is set, and likewise the later one.
            gather: with several processes, a differentiable all-gather over the first dim, so that the terms that
                depend on the batch are those of the global batch.

        Raises:
            UserError: the batch lacks keyframes that the configuration asks for.
        """
        gather = gather or (lambda tensor: tensor)
        weights = self.config.training.phase1.loss
        z, target = self._window_states(batch.observation)
        predictions = self._rollout(z[:, : batch.actions.shape[1]], batch.actions)
        predicted = gather(predictions[0].flatten(0, 1))
        off = z.new_zeros(())
        return weighted(
            weights,
            prediction=prediction_loss(predictions, target),
            variance=variance_loss(predicted),
            covariance=covariance_loss(predicted),
            sigreg=sigreg(gather(z)) if weights.sigreg_weight else off,
            inverse_dynamics=self._inverse_dynamics_loss(z, batch.actions) if weights.inverse_dynamics_weight else off,
            keyframe=self._keyframe_loss(z, batch) if weights.keyframe_weight else off,
            later_keyframe=self._later_keyframe_loss(z, batch) if weights.later_keyframe_weight else off,
        )

    def _window_states(self, observation: ModelInput) -> tuple[Tensor, Tensor]:
        """Windows `[B, T]` → online z, `[B, T, Z]`, and the targets of frames 1 … T-1, `[B, T-1, Z]`.

        The spec's loss needs no online z of the last frame, and gets none.
        """
        phase1 = self.config.training.phase1
        if phase1.target.kind == "online":
            z = self.encode(observation)
            return z, z[:, 1:]
        loss = phase1.loss
        beyond = (
            loss.sigreg_weight,
            loss.inverse_dynamics_weight,
            loss.keyframe_weight,
            loss.later_keyframe_weight,
        )
        frames = slice(None) if any(beyond) else slice(None, -1)
        z = self.encode(observation.at((slice(None), frames)))
        return z, self.encode_target(observation.at((slice(None), slice(1, None))))

    def _rollout(self, z: Tensor, actions: Tensor) -> list[Tensor]:
        """z `[B, T-1, Z]` and action blocks `[B, T-1, K·A]` → z predicted 1, 2, … `rollout_steps` retained steps ahead
        of every frame, item r `[B, T-1-r, Z]`."""
        predictions = [self.predict_next(z, actions)]
        for ahead in range(1, self.config.training.phase1.rollout_steps):
            predictions.append(self.predict_next(predictions[-1][:, :-1], actions[:, ahead:]))
        return predictions

    def _inverse_dynamics_loss(self, z: Tensor, actions: Tensor) -> Tensor:
        """Error of the action blocks recovered from consecutive z, `[B, T, Z]`; a scalar."""
        assert self.state_encoder.inverse_dynamics is not None
        return mean_squared_error(self.state_encoder.inverse_dynamics(z[:, :-1], z[:, 1:]), actions)

    def _keyframe_loss(self, z: Tensor, batch: TransitionBatch) -> Tensor:
        """Error of the next keyframe read off every frame's z, `[B, T, Z]`; a scalar."""
        head = self.state_encoder.keyframe
        if head is None or batch.keyframe is None or batch.keyframe_is_known is None:
            raise UserError("training.phase1.loss.keyframe_weight: the batch has no keyframes; set it to 0")
        return keyframe_loss(head(z), batch.keyframe, batch.keyframe_is_known)

    def _later_keyframe_loss(self, z: Tensor, batch: TransitionBatch) -> Tensor:
        """Likewise of the keyframe after that one."""
        head = self.state_encoder.later_keyframe
        if head is None or batch.later_keyframe is None or batch.later_keyframe_is_known is None:
            raise UserError("training.phase1.loss.later_keyframe_weight: the batch has no keyframes; set it to 0")
        return keyframe_loss(head(z), batch.later_keyframe, batch.later_keyframe_is_known)

    def draw_flow(
        self, *leading: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> FlowDraws:
        """Noise and flow times for chunks of leading dims `leading`, from `generator` (None: the global one)."""
        place = generator.device if generator else device
        noise = self._draw_noise(leading, device, generator)
        time = torch.rand(leading, generator=generator, device=place)
        way = None
        if self._state_ways is not None:
            way = torch.randint(len(self._state_ways.masks), leading, generator=generator, device=place)
        return FlowDraws(noise, time, way).to(device)

    def _draw_noise(
        self, leading: tuple[int, ...], device: torch.device | str, generator: torch.Generator | None
    ) -> Tensor:
        """Standard normal `[..., H, C]`, on the generator's device: a CPU generator draws the same on every device."""
        shape = (*leading, self.config.model.action_seq_len, self.robot.num_continuous)
        return torch.randn(shape, generator=generator, device=generator.device if generator else device).to(device)

    def action_loss(self, batch: ChunkBatch, draws: FlowDraws | None = None) -> ActionLosses:
        """Phase 2: flow matching on the continuous numbers, cross-entropy on the binary ones.

        Args:
            batch: with `state` when `encode_for_policy` ran already, else the observation is encoded here.
            draws: of each sample, as from `draw_flow`; None draws them here, from the global generator. Given from
                outside, the loss does not depend on how a batch is cut into micro-batches.
        """
        if batch.state is not None:
            state = batch.state
        elif batch.observation is not None:
            state = self.encode_for_policy(batch.observation)
        else:
            raise ValueError("ChunkBatch needs an observation or a state")
        draws = draws or self.draw_flow(len(state), device=state.device)
        if self._state_ways is not None and draws.way is not None and self.training:
            state = self._state_ways(state, draws.way)
        mask = ~batch.is_pad
        continuous = state.new_zeros(())
        if self.policy is not None:
            continuous = self.policy.loss(state, batch.actions[..., self._continuous], draws, mask)
        if self.gripper is None:
            return ActionLosses(continuous, continuous, continuous.new_zeros(()))
        gripper = gripper_loss(self.gripper(state), batch.actions[..., self._binary], mask)
        return ActionLosses(continuous + gripper, continuous, gripper)

    @torch.no_grad()
    def sample_actions(
        self,
        observation: ModelInput | Tensor,
        steps: int | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        temperature: float | None = None,
    ) -> Tensor:
        """Draw a chunk for each observation. The observation is encoded once, not per solver step.

        Args:
            observation: leading dims `[B]`, or the output of `encode_for_policy`, `[B, P]`.
            steps: solver steps; None takes `model.policy.num_sampling_steps`.
            generator: makes the noise reproducible.
            noise: standard normal `[B, H, C]`, instead of drawing it.
            temperature: scale of the noise; None takes `model.policy.sampling_temperature`.

        Returns:
            float32 `[B, H, A]`: continuous numbers normalised, binary ones exactly -1 or +1.
        """
        state = observation if isinstance(observation, Tensor) else self.encode_for_policy(observation)
        settings = self.config.model
        steps = check_steps(steps or settings.policy.num_sampling_steps)
        if noise is None:
            noise = self._draw_noise((len(state),), state.device, generator)
        noise = (settings.policy.sampling_temperature if temperature is None else temperature) * noise
        if programs := self._current_programs():
            chunk, flat = programs.act(state, noise, steps)
            logits = None if self.gripper is None or flat is None else flat.unflatten(-1, (-1, self.gripper.binary_dim))
        else:
            chunk = None if self.policy is None else self.policy.sample(state, noise, steps)
            logits = None if self.gripper is None else self.gripper(state)
        actions = torch.empty(len(state), settings.action_seq_len, settings.action_dim, device=state.device)
        if chunk is not None:
            actions[..., self._continuous] = chunk
        if logits is not None:
            actions[..., self._binary] = gripper_command(logits)
        return actions

    def prepare_for_inference(self, precision: str) -> StateVLA:
        """Evaluation mode; on a CPU, `encode` and `sample_actions` become one call each (`model/program/`).

        Parameters and state dict stay as they are. Training mode, gradients, a move and any change of the weights lead
        back to the modules; so does a processor, scan backend or stem for which there are no programs, and a module
        of another library (LoRA's adapters).

        Args:
            precision: `bf16` or `fp32`, of the stacks' products.
        """
        self.eval()
        self._programs = None
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        device = next(self.parameters()).device.type
        is_own = all(type(module).__module__.startswith(("torch.", "statevla.")) for module in self.modules())
        stems = self.state_encoder.tokenizer.stems
        is_known = all(isinstance(stem, ConvolutionalStem | PatchEmbedding) for stem in stems)
        scan = self.config.model.mamba.scan_backend
        if is_own and is_known and resolve_backend(scan, device, torch.float32) == "numba":
            from statevla.model.program import ActingPrograms, multiplies

            parts = (self.state_encoder, self.policy, self.gripper)
            self._programs = ActingPrograms(*parts, self.config.model, dtype) if multiplies(dtype) else None
        return self

    @property
    def is_prepared(self) -> bool:
        """Whether a forward without gradients runs as a program."""
        return self._programs is not None

    def _current_programs(self) -> ActingPrograms | None:
        if self._programs is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        if not self._programs.are_current():
            self._programs = None
        return self._programs

    def _apply(self, fn: Any, recurse: bool = True) -> StateVLA:
        self._programs = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_programs": None}

    def freeze_encoder(self) -> None:
        """Phase 2: the state encoder keeps its weights and stays in evaluation mode whatever `train()` says."""
        self._encoder_is_frozen = True
        self.state_encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> StateVLA:
        if mode:
            self._programs = None
        super().train(mode)
        if self._encoder_is_frozen:
            self.state_encoder.eval()
        return self

    def update_target(self, step: int, total_steps: int) -> float:
        """Move the EMA target after optimizer step `step` of `total_steps`; returns the momentum used."""
        return self.state_encoder.update_target(step, total_steps)

    def phase_parameters(self, phase: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that a phase trains.

        Raises:
            UserError: unknown phase.
        """
        phase_of(phase)
        world_model = tuple(f"state_encoder.{part}." for part in PHASE_1_PARTS)
        idle = {"1": ("policy.", "gripper."), "2": ("state_encoder.",), "bc": world_model}[phase]
        for name, parameter in self.named_parameters():
            if not name.startswith((*idle, "state_encoder.target.")):
                yield name, parameter

    def parameter_table(self) -> list[tuple[str, int]]:
        """(part, number of parameters), in the order of the data's way; sums to the whole model."""
        encoder = self.state_encoder
        parts = {
            "tokenizer": encoder.tokenizer,
            "context encoder": encoder.encoder,
            "target encoder (EMA)": encoder.target,
            "temporal predictor": encoder.predictor,
            "inverse dynamics": encoder.inverse_dynamics,
            "keyframe head": encoder.keyframe,
            "later keyframe head": encoder.later_keyframe,
            "state projection": encoder.projection,
            "flow-matching policy": self.policy,
            "gripper classifier": self.gripper,
        }
        present = [(name, part) for name, part in parts.items() if part is not None]
        return [(name, sum(parameter.numel() for parameter in part.parameters())) for name, part in present]
