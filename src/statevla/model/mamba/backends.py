"""Which implementation of the selective scan runs where, and why.

Every backend lives in a module of its own, `scan_<name>`, with one `BACKEND: ScanBackend`, imported at first use, so
that numba or mamba_ssm cost nothing where they are not used. The choice is: argument, then `STATEVLA_SCAN_BACKEND`,
then automatic.
"""

from __future__ import annotations

import importlib
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from statevla.errors import UserError

ENVIRONMENT_VARIABLE = "STATEVLA_SCAN_BACKEND"

_NAMES = ("reference", "chunked", "numba", "mamba_ssm")
_PORTABLE = "chunked"
_load_lock = threading.RLock()


class ScanInputs(NamedTuple):
    """The arguments of `selective_scan`, channel-last; shapes are given there."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor | None
    delta_softplus: bool


class ScanOutputs(NamedTuple):
    """`out [B, L, d_inner]`, `last_state [B, d_inner, d_state]` and what backward needs (both may be empty)."""

    out: Tensor
    last_state: Tensor
    checkpoints: Tensor


Gradients = tuple[Tensor | None, ...]
"""Gradients of the nine tensors of `ScanInputs`, in their order; None where the input is None."""


@dataclass(frozen=True)
class ScanBackend:
    """One implementation.

    Attributes:
        forward: `(inputs, keep_for_backward, return_last_state) -> ScanOutputs`.
        backward: `(grad_out, grad_last_state or None, inputs, checkpoints) -> Gradients`; None: differentiate
            `forward`, recomputed, with PyTorch's autograd.
        devices: device types on which it runs; empty: all.
        dtypes: dtypes of `u` that it takes; empty: all floating dtypes.
        checkpoint_shape: `(batch, length, d_inner, d_state) -> shape` of the float32 checkpoints.
    """

    forward: Callable[[ScanInputs, bool, bool], ScanOutputs]
    backward: Callable[[Tensor, Tensor | None, ScanInputs, Tensor], Gradients] | None = None
    devices: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    checkpoint_shape: Callable[[int, int, int, int], tuple[int, ...]] = lambda batch, length, inner, state: (0,)


@dataclass(frozen=True)
class BackendChoice:
    """One line of `describe_backends`: on `device` with `dtype`, `backend` runs, for `reason`."""

    device: str
    dtype: str
    backend: str
    reason: str


@cache
def _load(name: str) -> tuple[ScanBackend | None, str]:
    """The backend, or None and why it cannot work here. Any failure counts: a kernel compiler can fail in any way."""
    with _load_lock:
        try:
            return importlib.import_module(f"statevla.model.mamba.scan_{name}").BACKEND, ""
        except Exception as error:  # numba raises its own hierarchy, and ImportError, OSError, ...
            detail = (str(error).strip().splitlines() or ["no message"])[0]
            return None, f"{type(error).__name__}: {detail}"


@cache
def _warn_fallback(name: str, reason: str) -> None:
    """Warn once per process and backend."""
    warnings.warn(
        f"selective-scan backend '{name}' cannot run here ({reason}); using '{_PORTABLE}', which is slower",
        RuntimeWarning,
        stacklevel=4,
    )


def _unfit(backend: ScanBackend, device: str, dtype: torch.dtype) -> str:
    """Why a working backend does not take such tensors; empty if it does."""
    if backend.devices and device not in backend.devices:
        return f"it runs on {'/'.join(backend.devices)} only"
    if backend.dtypes and dtype not in backend.dtypes:
        return f"it takes {'/'.join(str(d).removeprefix('torch.') for d in backend.dtypes)} only"
    return ""


def _requested(argument: str) -> tuple[str, str]:
    """Name asked for ('auto' if none) and by whom."""
    name, source = argument, "argument or config"
    if name == "auto":
        name, source = os.environ.get(ENVIRONMENT_VARIABLE) or "auto", ENVIRONMENT_VARIABLE
    if name != "auto" and name not in _NAMES:
        raise UserError(f"scan backend ({source}): expected one of auto, {', '.join(_NAMES)}; got '{name}'")
    return name, source


@cache
def _choose(name: str, source: str, device: str, dtype: torch.dtype) -> tuple[str, str]:
    """(backend, reason). Warns once if a fast backend was wanted and cannot work on this machine."""
    if name == "auto":
        fast = "mamba_ssm" if device == "cuda" else "numba" if device == "cpu" else ""
        if not fast:
            return _PORTABLE, f"no kernel for {device}: plain PyTorch"
        asked = f"automatic: the fastest on {device}"
    else:
        fast, asked = name, f"asked for by {source}"
    backend, failure = _load(fast)
    if backend is None:
        _warn_fallback(fast, failure)
        return _PORTABLE, f"'{fast}' cannot run here ({failure})"
    if misfit := _unfit(backend, device, dtype):
        return _PORTABLE, f"not '{fast}': {misfit}"
    return fast, asked


def resolve_backend(requested: str, device: str, dtype: torch.dtype) -> str:
    """Name of the backend that runs for tensors on `device` (a device type) with `dtype`.

    Raises:
        UserError: if `requested` or `STATEVLA_SCAN_BACKEND` names no backend.
    """
    return _choose(*_requested(requested), device, dtype)[0]


# What `torch.compiler.assume_constant_result` does, which imports the compiler (over a second) for this mark.
resolve_backend.__dict__["_dynamo_marked_constant"] = True


def load_backend(requested: str) -> None:
    """Load now what this machine's main device will need: inside `torch.export`, numba could not be imported.

    Raises:
        UserError: as `resolve_backend`.
    """
    resolve_backend(requested, "cuda" if torch.cuda.is_available() else "cpu", torch.float32)


def get_backend(name: str) -> ScanBackend:
    """The implementation that a resolved name stands for."""
    backend, failure = _load(name)
    if backend is None:
        raise UserError(f"scan backend '{name}': expected one that runs here, got {failure}; use 'auto'")
    return backend


def describe_backends(requested: str = "auto") -> list[BackendChoice]:
    """What runs for every device of this machine and every dtype, and why."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    name, source = _requested(requested)
    return [
        BackendChoice(device, str(dtype).removeprefix("torch."), *_choose(name, source, device, dtype))
        for device in devices
        for dtype in dtypes
    ]
