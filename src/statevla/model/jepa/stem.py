"""Picture → tokens of one camera; where asked for, the instruction tells what to look for, and places are read off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from statevla.config import ConvStem, ModelConfig, PatchStem
from statevla.model.mamba.backends import resolve_backend

KEYPOINT_LEVELS = 2
"""Activations that keypoints are looked for in: the last ones, which see a thing whole and still finely placed."""


class ConvolutionalStem(nn.Sequential):
    """Strided convolutions with normalisations between, after which the instruction may scale and shift the channels.

    FiLM: Perez et al. 2018 (arXiv 1709.07871); in robot policies: BC-Z, RT-1. It begins as the plain stem.
    """

    film: nn.ModuleList | None
    keypoints: Keypoints | None

    def __init__(self, config: ConvStem, language_dim: int, backend: str) -> None:
        layers: list[nn.Module] = []
        channels_in, normalized = 3, config.channels[:-1]
        for i, (channels, stride) in enumerate(zip(config.channels, config.strides, strict=True)):
            # Overlapping windows (2s-1) keep position finer than the stride.
            layers.append(nn.Conv2d(channels_in, channels, 2 * stride - 1, stride=stride, padding=stride - 1))
            if i < len(normalized):
                layers += [nn.GroupNorm(math.gcd(8, channels), channels), nn.SiLU()]
            channels_in = channels
        super().__init__(*layers)
        self.num_layers, self.backend = len(layers), backend
        self.film = None
        if config.film:
            self.film = nn.ModuleList(nn.Linear(language_dim, 2 * channels) for channels in normalized)
            for parameter in self.film.parameters():
                nn.init.zeros_(parameter)
        self.keypoints = None
        if config.keypoints:
            self.keypoints = Keypoints(normalized[-KEYPOINT_LEVELS:], config.keypoints)

    def forward(self, images: Tensor, language: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """`[B, 3, P, P]` and `[B, E]` → `[B, D, P / stride, P / stride]`, and `[B, K, 2]` with keypoints."""
        # Embeddings are unit vectors, and instructions differ little: at the size of activations they are told apart.
        asked = None if self.film is None else F.layer_norm(language, language.shape[-1:])
        films = [None] * len(self._norms()) if asked is None else [film(asked) for film in self.film or ()]
        grid, activations = (self._fused if self.is_fused(images) else self._plain)(images, films)
        places = None if self.keypoints is None else self.keypoints(activations[-KEYPOINT_LEVELS:])
        return grid.permute(0, 3, 1, 2), places

    def _convolutions(self) -> list[nn.Conv2d]:
        return [layer for layer in islice(self.children(), self.num_layers) if isinstance(layer, nn.Conv2d)]

    def _norms(self) -> list[nn.GroupNorm]:
        return [layer for layer in islice(self.children(), self.num_layers) if isinstance(layer, nn.GroupNorm)]

    def _plain(self, x: Tensor, films: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        """Grid and activations, `[B, S, S, C]` each."""
        activations = []
        *convolutions, last = self._convolutions()
        for conv, norm, film in zip(convolutions, self._norms(), films, strict=True):
            x = norm(conv(x))
            if film is not None:
                scale, shift = film[:, :, None, None].chunk(2, dim=1)
                x = x * (1 + scale) + shift
            x = F.silu(x)
            activations.append(x.permute(0, 2, 3, 1))
        return last(x).permute(0, 2, 3, 1), activations

    def _fused(self, images: Tensor, films: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        """The same by the CPU's kernels: a stage is one operator (`fused_stem`)."""
        from statevla.model.jepa.fused_stem import pack_pictures, stem_stage

        convolutions = self._convolutions()
        activations = []
        x = pack_pictures(images, int(convolutions[0].padding[0]))
        for conv, following, norm, film in zip(convolutions, convolutions[1:], self._norms(), films, strict=False):
            x, inner = stem_stage(x, conv, norm, None if film is None else film.float(), int(following.padding[0]))
            activations.append(inner)
        return stem_stage(x, convolutions[-1], None, None, 0)[0], activations

    def is_fused(self, images: Tensor) -> bool:
        """Under bfloat16 autocast on a processor that multiplies bfloat16, for sizes that fill its vectors."""
        if images.device.type != "cpu" or images.requires_grad or torch.compiler.is_compiling():
            return False
        if not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") != torch.bfloat16:
            return False
        if resolve_backend(self.backend, "cpu", torch.bfloat16) != "numba":
            return False
        from statevla.model.jepa.fused_stem import takes

        return takes([layer.out_channels for layer in self._convolutions()], images.shape[-1])


class Keypoints(nn.Module):
    """Spatial soft-argmax: where in the picture each of K learned features is (Levine et al. 2016, arXiv 1504.00702).

    A grid of tokens has to learn anew, for each of its cells, what a thing there says of the thing's place; a keypoint
    says it as numbers, in the same way all over the picture, and finer than a cell.
    """

    def __init__(self, channels: list[int], count: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(size, count, kernel_size=1) for size in channels)
        for layer in self.maps:
            assert isinstance(layer, nn.Conv2d)
            # Clear peaks from the start: of flat maps every expected place is the middle, and says nothing.
            nn.init.normal_(layer.weight, std=2 / math.sqrt(layer.in_channels))

    def forward(self, activations: list[Tensor]) -> Tensor:
        """Activations `[B, S, S, C]`, fine to coarse → `[B, K, 2]`: row and column, from -1 to 1."""
        maps = [F.linear(x, layer.weight.flatten(1), layer.bias) for layer, x in zip(self._typed_maps(), activations)]
        size = maps[0].shape[1:3]
        with torch.autocast(maps[0].device.type, enabled=False):  # bfloat16 would round places
            summed = maps[0].float()
            for coarse in maps[1:]:
                summed = summed + enlarged(coarse.float(), size[0])
            share = summed.flatten(1, 2).softmax(1).unflatten(1, size)
            rows, columns = (torch.linspace(-1.0, 1.0, side, device=share.device) for side in size)
            row_share, column_share = share.sum(2), share.sum(1)
            return torch.stack([(row_share * rows[:, None]).sum(1), (column_share * columns[:, None]).sum(1)], dim=-1)

    def _typed_maps(self) -> list[nn.Conv2d]:
        return list(self.maps)  # type: ignore[arg-type]


def enlarged(maps: Tensor, side: int) -> Tensor:
    """Bilinear enlargement of `[B, S, S, K]` to `[B, side, side, K]` (`F.interpolate`), as products with its matrix:
    gradients then are products too."""
    identity = torch.eye(maps.shape[1], device=maps.device)[None]
    matrix = F.interpolate(identity, side, mode="linear")[0].T
    whole = torch.kron(matrix, matrix)  # of both directions at once
    return torch.bmm(whole.expand(len(maps), -1, -1), maps.flatten(1, 2)).unflatten(1, (side, side))


class PatchEmbedding(nn.Conv2d):
    """Non-overlapping patches (ViT)."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor, language: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """`[B, 3, P, P]` → `[B, D, P / patch, P / patch]`; patches hear no instruction and have no keypoints."""
        return super().forward(images), None


def build_stem(config: ModelConfig) -> ConvolutionalStem | PatchEmbedding:
    """The stem of one camera."""
    stem = config.stem
    if isinstance(stem, PatchStem):
        return PatchEmbedding(stem.patch_size, config.embed_dim)
    return ConvolutionalStem(stem, config.language_dim, config.mamba.scan_backend)
