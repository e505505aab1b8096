"""z_t → a chunk of actions: flow matching for the continuous numbers, a classifier for the binary ones (a gripper)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from statevla.config import ModelConfig
from statevla.errors import UserError
from statevla.model.flow import FlowDraws, flow_matching_loss, interpolate, masked_mean, solve
from statevla.model.mamba import MambaStack
from statevla.robots import RobotSpec


class SinusoidalTimeEmbedding(nn.Module):
    """Flow time in [0, 1] → sinusoids (Vaswani et al. 2017, on 1000 t as in diffusion models) → MLP."""

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        frequencies = torch.exp(torch.arange(half) * (-math.log(10_000.0) / max(half - 1, 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.padding = dim - 2 * half
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        """`[B]` → `[B, D]`."""
        angles = 1000.0 * t.float().unsqueeze(-1) * self.frequencies
        return self.mlp(F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, self.padding)))


class PolicyStateLayout:
    """How the flat policy state `[B, P]` splits: z, robot state, language (absent ones have width 0)."""

    def __init__(self, config: ModelConfig) -> None:
        condition = config.policy.condition
        self.widths = [
            config.state_dim,
            config.robot_state_dim if condition.robot_state else 0,
            config.language_dim if condition.language else 0,
        ]

    def split(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, P]` → z `[B, Z]`, robot state `[B, S or 0]`, language `[B, E or 0]`."""
        z, robot, language = state.split(self.widths, dim=-1)
        return z, robot, language


class StateWays(nn.Module):
    """Hides some of the ways in which a robot's state is said (`RobotSpec.state_ways`), as if they had not been sent.

    Raises:
        UserError: the encoder would see what is hidden from the policy.
    """

    masks: Tensor

    def __init__(self, config: ModelConfig, robot: RobotSpec) -> None:
        super().__init__()
        if config.robot_token_dropout < 1:
            raise UserError(
                f"model.robot_token_dropout: expected 1.0 for robot '{robot.name}', whose state is said in several "
                f"ways (state_ways), got {config.robot_token_dropout}; set it to 1.0, or declare one way"
            )
        layout, masks = PolicyStateLayout(config), torch.from_numpy(robot.way_masks())
        seen = masks if layout.widths[1] else masks[:, :0]
        z, language = (torch.ones(len(masks), layout.widths[part]) for part in (0, 2))
        self.register_buffer("masks", torch.cat([z, seen, language], dim=1), persistent=False)

    def forward(self, state: Tensor, way: Tensor) -> Tensor:
        """Policy state `[B, P]` → the same with zeros, the mean, for what `way` `[B]` does not say."""
        return state * self.masks[way]


class PolicyCondition(nn.Module):
    """Policy state → condition tokens: one for z, then one each for robot state and language."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.layout = PolicyStateLayout(config)
        _, robot, language = self.layout.widths
        self.state = nn.Linear(config.state_dim, dim)
        self.robot_state = nn.Linear(robot, dim) if robot else None
        self.language = nn.Linear(language, dim) if language else None
        self.num_tokens = 1 + bool(robot) + bool(language)

    def forward(self, state: Tensor) -> Tensor:
        """`[B, P]` → `[B, num_tokens, D]`."""
        layers = (self.state, self.robot_state, self.language)
        parts = zip(layers, self.layout.split(state))
        return torch.stack([layer(part) for layer, part in parts if layer is not None], dim=1)


class FlowMatchingPolicy(nn.Module):
    """Velocity field over the chunk's continuous numbers: Mamba over [z …][t][x_1 … x_H].

    Args:
        continuous_dim: C, the continuous numbers of an action.
    """

    def __init__(self, config: ModelConfig, continuous_dim: int) -> None:
        super().__init__()
        dim, policy = config.embed_dim, config.policy
        self.horizon, self.continuous_dim = config.action_seq_len, continuous_dim
        self.condition = PolicyCondition(config)
        self.time = SinusoidalTimeEmbedding(dim)
        self.action = nn.Linear(self.continuous_dim, dim)
        self.positions = nn.Parameter(torch.empty(self.condition.num_tokens + 1 + self.horizon, dim))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.positions._no_weight_decay = True  # type: ignore[attr-defined]
        self.stack = MambaStack(
            dim,
            policy.depth,
            d_state=policy.d_state,
            mlp_hidden_dim=policy.mlp_hidden_dim,
            backend=config.mamba.scan_backend,
        )
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, self.continuous_dim))

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Velocity at `x_t`.

        Args:
            x_t: `[B, H, C]`, normalised.
            t: `[B]`, flow time in [0, 1].
            condition: `[B, C, D]`, the output of `self.condition`, the same at every solver step.

        Returns:
            `[B, H, C]`, float32.
        """
        # float32 also under autocast: this is where the residual stream begins.
        tokens = torch.cat([condition.float(), self.time(t).unsqueeze(1).float(), self.action(x_t).float()], dim=1)
        outputs = self.stack(tokens + self.positions)
        return self.head(outputs[:, -self.horizon :]).float()

    def loss(self, state: Tensor, x_0: Tensor, draws: FlowDraws, mask: Tensor) -> Tensor:
        """Flow-matching loss of the chunks `x_0` `[B, H, C]` given `state` `[B, P]`, over steps of `mask` `[B, H]`."""
        condition = self.condition(state)
        x_t = interpolate(x_0, draws.noise, draws.time[:, None, None])
        return flow_matching_loss(self(x_t, draws.time, condition), x_0, draws.noise, mask)

    def sample(self, state: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Noise `[B, H, C]` → chunks, the same shape, for `state` `[B, P]`."""
        condition = self.condition(state)
        return solve(lambda x, t: self(x, torch.full((len(x),), t, device=x.device), condition), noise, steps)


class GripperClassifier(nn.Module):
    """Policy state → one logit per step of the chunk and binary number; positive means on (of a gripper: close).

    Args:
        binary_dim: G, the binary numbers of an action.
    """

    def __init__(self, config: ModelConfig, binary_dim: int, hidden_dim: int = 256) -> None:
        super().__init__()
        self.binary_dim = binary_dim
        self.mlp = nn.Sequential(
            nn.Linear(sum(PolicyStateLayout(config).widths), hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, config.action_seq_len * binary_dim),
        )

    def forward(self, state: Tensor) -> Tensor:
        """`[B, P]` → logits `[B, H, G]`, float32."""
        return self.mlp(state).float().unflatten(-1, (-1, self.binary_dim))


def gripper_loss(logits: Tensor, command: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy against the commands.

    Args:
        logits: `[B, H, G]`.
        command: `[B, H, G]`, -1 (off) or +1 (on).
        mask: bool `[B, H]`, true where a step counts.
    """
    is_on = (command > 0).to(logits.dtype)
    return masked_mean(F.binary_cross_entropy_with_logits(logits, is_on, reduction="none").mean(dim=-1), mask)


def gripper_command(logits: Tensor) -> Tensor:
    """Logits → exactly -1 (off) or +1 (on), as floats."""
    return torch.where(logits > 0, 1.0, -1.0)
