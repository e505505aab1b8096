"""The programs of one model, by batch size, dropped as soon as its weights may have changed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor

from statevla.config import ModelConfig
from statevla.model.action_policy import FlowMatchingPolicy, GripperClassifier
from statevla.model.program.encoder import EncoderProgram, PackedEncoder
from statevla.model.program.policy import PackedPolicy, PolicyProgram
from statevla.model.state_encoder import JepaStateEncoder
from statevla.types import ModelInput

MAX_BATCH = 8
"""Larger batches go in pieces: their buffers would not fit into the cache."""
MAX_PROGRAMS = 12
_Made = TypeVar("_Made")


class ActingPrograms:
    """The two halves of a model in evaluation mode, each as one call.

    Args:
        encoder, policy, gripper: its parts, on the CPU. Their weights are copied.
        config: its sizes.
        dtype: float32 or bfloat16, of the stacks' products.
    """

    def __init__(
        self,
        encoder: JepaStateEncoder,
        policy: FlowMatchingPolicy | None,
        gripper: GripperClassifier | None,
        config: ModelConfig,
        dtype: torch.dtype,
    ) -> None:
        self._config = config
        parts = [part for part in (encoder, policy, gripper) if part is not None]
        # Tensors made in inference mode count no versions (and cannot be changed outside of it).
        tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
        self._made_from = [tensor for tensor in tensors if not tensor.is_inference()]
        self._versions = [tensor._version for tensor in self._made_from]
        with torch.no_grad():
            self._encoder = PackedEncoder(encoder, dtype)
            self._policy = PackedPolicy(policy, gripper, dtype)
        self._programs: OrderedDict[Hashable, object] = OrderedDict()
        self._lock = threading.Lock()

    def are_current(self) -> bool:
        """Whether no parameter and no buffer has been changed in place since."""
        return self._versions == [tensor._version for tensor in self._made_from]

    def encode(self, observation: ModelInput) -> Tensor:
        """Observations `[B]` → z, float32 `[B, Z]`."""
        return torch.cat([self._encode(observation.at(piece)) for piece in _pieces(len(observation.robot_state))])

    def act(self, state: Tensor, noise: Tensor | None, num_steps: int) -> tuple[Tensor | None, Tensor | None]:
        """Policy states `[B, P]` and noise `[B, H, C]` → chunk `[B, H, C]` and gripper logits `[B, H * G]`."""
        pieces = [
            self._act(state[piece], None if noise is None else noise[piece], num_steps) for piece in _pieces(len(state))
        ]
        chunks, logits = zip(*pieces)
        return _joined(chunks), _joined(logits)

    def _encode(self, observation: ModelInput) -> Tensor:
        batch = len(observation.robot_state)
        with self._lock:
            return self._program(("encode", batch), lambda: EncoderProgram(self._encoder, self._config, batch))(
                observation
            )

    def _act(self, state: Tensor, noise: Tensor | None, num_steps: int) -> tuple[Tensor | None, Tensor | None]:
        batch, width = state.shape
        with self._lock:
            return self._program(
                ("act", batch, num_steps), lambda: PolicyProgram(self._policy, batch, width, num_steps)
            )(state, noise)

    def _program(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        if key not in self._programs:
            # Buffers of programs outlive the inference mode that the first call may come in.
            with torch.inference_mode(False), torch.no_grad():
                self._programs[key] = make()
        self._programs.move_to_end(key)
        while len(self._programs) > MAX_PROGRAMS:
            self._programs.popitem(last=False)
        return self._programs[key]  # type: ignore[return-value]


def _pieces(batch: int) -> list[slice]:
    return [slice(first, min(batch, first + MAX_BATCH)) for first in range(0, batch, MAX_BATCH)]


def _joined(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    return torch.cat([part for part in parts if part is not None]) if parts[0] is not None else None
