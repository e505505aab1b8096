"""Observation → z in one call: stems, tokens, encoder, projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from statevla.config import ModelConfig
from statevla.model.jepa.stem import KEYPOINT_LEVELS, ConvolutionalStem, PatchEmbedding
from statevla.model.jepa.tokenizer import Tokenizer
from statevla.model.program.program import PackedWeight, Program
from statevla.model.program.stack import PackedStack
from statevla.model.state_encoder import JepaStateEncoder
from statevla.types import ModelInput


class PackedStem:
    """The weights of one camera's stem, packed once for all programs, in float32."""

    def __init__(self, stem: ConvolutionalStem | PatchEmbedding) -> None:
        self.films: list[PackedWeight] = []
        self.maps: list[PackedWeight] = []
        self.norms: list[nn.GroupNorm] = []
        if isinstance(stem, PatchEmbedding):
            self.convolutions: list[nn.Conv2d] = [stem]
        else:
            layers = list(stem.children())[: stem.num_layers]
            self.convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
            self.norms = [layer for layer in layers if isinstance(layer, nn.GroupNorm)]
            self.films = [PackedWeight(layer.weight, layer.bias) for layer in _linears(stem.film)]
            if stem.keypoints is not None:
                maps = [layer for layer in stem.keypoints.maps if isinstance(layer, nn.Conv2d)]
                self.maps = [PackedWeight(layer.weight.flatten(1), layer.bias) for layer in maps]
        # Rows of patches are (row, column, channel).
        weights = [(layer.weight.permute(0, 2, 3, 1).flatten(1), layer.bias) for layer in self.convolutions]
        self.weights = [PackedWeight(weight, bias) for weight, bias in weights]


class PackedEncoder:
    """All weights on the way to z, packed once for all programs: the stack's in `dtype`, the others in float32."""

    def __init__(self, encoder: JepaStateEncoder, dtype: torch.dtype) -> None:
        self.encoder = encoder
        tokenizer = encoder.tokenizer
        self.stems = [PackedStem(stem) for stem in tokenizer.stems]  # type: ignore[arg-type]
        self.language = PackedWeight(tokenizer.language.weight, tokenizer.language.bias)
        self.robot = [PackedWeight(layer.weight, layer.bias) for layer in _linears(tokenizer.robot_state)]
        self.keypoints = None
        if tokenizer.keypoints is not None:
            self.keypoints = PackedWeight(_rows_then_columns(tokenizer), tokenizer.keypoints.bias)
        self.stack = PackedStack(encoder.encoder.stack, dtype)
        self.projection = [PackedWeight(weight, bias) for weight, bias in _projection(encoder.projection)]


