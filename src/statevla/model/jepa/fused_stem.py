"""A stage of the convolutional stem as one operator on the CPU, in bfloat16, forward and backward.

What PyTorch does in a dozen operators and four layouts - convolution, group norm, FiLM, SiLU, and the way back - goes
picture by picture through one kernel, and stays in the cache.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from statevla.model.kernels import load_kernels
from statevla.model.kernels.call import address
from statevla.model.kernels.threads import run_kernel

for _module in ("stem_forward_kernel", "stem_backward_kernel"):
    load_kernels(_module)
from statevla.model.kernels import stem_backward_kernel, stem_forward_kernel, stem_layout  # noqa: E402 (compiled)
from statevla.model.kernels.matmul_kernel import WIDTH  # noqa: E402
from statevla.model.kernels.simd import HAS_BF16, LANES  # noqa: E402

CHUNKS = 8
"""Parts of the batch that sum weight gradients for themselves: enough for the threads of a small machine to share."""
PLACES_PER_PRODUCT = 192
"""Of weight gradients: a product over fewer places spends itself on adding its result."""


def pack_pictures(images: Tensor, halo: int) -> Tensor:
    """Float32 `[N, 3, S, S]` → bfloat16 `[N, S + 2 halo, S + 2 halo, 4]`, zeros around and in the fourth channel."""
    count, _, side, _ = images.shape
    images = images.detach().float()
    if images[0].is_contiguous():
        out = _pictures(count, side + 2 * halo, 4)
        slots = [images.data_ptr(), images.stride(0), side, out.data_ptr(), halo]
        run_kernel(stem_forward_kernel.stem_pixels, slots, count, 64)
        return out
    return pack_pictures(images.contiguous(), halo)


def stem_stage(
    x: Tensor, conv: nn.Conv2d, norm: nn.GroupNorm | None, film: Tensor | None, halo: int
) -> tuple[Tensor, Tensor]:
    """One stage.

    Args:
        x: bfloat16 `[N, S + 2 p, S + 2 p, C]`, p being the convolution's padding, zeros around.
        norm: None for the last stage, which ends with the convolution.
        film: float32 `[N, 2C']`, scale and shift; None: none.
        halo: zeros to put around the activation.

    Returns:
        The activation, bfloat16, for the next stage `[N, S' + 2 halo, S' + 2 halo, C']`, for others `[N, S', S', C']`
        (of the last stage the convolution's output, twice).
    """
    # Channels that were added to the input meet weights of zero.
    weight = nn.functional.pad(conv.weight, (0, 0, 0, 0, 0, x.shape[-1] - conv.in_channels))
    if norm is None:
        convolved = _stage_op(x, weight, conv.bias, None, None, None, 0, 0.0, conv.stride[0], 0)[2]
        return convolved, convolved
    eps, groups = norm.eps, norm.num_groups
    return _stage_op(x, weight, conv.bias, norm.weight, norm.bias, film, groups, eps, conv.stride[0], halo)[:2]


def _pictures(count: int, side: int, channels: int) -> Tensor:
    """Space for `[N, S, S, C]`, and behind it for a kernel to read over its end."""
    size = count * side * side * channels
    whole = torch.empty(size + 4 * WIDTH, dtype=torch.bfloat16)
    whole[size:] = 0
    return whole[:size].view(count, side, side, channels)


def _pack(matrix: Tensor) -> Tensor:
    """`[runs, K, N]` → panels as `matmul_kernel` reads them, `[N / WIDTH, runs, K / 2, WIDTH, 2]` in bfloat16."""
    runs, inner, columns = matrix.shape
    panels = -(-columns // WIDTH)
    full = nn.functional.pad(matrix.to(torch.bfloat16), (0, panels * WIDTH - columns))
    return full.view(runs, inner // 2, 2, panels, WIDTH).permute(3, 0, 1, 4, 2).contiguous()


class _Stage:
    """Sizes and the parameter slots that forward and backward share."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm: tuple[Tensor | None, Tensor | None],
        film: Tensor | None,
        groups: int,
        eps: float,
        step: int,
        halo: int,
    ) -> None:
        self.count, self.in_side, _, self.in_channels = x.shape
        self.channels, _, self.window, _ = weight.shape
        self.side = (self.in_side - self.window) // step + 1
        self.halo, self.groups = halo, groups
        # Runs of a window's row, `[window, window * C, C']`.
        self.matrix = weight.detach().permute(2, 3, 1, 0).reshape(self.window, -1, self.channels)
        self.kept = [t if t is None else t.detach().float().contiguous() for t in (bias, *norm, film)]
        self.x, self.step, self.eps = x.contiguous(), step, eps

    def slots(self, weight: int, out: int, inner: int, convolved: Tensor, means: Tensor, scales: Tensor) -> list[int]:
        bias, norm_weight, norm_bias, film = (0 if t is None else t.data_ptr() for t in self.kept)
        eps = struct.unpack("<i", struct.pack("<f", self.eps))[0]
        return [
            self.count, self.x.data_ptr(), self.in_side, self.in_channels, self.window, self.step, self.side,
            self.channels, weight, bias, convolved.data_ptr(), self.groups, eps,
            norm_weight, norm_bias, film, means.data_ptr(), scales.data_ptr(), out, self.halo, inner,
        ]  # fmt: skip

    def outputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Activation with and without halo, convolution's output, means, scales; what a last stage lacks is empty."""
        out_side = self.side + 2 * self.halo
        normed = self.count if self.groups else 0
        convolved = torch.empty(self.count, self.side, self.side, self.channels, dtype=torch.bfloat16)
        means, scales = torch.empty(normed, self.channels), torch.empty(normed, self.channels)
        inner = torch.empty(normed, self.side, self.side, self.channels, dtype=torch.bfloat16)
        return _pictures(normed, out_side, self.channels), inner, convolved, means, scales


