"""Picture → tokens of one camera; where asked for, the instruction tells what to look for, and places are read off."""

from __future__ import annotations

import math
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from statevla.config import ConvStem, ModelConfig, PatchStem

KEYPOINT_LEVELS = 2
"""Activations that keypoints are looked for in: the last ones, which see a thing whole and still finely placed."""


class ConvolutionalStem(nn.Sequential):
    """Strided convolutions with normalisations between, after which the instruction may scale and shift the channels.

    FiLM: Perez et al. 2018 (arXiv 1709.07871); in robot policies: BC-Z, RT-1. It begins as the plain stem.
    """

    film: nn.ModuleList | None
    keypoints: Keypoints | None

    def __init__(self, config: ConvStem, language_dim: int) -> None:
        layers: list[nn.Module] = []
        channels_in, normalized = 3, config.channels[:-1]
        for i, (channels, stride) in enumerate(zip(config.channels, config.strides, strict=True)):
            # Overlapping windows (2s-1) keep position finer than the stride.
            layers.append(nn.Conv2d(channels_in, channels, 2 * stride - 1, stride=stride, padding=stride - 1))
            if i < len(normalized):
                layers += [nn.GroupNorm(math.gcd(8, channels), channels), nn.SiLU()]
            channels_in = channels
        super().__init__(*layers)
        self.num_layers = len(layers)
        self.film = None
        if config.film:
            self.film = nn.ModuleList(nn.Linear(language_dim, 2 * channels) for channels in normalized)
            for layer in self.film:
                assert isinstance(layer, nn.Linear)
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.keypoints = None
        if config.keypoints:
            self.keypoints = Keypoints(normalized[-KEYPOINT_LEVELS:], config.keypoints)

    def forward(self, images: Tensor, language: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """`[B, 3, P, P]` and `[B, E]` → `[B, D, P / stride, P / stride]`, and `[B, K, 2]` with keypoints."""
        # Embeddings are unit vectors, and instructions differ little: at the size of activations they are told apart.
        asked = None if self.film is None else F.layer_norm(language, language.shape[-1:])
        films = iter(self.film or ())
        activations, x = [], images
        for layer in islice(self.children(), self.num_layers):
            x = layer(x)
            if asked is not None and isinstance(layer, nn.GroupNorm):
                scale, shift = next(films)(asked)[:, :, None, None].chunk(2, dim=1)
                x = x * (1 + scale) + shift
            if isinstance(layer, nn.SiLU):
                activations.append(x)
        return x, None if self.keypoints is None else self.keypoints(activations[-KEYPOINT_LEVELS:])


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
        """Activations `[B, C, S, S]`, fine to coarse → `[B, K, 2]`: row and column, from -1 to 1."""
        size = activations[0].shape[-2:]
        maps = [layer(x) for layer, x in zip(self.maps, activations, strict=True)]
        summed = maps[0].float()
        for coarse in maps[1:]:
            summed = summed + F.interpolate(coarse.float(), size, mode="bilinear")
        share = summed.flatten(2).softmax(-1).unflatten(2, size)
        rows, columns = (torch.linspace(-1.0, 1.0, side, device=share.device) for side in size)
        # Sums of products, not matrix products: these autocast would round to bf16, and places with them.
        return torch.stack([(share.sum(3) * rows).sum(2), (share.sum(2) * columns).sum(2)], dim=-1)


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
    return ConvolutionalStem(stem, config.language_dim)
