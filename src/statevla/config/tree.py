"""The tree of all sections, and what must hold between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from statevla.config.data import DataConfig, LanguageConfig
from statevla.config.model import ConvStem, ModelConfig
from statevla.config.section import NonNegative, Section
from statevla.config.training import TrainingConfig

_MAX_SIZE, _MAX_PIXELS, _MAX_TOKENS = 65_536, 4_096, 65_536
"""Of any width, depth or count of the model, of a frame's side, and of a camera's tokens: beyond what any machine
holds, a slip of the finger."""


class Config(Section):
    model: ModelConfig = ModelConfig()
    language: LanguageConfig = LanguageConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    output_dir: str = "checkpoints"
    """Runs go to `<output_dir>/phase1_temporal_jepa`, `phase2_flow_matching` and `behaviour_cloning`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of initialisation, order, augmentation and noise."""
    device: str = "auto"
    """`auto` takes CUDA, else MPS, else the CPU."""
    num_threads: NonNegative = 0
    """CPU threads of PyTorch and the scan; 0 leaves PyTorch's choice."""

    @model_validator(mode="after")
    def _possible_sizes(self) -> Config:
        for key, value in _whole_numbers(self.model.model_dump(), "model."):
            largest = _MAX_PIXELS if key == "model.image_size" else _MAX_SIZE
            if value > largest:
                raise ValueError(f"{key}: expected at most {largest:,}, got {value:,}")
        if (tokens := self.model.tokens_per_camera) > _MAX_TOKENS:
            raise ValueError(
                f"model.image_size {self.model.image_size} makes {tokens:,} tokens a camera with this model.stem, "
                f"expected at most {_MAX_TOKENS:,}; take smaller frames or larger strides"
            )
        return self

    @model_validator(mode="after")
    def _stem_and_language(self) -> Config:
        stem = self.model.stem
        if isinstance(stem, ConvStem) and stem.channels[-1] != self.model.embed_dim:
            raise ValueError(
                f"model.stem.channels must end with model.embed_dim {self.model.embed_dim}, got {stem.channels}"
            )
        return self


def _whole_numbers(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, int]]:
    """Every whole number of a tree of sections, by its dotted key."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _whole_numbers(value, f"{prefix}{key}.")
            continue
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not isinstance(number, bool):
                yield prefix + key, number