@torch.library.custom_op("statevla::stem_stage", mutates_args=(), device_types="cpu")
def _stage_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    film: Tensor | None,
    groups: int,
    eps: float,
    step: int,
    halo: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Activation with and without halo (of a last stage empty), convolution's output, means, scales."""
    stage = _Stage(x, weight, bias, (norm_weight, norm_bias), film, groups, eps, step, halo)
    out, inner, convolved, means, scales = outputs = stage.outputs()
    packed = _pack(stage.matrix)
    scratch = stem_layout.forward_scratch_bytes(stage.side, stage.channels)
    slots = stage.slots(packed.data_ptr(), out.data_ptr(), inner.data_ptr(), convolved, means, scales)
    run_kernel(stem_forward_kernel.stem_forward, slots, stage.count, scratch)
    return outputs


@_stage_op.register_fake
def _(x, weight, bias, norm_weight, norm_bias, film, groups, eps, step, halo):
    side, channels = (x.shape[1] - weight.shape[2]) // step + 1, weight.shape[0]
    normed, out_side = x.shape[0] if groups else 0, side + 2 * halo
    out = x.new_empty(normed, out_side, out_side, channels)
    convolved = x.new_empty(x.shape[0], side, side, channels)
    means = weight.new_empty(normed, channels)
    inner = x.new_empty(normed, side, side, channels)
    return out, inner, convolved, means, means.clone()


@torch.library.custom_op("statevla::stem_stage_backward", mutates_args=(), device_types="cpu")
def _stage_backward_op(
    grad: Tensor | None,
    grad_inner: Tensor | None,
    needs_input: bool,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    film: Tensor | None,
    convolved: Tensor,
    means: Tensor,
    scales: Tensor,
    groups: int,
    eps: float,
    step: int,
    halo: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input (else empty), weight and bias, and the sums over each picture's places, `[N, 2, C']`."""
    stage = _Stage(x, weight, bias, (norm_weight, norm_bias), film, groups, eps, step, halo)
    count, channels, window = stage.count, stage.channels, stage.window
    run = window * stage.in_channels
    grads = [None if g is None else g.to(torch.bfloat16).contiguous() for g in (grad, grad_inner)]
    grad_x = torch.empty(x.shape if needs_input else (0,), dtype=x.dtype)
    per_task = -(-count // CHUNKS)
    chunks = -(-count // per_task)
    group = max(1, min(per_task, PLACES_PER_PRODUCT // stage.side**2))
    grad_weight = torch.empty(chunks, channels, window, -(-run // WIDTH) * WIDTH)
    grad_bias, sums = torch.zeros(chunks, channels), torch.zeros(count, 2, channels)
    turned = _pack(stage.matrix.transpose(1, 2)).transpose(0, 1).contiguous() if needs_input else None
    slots = stage.slots(0, 0, 0, convolved, means, scales)
    slots += [*(address(g) for g in grads), address(grad_x) if needs_input else 0, address(grad_weight)]
    slots += [address(grad_bias), address(sums), address(turned), per_task, group]
    scratch = stem_layout.backward_scratch_bytes(stage.side, channels, stage.in_side, stage.in_channels, window, group)
    run_kernel(stem_backward_kernel.stem_backward, slots, chunks, scratch)
    whole = grad_weight.sum(0)[..., :run].view(channels, window, window, stage.in_channels).permute(0, 3, 1, 2)
    return grad_x, whole.contiguous().to(weight.dtype), grad_bias.sum(0).to(bias.dtype), sums


@_stage_backward_op.register_fake
def _(grad, grad_inner, needs_input, x, weight, bias, *rest):
    grad_x = x.new_empty(x.shape if needs_input else (0,))
    sums = bias.new_empty(x.shape[0], 2, weight.shape[0])
    return grad_x, weight.new_empty(weight.shape), bias.new_empty(bias.shape), sums


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.groups, ctx.eps, ctx.step, ctx.halo = inputs
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.mark_non_differentiable(*output[3:], *([output[2]] if ctx.groups else output[:2]))
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    x, weight, bias, norm_weight, norm_bias, film, convolved, means, scales = ctx.saved_tensors
    grad, grad_inner = grads[:2] if ctx.groups else (grads[2], None)
    if grad is None and grad_inner is None:
        return (None,) * 10
    needs_input = ctx.needs_input_grad[0]
    grad_x, grad_weight, grad_bias, sums = _stage_backward_op(
        grad, grad_inner, needs_input, x, weight, bias, norm_weight, norm_bias, film, convolved, means, scales,
        ctx.groups, ctx.eps, ctx.step, ctx.halo,
    )  # fmt: skip
    of_norm: tuple[Tensor | None, ...] = (None, None, None)
    if ctx.groups:
        alone, times = sums.unbind(1)
        grad_film = None
        if film is not None:
            grad_film = torch.cat([norm_weight * times + norm_bias * alone, alone], dim=1).to(film.dtype)
            stretch = 1 + film[:, : weight.shape[0]]
            alone, times = alone * stretch, times * stretch
        of_norm = (times.sum(0), alone.sum(0), grad_film)
    return (grad_x if needs_input else None, grad_weight, grad_bias, *of_norm, None, None, None, None)


_stage_op.register_autograd(_backward, setup_context=_setup_context)


def takes(channels: Sequence[int], side: int) -> bool:
    """Whether the kernels compute a stem of these channels on pictures of `side` pixels here."""
    return HAS_BF16 and side % LANES == 0 and all(size % LANES == 0 for size in channels)
