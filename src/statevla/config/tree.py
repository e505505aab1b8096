"""The tree of all sections, and what must hold between them."""

from __future__ import annotations

from pydantic import model_validator

from statevla.config.data import DataConfig, LanguageConfig
from statevla.config.model import ConvStem, ModelConfig
from statevla.config.section import NonNegative, Section
from statevla.config.training import TrainingConfig


class Config(Section):
    model: ModelConfig = ModelConfig()
    language: LanguageConfig = LanguageConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    output_dir: str = "checkpoints"
    """Runs go to `<output_dir>/phase1_temporal_jepa`, `phase2_flow_matching` and `behaviour_cloning`."""
    seed: NonNegative = 0
    """Of initialisation, order, augmentation and noise."""
    device: str = "auto"
    """`auto` takes CUDA, else MPS, else the CPU."""
    num_threads: NonNegative = 0
    """CPU threads of PyTorch and the scan; 0 leaves PyTorch's choice."""

    @model_validator(mode="after")
    def _stem_and_language(self) -> Config:
        stem = self.model.stem
        if isinstance(stem, ConvStem) and stem.channels[-1] != self.model.embed_dim:
            raise ValueError(
                f"model.stem.channels must end with model.embed_dim {self.model.embed_dim}, got {stem.channels}"
            )
        return self

    @model_validator(mode="after")
    def _blocks_to_unfreeze(self) -> Config:
        wanted, depth = self.training.phase2.unfreeze_last_blocks, self.model.encoder_depth
        if wanted > depth:
            raise ValueError(
                f"training.phase2.unfreeze_last_blocks {wanted}: the encoder has {depth} (model.encoder_depth)"
            )
        return self
