"""Observation → tokens, in the causal order [language][robot][cameras…][CLS]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from statevla.config import ConvStem, ModelConfig
from statevla.model.jepa.stem import build_stem
from statevla.types import ModelInput

INIT_STD = 0.02


class Tokenizer(nn.Module):
    """One token for language, one for the robot, a grid per camera, CLS last.

    Mamba is causal: language comes first so that it conditions the reading of the pictures, and only the last
    position has seen everything. Every token but CLS carries a learned position and a modality embedding (one per
    camera, language, robot state); CLS is itself a learned vector, to which the keypoints of all cameras are added
    where the stem finds some: z, which is read from there, has them without a detour.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_cameras = len(config.cameras)
        self.stems = nn.ModuleList(build_stem(config) for _ in config.cameras)
        self.language = nn.Linear(config.language_dim, dim)
        self.robot_state = nn.Sequential(nn.Linear(config.robot_state_dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.modality = nn.Parameter(torch.empty(self.num_cameras + 2, dim))
        self.positions = nn.Parameter(torch.empty(config.num_tokens - 1, dim))
        self.cls = nn.Parameter(torch.empty(1, dim))
        self.keypoints = None
        if isinstance(config.stem, ConvStem) and config.stem.keypoints:
            self.keypoints = nn.Linear(self.num_cameras * config.stem.keypoints * 2, dim)
        self.robot_token_dropout = config.robot_token_dropout
        learned = [self.modality, self.positions, self.cls]
        if self.robot_token_dropout > 0:
            self.robot_mask = nn.Parameter(torch.empty(dim))
            learned.append(self.robot_mask)
        for parameter in learned:
            nn.init.trunc_normal_(parameter, std=INIT_STD)
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, observation: ModelInput) -> Tensor:
        """Tokenise `[B, ...]` observations.

        Returns:
            `[B, N, D]`, N = 1 + 1 + V · tokens per camera + 1.
        """
        language = self.language(observation.language).unsqueeze(1)
        robot = self._robot_token(observation.robot_state).unsqueeze(1)
        views = [stem(observation.images[:, i], observation.language) for i, stem in enumerate(self.stems)]
        cameras = [grid.flatten(2).transpose(1, 2) for grid, _ in views]
        sequence = torch.cat([language, robot, *cameras], dim=1)
        # Positions and modalities depend on no input: one sum for the whole batch.
        lengths = [1, 1, *(camera.shape[1] for camera in cameras)]
        order = [self.num_cameras, self.num_cameras + 1, *range(self.num_cameras)]
        modality = torch.cat([self.modality[i].expand(n, -1) for i, n in zip(order, lengths, strict=True)])
        # float32 also under autocast: this is where the residual stream begins.
        sequence = sequence.float() + (self.positions + modality)
        cls = self.cls.expand(sequence.shape[0], -1, -1)
        if self.keypoints is not None:
            places = torch.cat([keypoints.flatten(1) for _, keypoints in views], dim=1)
            cls = cls + self.keypoints(places).unsqueeze(1)
        return torch.cat([sequence, cls], dim=1)

    def _robot_token(self, robot_state: Tensor) -> Tensor:
        """`[B, S]` → `[B, D]`; hidden behind the mask at random in training, and always where the dropout is 1."""
        token = self.robot_state(robot_state)
        chance = self.robot_token_dropout
        if chance == 0 or (chance < 1 and not self.training):
            return token
        hidden = torch.rand(token.shape[0], 1, device=token.device) < chance
        return torch.where(hidden, self.robot_mask.to(token.dtype), token)
