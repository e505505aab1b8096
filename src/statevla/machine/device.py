"""Where and with which precision to compute."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from statevla.errors import UserError
from statevla.machine.processor import processor_field


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


def resolve_precision(name: str, device: torch.device) -> str:
    """`auto` → `bf16` where the processor is faster at it, else `fp32`; other names are themselves."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and cpu_gains_from_bf16() else "fp32"


def cpu_gains_from_bf16() -> bool:
    """Whether this CPU multiplies bf16 faster than float32.

    Without instructions for it bf16 is emulated. Those of Intel's AVX-512 gain nothing: without AMX, acting takes
    longer in bf16 (`benchmarks/results/model_sample_emerald_rapids.json`).
    """
    is_intel = "GenuineIntel" in processor_field("vendor_id")
    return _supports("_is_amx_tile_supported") or (_supports("_is_avx512_bf16_supported") and not is_intel)


def _supports(name: str) -> bool:
    check = getattr(torch.cpu, name, None)
    return check is not None and check()


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast on `device`, or nothing for fp32; `precision` as in `resolve_precision`."""
    if resolve_precision(precision, device) == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
