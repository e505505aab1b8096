"""Episodes as sequences of latents: what all diagnostics are computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from statevla.config import Config
from statevla.data import ChunkDataset, FrameCache
from statevla.machine.device import autocast
from statevla.model.statevla_model import StateVLA
from statevla.robots import RobotSpec
from statevla.transforms import Transform
from statevla.types import ModelInput

ENCODE_BATCH = 64


@dataclass(frozen=True)
class Subject:
    """What is diagnosed, and on which data.

    Attributes:
        language_table: float `[instructions, E]`, a row for each of `cache.instructions`.
        device: where `model` is.
    """

    model: StateVLA
    config: Config
    cache: FrameCache
    transform: Transform
    language_table: Tensor
    device: torch.device

    def frames_of(self, episodes: Sequence[int]) -> ChunkDataset:
        """The frames of these episodes, one item each, in order."""
        return ChunkDataset(self.cache, episodes, 1, self.transform, self.language_table)

    @property
    def robot(self) -> RobotSpec:
        """As the data declare it: with the state fields that all their episodes have."""
        return self.cache.robot

    @property
    def frame_skip(self) -> int:
        return self.config.training.phase1.frame_skip


@dataclass(frozen=True)
class LatentSequence:
    """One episode at its retained frames, `frame_skip` control steps apart.

    Attributes:
        episode: index into `cache.episodes`.
        frames: int64 `[T]`, indices into the cache.
        z: float32 `[T, Z]`, of the online encoder.
        target: float32 `[T, Z]`, of the target encoder, which predictions are made for.
        actions: float32 `[T-1, K·A]`, the normalised action blocks in between.
    """

    episode: int
    frames: Tensor
    z: Tensor
    target: Tensor
    actions: Tensor


def retained_frames(subject: Subject, episode: int) -> Tensor:
    """Cache indices of an episode's retained frames, int64 `[T]`."""
    entry = subject.cache.episodes[episode]
    return torch.arange(entry.start, entry.stop, subject.frame_skip)


@torch.no_grad()
def encode_sequences(subject: Subject, episodes: Sequence[int]) -> list[LatentSequence]:
    """Encode episodes with both encoders; episodes of fewer than three retained frames are left out."""
    kept = [e for e in episodes if len(retained_frames(subject, e)) >= 3]
    frames = [retained_frames(subject, e) for e in kept]
    if not frames:
        return []
    wanted = torch.cat(frames)
    z = encode_frames(subject, kept, wanted)
    has_target = subject.model.state_encoder.target is not None
    target = encode_frames(subject, kept, wanted, use_target=True) if has_target else z
    skip = subject.frame_skip
    actions = subject.transform.normalize_actions(torch.from_numpy(subject.cache.executed_actions))
    sequences, start = [], 0
    for episode, own in zip(kept, frames):
        part = slice(start, start + len(own))
        start += len(own)
        blocks = actions[own[:-1, None] + torch.arange(skip)].flatten(1)
        sequences.append(LatentSequence(episode, own, z[part], target[part], blocks))
    return sequences


@torch.no_grad()
def encode_frames(
    subject: Subject,
    episodes: Sequence[int],
    wanted: Tensor,
    use_target: bool = False,
    images_from: Tensor | None = None,
    pictures: Tensor | None = None,
) -> Tensor:
    """z of frames, float32 `[len(wanted), Z]`, on the CPU.

    Args:
        episodes: that the frames belong to.
        wanted: int64, indices into the cache.
        use_target: encode with the target encoder, where there is one.
        images_from: take the pictures from these frames instead (the robot state stays); they belong to `episodes`.
        pictures: take these pictures instead, uint8 `[len(wanted), V, P, P, 3]`, upright.
    """
    model, source = subject.model, subject.frames_of(episodes)
    item_of = torch.full((subject.cache.num_frames,), -1, dtype=torch.int64)
    item_of[source.frame_indices_of(torch.arange(len(source)))] = torch.arange(len(source))
    was_training = model.training
    model.eval()
    parts = []
    for start in range(0, len(wanted), ENCODE_BATCH):
        part = slice(start, start + ENCODE_BATCH)
        observation = _observation(source, item_of[wanted[part]])
        if images_from is not None:
            images = _observation(source, item_of[images_from[part]]).images
            observation = replace(observation, images=images)
        elif pictures is not None:
            observation = replace(observation, images=subject.transform.images_to_float(pictures[part]))
        encode = model.encode_target if use_target else model.encode
        parts.append(encode_batch(encode, observation, subject.config.training.precision, subject.device))
    model.train(was_training)
    return torch.cat(parts)


@torch.no_grad()
def encode_batch(
    encode: Callable[[ModelInput], Tensor], observation: ModelInput, precision: str, device: torch.device
) -> Tensor:
    """What `encode`, one of the model's verbs, makes of a batch: float32 `[B, ...]`, on the CPU."""
    with autocast(device, precision):
        return encode(observation.to(device)).float().cpu()


def _observation(source: ChunkDataset, items: Tensor) -> ModelInput:
    observation = source.gather(items).observation
    assert observation is not None
    return observation
