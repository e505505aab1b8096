"""Where and with which precision to compute."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from statevla.errors import UserError


def resolve_device(name: str) -> torch.device:
    """`auto` → CUDA, else MPS, else the CPU; any other name as PyTorch knows it.

    Raises:
        UserError: unknown or absent device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device '{name}': not usable here ({reason}); use device=auto") from None
    return device


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast on `device`, or nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
