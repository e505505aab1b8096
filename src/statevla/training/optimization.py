"""AdamW's parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from statevla.config import TrainingConfig
from statevla.errors import UserError


def build_optimizer(
    parameters: Mapping[str, nn.Parameter], learning_rate: float, config: TrainingConfig
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) on `parameter_groups`."""
    return torch.optim.AdamW(
        parameter_groups(parameters.values(), config.weight_decay),
        lr=learning_rate,
        betas=config.betas,
        # On a CPU the loop over tensors takes ten times as long as the fused kernel; CUDA's default is fast.
        fused=all(parameter.device.type == "cpu" for parameter in parameters.values()) or None,
    )


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: vectors, scalars and parameters marked `_no_weight_decay` do not decay."""
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in parameters:
        decays = parameter.ndim > 1 and not getattr(parameter, "_no_weight_decay", False)
        (decaying if decays else others).append(parameter)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give it to every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate at optimizer step `step` (from 1): linear warm-up, then cosine towards 0."""
    if step <= warmup_steps:
        return step / warmup_steps
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps + 1, 1), 1.0)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors, `optimizer.<parameter>.<slot>`."""
    return {
        f"optimizer.{name}.{slot}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in parameters.items()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], source: str
) -> None:
    """Inverse of `optimizer_tensors`.

    Raises:
        UserError: the stored state is not that of these parameters.
    """
    stored: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, place = key.partition(".")
        if kind == "optimizer":
            name, _, slot = place.rpartition(".")
            stored.setdefault(name, {})[slot] = value
    if stored.keys() != parameters.keys():
        odd = sorted(stored.keys() ^ parameters.keys())[0]
        raise UserError(f"{source}: optimizer state does not fit the trained parameters (first: {odd}); start anew")
    for name, parameter in parameters.items():
        for slot, value in stored[name].items():
            if value.ndim and value.shape != parameter.shape:
                raise UserError(
                    f"{source}: optimizer.{name}.{slot} has shape {list(value.shape)}, expected {list(parameter.shape)}"
                )
        # The step counter stays on the CPU, where AdamW keeps it.
        optimizer.state[parameter] = {
            slot: value.clone() if value.ndim == 0 else value.to(parameter.device, copy=True)
            for slot, value in stored[name].items()
        }
