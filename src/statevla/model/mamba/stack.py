"""A stack of Mamba-1 blocks with pre-normalised residual connections."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statevla.model.mamba.block import MambaBlock, MambaCache
from statevla.model.mamba.norm import RMSNorm, add_rms_norm

NORM_EPS = 1e-5


class GatedMLP(nn.Module):
    """`fc2(value * silu(gate))` with `value, gate = fc1(x)`; no biases (SwiGLU, Shazeer 2020).

    Args:
        dim, hidden_dim: widths.
        num_updates: residual updates of the whole stack; `fc2` begins scaled by `1 / sqrt(num_updates)`, as `out_proj`
            of a `MambaBlock` does.
    """

    def __init__(self, dim: int, hidden_dim: int, num_updates: int = 1) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.fc2 = nn.Linear(hidden_dim, dim, bias=False)
        with torch.no_grad():
            self.fc2.weight /= math.sqrt(num_updates)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D] -> [..., D]`."""
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(value * F.silu(gate))


class MambaLayer(nn.Module):
    """The parts of one layer; `MambaStack` runs them, so that it can fuse additions with norms across layers."""

    def __init__(self, mixer: MambaBlock, mlp: GatedMLP | None) -> None:
        super().__init__()
        self.norm = RMSNorm(mixer.d_model, NORM_EPS)
        self.mixer = mixer
        if mlp is not None:
            self.norm2 = RMSNorm(mixer.d_model, NORM_EPS)
        self.mlp = mlp


class MambaStack(nn.Module):
    """`num_layers` times `x + mixer(norm(x))`, and `x + mlp(norm2(x))` if `mlp_hidden_dim`; then a final RMSNorm.

    Under autocast the residual stream stays in float32 and the branches run in the lower precision.

    Args:
        d_model, d_state, d_conv, backend: as in `MambaBlock`.
        num_layers: number of layers.
        mlp_hidden_dim: hidden width of the gated MLP; 0 for none.
    """

    def __init__(
        self,
        d_model: int,
        num_layers: int,
        d_state: int = 16,
        d_conv: int = 4,
        mlp_hidden_dim: int = 0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.d_model, self.num_layers, self.backend = d_model, num_layers, backend
        updates = num_layers * (2 if mlp_hidden_dim else 1)
        self.layers = nn.ModuleList(
            MambaLayer(
                MambaBlock(d_model, d_state, d_conv, updates, backend),
                GatedMLP(d_model, mlp_hidden_dim, updates) if mlp_hidden_dim else None,
            )
            for _ in range(num_layers)
        )
        self.norm_f = RMSNorm(d_model, NORM_EPS)

    def typed_layers(self) -> list[MambaLayer]:
        """The layers, as what they are (`nn.ModuleList` forgets it)."""
        return list(self.layers)  # type: ignore[arg-type]

    def forward(self, x: Tensor, last_only: bool = False) -> Tensor:
        """`[B, L, D] -> [B, L, D]` in the dtype of `x`; output t depends on inputs 0 … t.

        With `last_only`, the last output alone, `[B, D]`: equal to `forward(x)[:, -1]`, for less.
        """
        last = self.typed_layers()[-1].mixer if last_only else None
        y = self._run(x, lambda mixer, y: mixer(y, last_only=mixer is last))
        return y[:, -1] if last_only else y

    def allocate_cache(self, batch: int) -> list[MambaCache]:
        """One empty cache per layer for `batch` streams."""
        return [layer.mixer.allocate_cache(batch) for layer in self.typed_layers()]

    def step(self, x_t: Tensor, cache: Sequence[MambaCache]) -> tuple[Tensor, list[MambaCache]]:
        """One time step, `[B, D] -> [B, D]`, equal to `forward` on the sequence so far; returns the next cache."""
        past, following = iter(cache), list[MambaCache]()

        def mix(mixer: MambaBlock, y: Tensor) -> Tensor:
            out, present = mixer.step(y, next(past))
            following.append(present)
            return out

        return self._run(x_t, mix), following

    def _run(self, x: Tensor, mix: Callable[[MambaBlock, Tensor], Tensor]) -> Tensor:
        device = x.device.type
        branch_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        residual, update = x, None
        for layer in self.typed_layers():
            residual, y = self._norm(layer.norm, residual, update, branch_dtype)
            update = mix(layer.mixer, y)
            if update.shape != residual.shape:  # the last output only
                residual = residual[:, -1:]
            if layer.mlp is not None:
                residual, y = self._norm(layer.norm2, residual, update, branch_dtype)
                update = layer.mlp(y)
        return self._norm(self.norm_f, residual, update, x.dtype)[1]

    def _norm(
        self, norm: RMSNorm, residual: Tensor, update: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        return add_rms_norm(residual, update, norm.weight, norm.eps, dtype, self.backend)
