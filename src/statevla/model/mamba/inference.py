"""Weights converted and packed once for inference, beside the parameters that training sees.

A batch-1 forward under autocast converts every weight to bfloat16 anew, and oneDNN re-orders it at every product: about
a tenth of the encoder's time. `prepare_for_inference` does both once.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@runtime_checkable
class Preparable(Protocol):
    """A module that can keep packed weights; see `PreparedModule`."""

    def prepare_for_inference(self, dtype: torch.dtype, rows: int) -> None: ...


class PackedLinear:
    """A bias-free linear map with a fixed weight, in oneDNN's own layout where PyTorch offers that.

    Args:
        weight: `[out_features, in_features]`; copied.
        dtype: of inputs, weight and outputs.
        rows: number of input rows (batch times length) to optimise the layout for; any other works too.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype, rows: int) -> None:
        self.weight = weight.detach().to(dtype, copy=True).contiguous()
        self._packed = _pack(self.weight, rows)

    def __call__(self, x: Tensor) -> Tensor:
        """`[..., in_features] -> [..., out_features]`, without gradients."""
        if self._packed is None:
            return F.linear(x, self.weight)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")


def _pack(weight: Tensor, rows: int) -> Tensor | None:
    """oneDNN's layout of `weight`, or None where it is not to be had or does not compute the same."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    try:
        if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return None
        with torch.inference_mode(False), torch.no_grad():
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            probe = torch.linspace(-1, 1, 2 * weight.shape[1]).view(2, -1).to(weight.dtype)
            found = torch.ops.mkldnn._linear_pointwise(probe, packed, None, "none", [], "").float()
            wanted = F.linear(probe.float(), weight.float())
    except (RuntimeError, AttributeError, NotImplementedError):  # operators that PyTorch does not promise to keep
        return None
    tolerance = 1e-5 if weight.dtype == torch.float32 else 2e-2
    return packed if (found - wanted).abs().max() <= tolerance * (1 + wanted.abs().max()) else None


class PreparedModule(nn.Module):
    """A module with optional packed weights that are dropped as soon as its parameters may have changed.

    They are no parameters and no buffers: the state dict never holds them. Training mode, a move, a load and any
    in-place change of a parameter make `prepared()` None again, and `forward` uses the parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self._prepared: dict[str, Any] | None = None
        self._prepared_from: list[nn.Parameter] = []
        self._prepared_versions: list[int] = []

    def _set_prepared(self, values: dict[str, Any]) -> None:
        # Tensors made in inference mode count no versions (and cannot be changed outside of it).
        self._prepared_from = [p for p in self.parameters() if not p.is_inference()]
        self._prepared, self._prepared_versions = values, [p._version for p in self._prepared_from]

    def prepared(self) -> dict[str, Any] | None:
        """The packed weights if they may be used now: none while gradients are recorded."""
        if self._prepared is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        if self._prepared_versions != [p._version for p in self._prepared_from]:
            self._prepared = None
        return self._prepared

    def train(self, mode: bool = True) -> PreparedModule:
        """As in `nn.Module`; training mode drops the packed weights."""
        if mode:
            self._prepared = None
        super().train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> PreparedModule:
        self._prepared = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None, "_prepared_from": []}


def prepare_for_inference(module: nn.Module, dtype: torch.dtype = torch.bfloat16, rows: int = 395) -> nn.Module:
    """Convert and pack the weights of every Mamba block and gated MLP inside `module`, for use without gradients.

    Afterwards a forward in `eval` mode under `torch.no_grad()` or `torch.inference_mode()` runs in `dtype` without
    autocast; parameters and state dict stay as they are.

    Args:
        dtype: bfloat16 or float32. float32 keeps full precision and still gains from the layout.
        rows: sequence length times batch to expect; a hint.
    """
    module.eval()
    for part in module.modules():
        if isinstance(part, Preparable):
            part.prepare_for_inference(dtype, rows)
    return module
