"""The whole model and its verbs: encode, jepa_loss, action_loss, sample_actions, freeze_encoder, update_target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from statevla.config import Config, fit_to_robot
from statevla.errors import UserError
from statevla.model.action_policy import FlowMatchingPolicy, GripperClassifier, gripper_command, gripper_loss
from statevla.model.flow import FlowDraws, flow_matching_loss, interpolate, l1_loss, sample_flow_time, solve
from statevla.model.jepa import JepaLosses, keyframe_loss, latent_loss, temporal_jepa_loss
from statevla.model.mamba import prepare_for_inference
from statevla.model.state_encoder import JepaStateEncoder
from statevla.robots import LIBERO, RobotSpec
from statevla.types import ChunkBatch, ModelInput, TransitionBatch

Phase = str
PHASES: tuple[Phase, ...] = ("1", "2", "bc")
MAX_LOG_VARIANCE = 2.0


class ActionLosses(NamedTuple):
    """Scalars: the weighted `total`, and each term without its weight (`flow` is the L1 error where that is chosen)."""

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
        # Learned balance of the two action losses (Kendall, Gal & Cipolla 2018, equation 10). With a frozen encoder the
        # heads share no weights and it changes next to nothing; end to end it spares a hand-tuned weight.
        both = self.policy is not None and self.gripper is not None
        self.gripper_log_variance = nn.Parameter(torch.zeros(())) if both else None
        self._encoder_is_frozen = False

    def encode(self, observation: ModelInput) -> Tensor:
        """Observations with leading dims `[...]` → z `[..., Z]`."""
        return self.state_encoder.encode(observation)

    def encode_target(self, observation: ModelInput) -> Tensor:
        """The target's z `[..., Z]`, without gradient."""
        return self.state_encoder.encode_target(observation)

    def encode_for_policy(self, observation: ModelInput) -> Tensor:
        """Observations `[B]` → all that the policy is conditioned on, flat, `[B, P]`; z alone in the spec."""
        return self.state_encoder.encode_for_policy(observation)

    def predict_next(self, state: Tensor, actions: Tensor) -> Tensor:
        """z_t `[..., Z]` and the action block `[..., K·A]` → the expected z after it, `[..., Z]`."""
        return self.state_encoder.predictor(state, actions)

    def jepa_loss(
        self,
        batch: TransitionBatch,
        gather: Callable[[Tensor], Tensor] | None = None,
        draws: FlowDraws | None = None,
    ) -> JepaLosses:
        """Phase 1: predict every next retained frame's target from the online z before it.

        Args:
            batch: windows of T frames; with `chunks` where `behavior_cloning_weight` is set, with `keyframe` where
                `loss.keyframe_weight` is.
            gather: with several processes, a differentiable all-gather over the first dim, so that the terms that
                depend on the batch are those of the global batch.
            draws: for behaviour cloning, one for every frame, leading dims `[B, T]`; as in `action_loss`.

        Raises:
            UserError: the batch lacks chunks or keyframes that the configuration asks for.
        """
        gather = gather or (lambda tensor: tensor)
        phase1 = self.config.training.phase1
        loss, online_target = phase1.loss, phase1.target.kind == "online"
        inverse = self.state_encoder.inverse_dynamics
        # The spec's loss needs no online z of the last frame; everything beyond it does.
        needs_last = online_target or inverse is not None or loss.latent.any_on() or loss.keyframe_weight > 0
        frames = slice(None) if needs_last else slice(None, -1)
        observation = batch.observation.at((slice(None), frames))
        if phase1.behavior_cloning_weight > 0:
            policy_state = self.encode_for_policy(observation.flatten()).unflatten(0, observation.batch_shape)
            state = policy_state[..., : self.config.model.state_dim]
        else:
            policy_state, state = None, self.encode(observation)
        following = batch.observation.at((slice(None), slice(1, None)))
        target = state[:, 1:] if online_target else self.encode_target(following)

        last = batch.actions.shape[1]
        predictions = [self.predict_next(state[:, :last], batch.actions)]
        for ahead in range(1, phase1.rollout_steps):
            predictions.append(self.predict_next(predictions[-1][:, :-1], batch.actions[:, ahead:]))
        zero = state.new_zeros(())
        latent = latent_loss(gather(state), loss.latent, loss.variance_target) if loss.latent.any_on() else zero
        recovered = zero
        if inverse is not None:
            recovered = (inverse(state[:, :-1], state[:, 1:]).float() - batch.actions).square().mean()
        regularized = gather(predictions[0].flatten(0, 1))
        losses = temporal_jepa_loss(predictions, target, regularized, latent, recovered, loss)
        if loss.keyframe_weight > 0:
            ahead_of_hand = self._keyframe_loss(state, batch)
            total = losses.total + loss.keyframe_weight * ahead_of_hand
            losses = losses._replace(total=total, keyframe=ahead_of_hand)
        if policy_state is None:
            return losses
        cloned = self._cloning_loss(policy_state, batch, draws)
        return losses._replace(total=losses.total + phase1.behavior_cloning_weight * cloned, behavior_cloning=cloned)

    def _keyframe_loss(self, state: Tensor, batch: TransitionBatch) -> Tensor:
        """Error of the next keyframe read off every frame's z, `[B, T, Z]`; a scalar."""
        head = self.state_encoder.keyframe
        if head is None or batch.keyframe is None or batch.keyframe_is_known is None:
            raise UserError("training.phase1.loss.keyframe_weight: the batch has no keyframes; set it to 0")
        return keyframe_loss(head(state), batch.keyframe, batch.keyframe_is_known)

    def _cloning_loss(self, policy_state: Tensor, batch: TransitionBatch, draws: FlowDraws | None) -> Tensor:
        """Flow and gripper loss of the heads at the frames of windows, `policy_state` `[B, T', P]`; a scalar.

        Padded steps count as zero rather than not at all: so micro-batches weigh alike, whatever their padding.
        """
        if batch.chunks is None or batch.chunk_is_pad is None:
            raise UserError("training.phase1.behavior_cloning_weight: the batch has no action chunks; set it to 0")
        frames = policy_state.shape[1]
        chunks, is_pad = (part[:, :frames].flatten(0, 1) for part in (batch.chunks, batch.chunk_is_pad))
        draws = None if draws is None else draws.at((slice(None), slice(frames))).flatten()
        losses = self.action_loss(ChunkBatch(None, chunks, is_pad, policy_state.flatten(0, 1)), draws)
        # Without the learned balance: what "best" is chosen by must not depend on a learned weight.
        return (losses.flow + losses.gripper) * (~is_pad).float().mean()

    def draw_flow(
        self, *leading: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> FlowDraws:
        """Noise and flow times for chunks of leading dims `leading`, from `generator` (None: the global one)."""
        model = self.config.model
        place = torch.device(device)
        shape = torch.Size((*leading, model.action_seq_len, self.robot.num_continuous))
        noise = _randn(shape, place, generator)
        time = sample_flow_time(math.prod(leading), model.policy.flow_time, place, generator)
        return FlowDraws(noise, time.view(leading))

    def action_loss(self, batch: ChunkBatch, draws: FlowDraws | None = None) -> ActionLosses:
        """Phase 2: flow matching on the continuous numbers, cross-entropy on the binary ones.

        Args:
            batch: with `state` when `encode_for_policy` ran already, else the observation is encoded here.
            draws: noise and flow time of each sample, as from `draw_flow`; None draws them here, from the global
                generator. Given from outside, the loss does not depend on how a batch is cut into micro-batches.
        """
        if batch.state is not None:
            state = batch.state
        elif batch.observation is not None:
            state = self.encode_for_policy(batch.observation)
        else:
            raise ValueError("ChunkBatch needs an observation or a state")
        mask = ~batch.is_pad
        continuous = self._continuous_loss(state, batch.actions[..., self._continuous], mask, draws)
        if self.gripper is None:
            return ActionLosses(continuous, continuous, continuous.new_zeros(()))
        gripper = gripper_loss(self.gripper(state), batch.actions[..., self._binary], mask)
        if self.gripper_log_variance is None:
            return ActionLosses(gripper, continuous, gripper)
        log_variance = self.gripper_log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
        total = continuous + torch.exp(-log_variance) * gripper + 0.5 * log_variance
        return ActionLosses(total, continuous, gripper)

    def _continuous_loss(self, state: Tensor, x_0: Tensor, mask: Tensor, draws: FlowDraws | None) -> Tensor:
        """Flow-matching loss (or L1 error) of the continuous numbers `x_0` `[B, H, C]` given `state` `[B, P]`."""
        if self.policy is None:
            return state.new_zeros(())
        condition = self.policy.condition(state)
        if self.config.model.policy.objective == "l1":
            still = torch.zeros_like(x_0)
            return l1_loss(self.policy(still, still[:, 0, 0], condition), x_0, mask)
        x_1, t = self.draw_flow(x_0.shape[0], device=x_0.device) if draws is None else draws
        velocity = self.policy(interpolate(x_0, x_1, t[:, None, None]), t, condition)
        return flow_matching_loss(velocity, x_0, x_1, mask)

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
        actions = torch.empty(state.shape[0], settings.action_seq_len, settings.action_dim, device=state.device)
        if self.policy is not None:
            actions[..., self._continuous] = self._sample_continuous(state, steps, generator, noise, temperature)
        if self.gripper is not None:
            actions[..., self._binary] = gripper_command(self.gripper(state))
        return actions

    def _sample_continuous(
        self,
        state: Tensor,
        steps: int | None,
        generator: torch.Generator | None,
        noise: Tensor | None,
        temperature: float | None,
    ) -> Tensor:
        """Continuous numbers of chunks, float32 `[B, H, C]`, for `state` `[B, P]`; rest as in `sample_actions`."""
        head, settings = self.policy, self.config.model.policy
        assert head is not None
        condition = head.condition(state)
        shape = torch.Size((state.shape[0], head.horizon, head.continuous_dim))

        def velocity(x: Tensor, t: float) -> Tensor:
            return head(x, torch.full((x.shape[0],), t, device=x.device), condition)

        if settings.objective == "l1":
            return velocity(torch.zeros(shape, device=state.device), 0.0)
        noise = _randn(shape, state.device, generator) if noise is None else noise
        scale = settings.sampling_temperature if temperature is None else temperature
        return solve(velocity, scale * noise, steps or settings.num_sampling_steps, settings.solver)

    def prepare_for_inference(self, precision: str) -> StateVLA:
        """Evaluation mode, with the weights of all Mamba blocks converted and packed once (state dict unchanged).

        Args:
            precision: `bf16` or `fp32`.
        """
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        prepare_for_inference(self.state_encoder, dtype, self.config.model.num_tokens)
        if self.policy is not None:
            tokens = self.policy.condition.num_tokens + 1 + self.policy.horizon
            prepare_for_inference(self.policy, dtype, tokens)
        return self.eval()

    def freeze_encoder(self) -> None:
        """Phase 2: the state encoder stays in evaluation mode whatever `train()` says, and keeps its weights, except
        for the last layers that `training.phase2.unfreeze_last_blocks` trains along."""
        self._encoder_is_frozen = True
        trained = {id(parameter) for _, parameter in self.phase_parameters("2")}
        for parameter in self.state_encoder.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        self.state_encoder.eval()

    def train(self, mode: bool = True) -> StateVLA:
        super().train(mode)
        if self._encoder_is_frozen:
            self.state_encoder.eval()
        return self

    def update_target(self, step: int, total_steps: int) -> float:
        """Move the EMA target after optimizer step `step` of `total_steps`; returns the momentum used."""
        return self.state_encoder.update_target(step, total_steps)

    def phase_parameters(self, phase: Phase) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that a phase trains.

        Raises:
            UserError: unknown phase.
        """
        if phase not in PHASES:
            raise UserError(f"phase '{phase}': expected one of {', '.join(PHASES)}")
        cloning = self.config.training.phase1.behavior_cloning_weight > 0
        heads = ("gripper_log_variance",) if cloning else ("policy.", "gripper")
        world_model = ("state_encoder.predictor.", "state_encoder.inverse_dynamics.", "state_encoder.keyframe.")
        idle = {"1": heads, "2": ("state_encoder.",), "bc": world_model}[phase]
        unfrozen = self._unfrozen_in_phase_2() if phase == "2" else ()
        for name, parameter in self.named_parameters():
            if name.startswith(unfrozen) or not name.startswith((*idle, "state_encoder.target.")):
                yield name, parameter

    def _unfrozen_in_phase_2(self) -> tuple[str, ...]:
        """Prefixes of the encoder's parameters that phase 2 trains: its end, from the first unfrozen layer on."""
        count, depth = self.config.training.phase2.unfreeze_last_blocks, self.config.model.encoder_depth
        if not count:
            return ()
        encoder = "state_encoder.encoder."
        layers = (f"{encoder}stack.layers.{number}." for number in range(depth - count, depth))
        return (*layers, f"{encoder}stack.norm_f.", f"{encoder}norm.", "state_encoder.projection.")

    def parameter_table(self) -> list[tuple[str, int]]:
        """(part, number of parameters), in the order of the data's way; sums to the whole model."""
        encoder = self.state_encoder
        parts: list[tuple[str, nn.Module | nn.Parameter]] = [
            ("tokenizer", encoder.tokenizer),
            ("context encoder", encoder.encoder),
            ("target encoder (EMA)", encoder.target),
            ("temporal predictor", encoder.predictor),
            *([("inverse dynamics", encoder.inverse_dynamics)] if encoder.inverse_dynamics else []),
            *([("keyframe head", encoder.keyframe)] if encoder.keyframe else []),
            ("state projection", encoder.projection),
            *([("flow-matching policy", self.policy)] if self.policy else []),
            *([("gripper classifier", self.gripper)] if self.gripper else []),
            *([("loss balance", self.gripper_log_variance)] if self.gripper_log_variance is not None else []),
        ]
        return [(name, _count(part)) for name, part in parts]


def _count(part: nn.Module | nn.Parameter) -> int:
    return part.numel() if isinstance(part, nn.Parameter) else sum(p.numel() for p in part.parameters())


def _randn(shape: torch.Size, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Normal noise drawn on the generator's device, so that a CPU generator gives the same noise on every device."""
    return torch.randn(shape, generator=generator, device=generator.device if generator else device).to(device)
