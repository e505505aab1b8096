"""The selective scan by mamba_ssm's CUDA kernel, where that package is installed."""

from __future__ import annotations

import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor

from statevla.model.mamba.backends import ScanBackend, ScanInputs, ScanOutputs
from statevla.model.mamba.scan_chunked import scan_chunked


def forward(inputs: ScanInputs, keep_for_backward: bool, return_last_state: bool) -> ScanOutputs:
    """Differentiable by mamba_ssm's own autograd function. Its kernel starts from zero: other states run chunked."""
    if inputs.initial_state is not None:
        return scan_chunked(inputs, keep_for_backward, return_last_state)

    def channels_first(tensor: Tensor | None) -> Tensor | None:
        # The kernel wants one dtype for all sequences, and time as the last, contiguous dimension.
        return None if tensor is None else tensor.to(inputs.u.dtype).transpose(1, 2).contiguous()

    result = selective_scan_fn(
        channels_first(inputs.u),
        channels_first(inputs.delta),
        inputs.A.float(),
        channels_first(inputs.B),
        channels_first(inputs.C),
        None if inputs.D is None else inputs.D.float(),
        z=channels_first(inputs.z),
        delta_bias=None if inputs.delta_bias is None else inputs.delta_bias.float(),
        delta_softplus=inputs.delta_softplus,
        return_last_state=return_last_state,
    )
    out, last = result if return_last_state else (result, result.new_empty(0, dtype=torch.float32))
    return ScanOutputs(out.transpose(1, 2), last, out.new_empty(0))


BACKEND = ScanBackend(forward=forward, devices=("cuda",), dtypes=(torch.float32, torch.bfloat16, torch.float16))
