"""Policy state → a chunk of continuous numbers and the logits of the binary ones, all solver steps in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from statevla.model.action_policy import FlowMatchingPolicy, GripperClassifier
from statevla.model.program.program import PackedWeight, Program
from statevla.model.program.stack import PackedStack


class PackedPolicy:
    """Weights of both heads, packed once for all programs; what stands outside the stack stays in float32."""

    def __init__(
        self, policy: FlowMatchingPolicy | None, gripper: GripperClassifier | None, dtype: torch.dtype
    ) -> None:
        self.policy = policy
        if policy is not None:
            self.stack = PackedStack(policy.stack, dtype)
            condition = policy.condition
            maps = (condition.state, condition.robot_state, condition.language)
            self.condition = [None if each is None else PackedWeight(each.weight, each.bias) for each in maps]
            self.action = PackedWeight(policy.action.weight, policy.action.bias)
            self.head = PackedWeight(policy.head[0].weight, policy.head[0].bias)  # type: ignore[arg-type]
        self.gripper = None
        if gripper is not None:
            layers = [layer for layer in gripper.mlp if isinstance(layer, torch.nn.Linear)]
            self.gripper = [PackedWeight(layer.weight, layer.bias) for layer in layers]


class PolicyProgram:
    """Both heads for one batch size and number of solver steps.

    Args:
        width: P, of the policy state.
    """

    def __init__(self, ready: PackedPolicy, batch: int, width: int, num_steps: int) -> None:
        self._program = program = Program()
        self._state = program.buffer(batch, width)
        self._x = self._logits = None
        if ready.policy is not None:
            self._x = self._add_flow(program, ready, ready.policy, batch, num_steps)
        if ready.gripper is not None:
            hidden = self._state
            for i, weight in enumerate(ready.gripper):
                out = program.buffer(batch, weight.out_features)
                program.matmul(hidden, weight, out, "gelu" if i + 1 < len(ready.gripper) else "none")
                hidden = out
            self._logits = hidden

    def _add_flow(
        self, program: Program, ready: PackedPolicy, policy: FlowMatchingPolicy, batch: int, num_steps: int
    ) -> Tensor:
        """Euler's method from the noise in the returned buffer `[B * H, C]` to the chunk, in place."""
        horizon, dim = policy.horizon, policy.stack.d_model
        length = policy.condition.num_tokens + 1 + horizon
        x = program.buffer(batch * horizon, policy.continuous_dim)
        # What no solver step changes: positions, condition tokens.
        base, tokens = program.buffer(batch * length, dim), program.buffer(batch * length, dim)
        positions = program.constant(policy.positions)
        for b in range(batch):
            program.copy(positions, base[b * length : (b + 1) * length])
        parts = policy.condition.layout.split(self._state)
        present = [(part, weight) for part, weight in zip(parts, ready.condition) if weight is not None]
        with program.together():
            for i, (part, weight) in enumerate(present):
                program.matmul(part, weight, base[i::length], adds=True)
        hidden, normed = program.buffer(batch * horizon, dim), None
        # Euler's step is part of the head's last product: x + dt (W h + b).
        last, dt = policy.head[2], -1.0 / num_steps
        assert isinstance(last, torch.nn.Linear)
        step = PackedWeight(dt * last.weight, dt * last.bias)
        for i in range(num_steps):
            time = program.constant(policy.time(torch.tensor([1.0 + i * dt])))
            program.copy(base, tokens)
            with program.together():
                program.copy(time, tokens[len(present) :: length], adds=True)
                for b in range(batch):
                    first = (b + 1) * length - horizon
                    actions = tokens[first : first + horizon]
                    program.matmul(x[b * horizon : (b + 1) * horizon], ready.action, actions, adds=True)
            normed = ready.stack.add(program, tokens, batch)
            with program.together():
                for b in range(batch):
                    end = (b + 1) * length
                    rows = slice(b * horizon, (b + 1) * horizon)
                    program.matmul(normed[end - horizon : end], ready.head, hidden[rows], "silu")
            program.matmul(hidden, step, x, adds=True)
        return x

    def __call__(self, state: Tensor, noise: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """State `[B, P]` and noise `[B, H, C]` → the chunk `[B, H, C]` and logits `[B, H * G]`; None where no head."""
        self._state.copy_(state)
        if self._x is not None and noise is not None:
            self._x.copy_(noise.flatten(0, 1))
        self._program.run()
        chunk = None if self._x is None else self._x.clone().view(state.shape[0], -1, self._x.shape[1])
        return chunk, None if self._logits is None else self._logits.clone()