class EncoderProgram:
    """Everything from normalised pictures to z, for one batch size."""

    def __init__(self, ready: PackedEncoder, config: ModelConfig, batch: int) -> None:
        self._program = program = Program()
        tokenizer, dim = ready.encoder.tokenizer, config.embed_dim
        views, size = len(config.cameras), config.image_size
        self._images = torch.zeros(batch, views, 3, size, size)
        self._language = program.buffer(batch, config.language_dim)
        self._robot = program.buffer(batch, config.robot_state_dim)
        length, per_camera = config.num_tokens, config.tokens_per_camera
        tokens = program.buffer(batch * length, dim)
        base = program.constant(_base_tokens(tokenizer, per_camera))
        with program.together():
            for b in range(batch):
                program.copy(base, tokens[b * length : (b + 1) * length])
            asked = program.buffer(batch, config.language_dim)
            program.norm(self._language, asked, torch.ones(config.language_dim), 1e-5, centres=True)
        program.matmul(self._language, ready.language, tokens[0::length], adds=True)
        self._add_robot(program, ready, tokens[1::length])
        stems = [
            _StemOfOne(program, ready.stems[view], self._images[b, view], asked[b : b + 1])
            for b in range(batch)
            for view in range(views)
        ]
        for stage in range(max(stem.num_stages for stem in stems)):
            # The same stage of all pictures side by side: each is small.
            for part in range(_StemOfOne.NUM_PARTS):
                with program.together():
                    for stem in stems:
                        stem.add(stage, part)
        places = program.buffer(batch, 1) if ready.keypoints is None else self._add_places(program, stems, batch, views)
        with program.together():
            if ready.keypoints is not None:
                program.matmul(places, ready.keypoints, tokens[length - 1 :: length], adds=True)
            for i, stem in enumerate(stems):
                first = i // views * length + 2 + i % views * per_camera
                program.matmul(stem.rows, stem.ready.weights[-1], tokens[first : first + per_camera], adds=True)
        last = ready.stack.add(program, tokens, batch, last_only=True)
        norm = ready.encoder.encoder.norm
        normed = program.buffer(batch, dim)
        program.norm(last, normed, norm.weight, norm.eps, norm.bias, centres=True)
        self._z = _add_projection(program, ready, normed)

    def _add_robot(self, program: Program, ready: PackedEncoder, tokens: Tensor) -> None:
        tokenizer = ready.encoder.tokenizer
        if tokenizer.robot_token_dropout >= 1:
            program.copy(program.constant(tokenizer.robot_mask[None]), tokens, adds=True)
            return
        first, second = ready.robot
        hidden = program.buffer(tokens.shape[0], first.out_features)
        program.matmul(self._robot, first, hidden, "gelu")
        program.matmul(hidden, second, tokens, adds=True)

    def _add_places(self, program: Program, stems: list[_StemOfOne], batch: int, views: int) -> Tensor:
        """Keypoints of all cameras, `[B, views * 2K]`."""
        width = 2 * stems[0].ready.maps[0].out_features
        places = program.buffer(batch, views * width)
        with program.together():
            for i, stem in enumerate(stems):
                view = i % views
                stem.add_keypoints(places[i // views : i // views + 1, view * width : (view + 1) * width])
        return places

    def __call__(self, observation: ModelInput) -> Tensor:
        """Observations `[B]` → z, float32 `[B, Z]`."""
        self._images.copy_(observation.images)
        self._language.copy_(observation.language)
        self._robot.copy_(observation.robot_state)
        self._program.run()
        return self._z.clone()


class _StemOfOne:
    """One picture's way through its camera's stem, in stages (a convolution each) of parts that go side by side."""

    NUM_PARTS = 3

    def __init__(self, program: Program, ready: PackedStem, picture: Tensor, asked: Tensor) -> None:
        self._program, self.ready, self._picture, self._asked = program, ready, picture, asked
        self.num_stages = len(ready.weights)
        self._activations: list[tuple[Tensor, int]] = []
        self._maps: list[Tensor] = []
        self._film: Tensor | None = None

    def add(self, stage: int, part: int) -> None:
        """The patches (with FiLM's scale and shift), the product, the norm; of the last stage the patches only."""
        if part == 0:
            self._add_patches(stage)
        elif stage + 1 < self.num_stages:
            if part == 1:
                self._out = self._program.buffer(self.rows.shape[0], self.ready.weights[stage].out_features)
                self._program.matmul(self.rows, self.ready.weights[stage], self._out)
            else:
                self._program.group_norm(self._out, self.ready.norms[stage], self._film)
                self._activations.append((self._out, self._side))

    def _add_patches(self, stage: int) -> None:
        program, conv, weight = self._program, self.ready.convolutions[stage], self.ready.weights[stage]
        window, step, padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
        picture = self._picture
        if stage > 0:
            activation, side = self._activations[-1]
            picture = activation.unflatten(0, (side, side)).permute(2, 0, 1)
        self._side = (picture.shape[1] + 2 * padding - window) // step + 1
        self.rows = program.buffer(self._side**2, weight.in_features)
        program.patches(picture, window, step, padding, self.rows)
        if stage + 1 < self.num_stages and self.ready.films:
            self._film = program.buffer(1, 2 * conv.out_channels)
            program.matmul(self._asked, self.ready.films[stage], self._film)
        levels = self._activations[-KEYPOINT_LEVELS:] if stage + 1 == self.num_stages and self.ready.maps else []
        for (activation, _), kernel in zip(levels, self.ready.maps):
            self._maps.append(program.buffer(activation.shape[0], kernel.out_features))
            program.matmul(activation, kernel, self._maps[-1])

    def add_keypoints(self, places: Tensor) -> None:
        """Where the maps point, into `places` `[1, 2K]`."""
        sides = [side for _, side in self._activations[-KEYPOINT_LEVELS:]]
        coarse, coarse_side = (self._maps[1], sides[1]) if len(self._maps) > 1 else (None, 0)
        self._program.keypoints(self._maps[0], sides[0], coarse, coarse_side, places)


def _add_projection(program: Program, ready: PackedEncoder, normed: Tensor) -> Tensor:
    for i, weight in enumerate(ready.projection):
        out = program.buffer(normed.shape[0], weight.out_features)
        program.matmul(normed, weight, out, "gelu" if i + 1 < len(ready.projection) else "none")
        normed = out
    last = ready.encoder.projection[-1]  # type: ignore[index]
    if isinstance(last, nn.LayerNorm):
        out = program.buffer(*normed.shape)
        program.norm(normed, out, last.weight, last.eps, last.bias, centres=True)
        normed = out
    return normed


def _base_tokens(tokenizer: Tokenizer, per_camera: int) -> Tensor:
    """What tokens are before an observation is added: positions and modalities, and CLS."""
    views = tokenizer.num_cameras
    order = [views, views + 1, *(view for view in range(views) for _ in range(per_camera))]
    return torch.cat([tokenizer.positions + tokenizer.modality[order], tokenizer.cls])


def _rows_then_columns(tokenizer: Tokenizer) -> Tensor:
    """Weight for keypoints ordered camera, axis, keypoint, where the model's are camera, keypoint, axis."""
    assert tokenizer.keypoints is not None
    weight = tokenizer.keypoints.weight
    return weight.view(weight.shape[0], tokenizer.num_cameras, -1, 2).transpose(2, 3).flatten(1)


def _projection(projection: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Its linear maps; a BatchNorm, which in evaluation is a scale and shift, is part of the map before it."""
    maps: list[tuple[Tensor, Tensor]] = []
    for layer in projection.children():
        if isinstance(layer, nn.Linear):
            maps.append((layer.weight, layer.bias))
        elif isinstance(layer, nn.BatchNorm1d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            scale = layer.weight / (layer.running_var + layer.eps).sqrt()
            weight, bias = maps[-1]
            maps[-1] = (weight * scale[:, None], (bias - layer.running_mean) * scale + layer.bias)
    return maps


def _linears(module: nn.Module | None) -> list[nn.Linear]:
    return [] if module is None else [layer for layer in module.children() if isinstance(layer, nn.Linear)]
