"""One Mamba-1 block, with the parameter names and initialisations of the official implementation."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statevla.errors import UserError
from statevla.model.mamba.backends import load_backend
from statevla.model.mamba.conv import causal_conv1d_silu
from statevla.model.mamba.selective_scan import selective_scan

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 0.1, 1e-4


class MambaCache(NamedTuple):
    """What a block remembers between steps: the last inputs of its convolution and the scan's state.

    `conv`: `[B, d_inner, d_conv - 1]`, oldest first; `state`: `[B, d_inner, d_state]`, float32.
    """

    conv: Tensor
    state: Tensor


class MambaBlock(nn.Module):
    """Selective state-space mixer (Gu & Dao 2023), without norm and residual.

    Args:
        d_model: width of the residual stream.
        d_state: states per channel.
        d_conv: taps of the causal convolution, 2 to 4.
        num_layers: residual updates of the whole stack; `out_proj` is scaled by `1 / sqrt(num_layers)`, as in GPT-2
            and mamba_ssm.
        backend: of `selective_scan`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        num_layers: int = 1,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if not 2 <= d_conv <= 4:
            raise UserError(f"d_conv: expected 2, 3 or 4, got {d_conv}; Mamba-1 uses 4")
        self.d_model, self.d_state, self.d_conv, self.d_inner = d_model, d_state, d_conv, 2 * d_model
        self.dt_rank = math.ceil(d_model / 16)  # of the step-size projection
        self.backend = backend
        load_backend(backend)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1).float()).repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        self._init_special_parameters(num_layers)

    @torch.no_grad()
    def _init_special_parameters(self, num_layers: int) -> None:
        """Initial steps log-uniform in [0.001, 0.1]: `softplus(bias)` is the step; no weight decay pulls on them."""
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        log_step = torch.empty(self.d_inner).uniform_(math.log(DT_MIN), math.log(DT_MAX))
        step = log_step.exp().clamp(min=DT_FLOOR)
        self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
        self.out_proj.weight /= math.sqrt(num_layers)
        for parameter in (self.A_log, self.D, self.dt_proj.bias):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor, last_only: bool = False) -> Tensor:
        """`[B, L, d_model] -> [B, L, d_model]`; output t depends on inputs 0 … t.

        With `last_only` only the last output is computed, `[B, 1, d_model]`: gate and output projection of the others
        are three fifths of the block's products.
        """
        signal, gate = self._project_in(x, x[:, -1:] if last_only else x)
        y = self._mix(signal, None)[:, -1:] * F.silu(gate) if last_only else self._mix(signal, gate)
        return self.out_proj(y)

    def _project_in(self, x: Tensor, x_of_gate: Tensor) -> tuple[Tensor, Tensor]:
        """Both halves of `in_proj`. Two products: the halves of one would be joined again in backward, by a copy."""
        if type(self.in_proj) is not nn.Linear:  # an adapter around it (LoRA) computes more than its weight says
            signal, gate = self.in_proj(x).chunk(2, dim=-1)
            return signal, gate if x_of_gate is x else self.in_proj(x_of_gate).chunk(2, dim=-1)[1]
        in_signal, in_gate = self.in_proj.weight.chunk(2)
        return F.linear(x, in_signal), F.linear(x_of_gate, in_gate)

    def _mix(self, signal: Tensor, gate: Tensor | None) -> Tensor:
        """Convolution, selection and scan: `[B, L, d_inner]` to the same, gated by `gate` if given."""
        assert self.conv1d.bias is not None
        u = causal_conv1d_silu(signal, self.conv1d.weight, self.conv1d.bias, self.backend)
        return self._scan(u, gate)

    def _scan(self, u: Tensor, gate: Tensor | None, **options: Any) -> Any:
        """`selective_scan` of `u` `[B, L, d_inner]` with its `options`."""
        delta, B, C = self._selection(u)
        A, bias = self.decay(), self.dt_proj.bias
        return selective_scan(u, delta, A, B, C, self.D, gate, bias, True, backend=self.backend, **options)

    def decay(self) -> Tensor:
        """A, `[d_inner, d_state]`, negative."""
        return -torch.exp(self.A_log.float())

    def _selection(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input-dependent step (before bias and softplus), B and C of `u` `[..., d_inner]`."""
        low_rank, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        if type(self.dt_proj) is not nn.Linear:
            return self.dt_proj(low_rank) - self.dt_proj.bias, B, C
        return F.linear(low_rank, self.dt_proj.weight), B, C

    def allocate_cache(self, batch: int) -> MambaCache:
        """An empty cache for `batch` streams, on the block's device."""
        zeros = self.A_log.new_zeros
        return MambaCache(
            zeros(batch, self.d_inner, self.d_conv - 1), zeros(batch, self.d_inner, self.d_state, dtype=torch.float32)
        )

    def step(self, x_t: Tensor, cache: MambaCache) -> tuple[Tensor, MambaCache]:
        """One time step, `[B, d_model] -> [B, d_model]`, equal to `forward` on the whole sequence so far."""
        signal, gate = self._project_in(x_t, x_t)
        window = torch.cat([cache.conv, signal[..., None].to(cache.conv.dtype)], dim=-1)
        taps = (window * self.conv1d.weight[:, 0]).sum(-1)
        assert self.conv1d.bias is not None
        u = F.silu(taps + self.conv1d.bias).to(signal.dtype)
        y, state = self._scan(u[:, None], gate[:, None], initial_state=cache.state, return_last_state=True)
        return self.out_proj(y[:, 0]), MambaCache(window[..., 1:], state)
