"""Episodes as sequences of latents: what all diagnostics are computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from statevla.config import Config
from statevla.data import FrameCache
from statevla.data.pixels import frames_to_float
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


def episode_of(cache: FrameCache, frames: np.ndarray) -> np.ndarray:
    """Index of the episode that each frame belongs to, int64 `[M]`."""
    starts = np.array([episode.start for episode in cache.episodes])
    return np.searchsorted(starts, frames, side="right") - 1


def encode_sequences(subject: Subject, episodes: Sequence[int]) -> list[LatentSequence]:
    """Encode episodes with both encoders; episodes of fewer than three retained frames are left out."""
    frames = {episode: retained_frames(subject, episode) for episode in episodes}
    frames = {episode: own for episode, own in frames.items() if len(own) >= 3}
    if not frames:
        return []
    wanted, lengths = torch.cat([*frames.values()]), [*map(len, frames.values())]
    z = encode_frames(subject, wanted)
    has_target = subject.model.state_encoder.target is not None
    target = encode_frames(subject, wanted, use_target=True) if has_target else z
    actions = subject.transform.normalize_actions(torch.from_numpy(subject.cache.executed_actions))
    skipped = torch.arange(subject.frame_skip)
    return [
        LatentSequence(episode, own, *codes, actions[own[:-1, None] + skipped].flatten(1))
        for (episode, own), codes in zip(frames.items(), zip(z.split(lengths), target.split(lengths)))
    ]


def encode_frames(
    subject: Subject,
    wanted: Tensor,
    use_target: bool = False,
    images_from: Tensor | None = None,
    pictures: Tensor | None = None,
) -> Tensor:
    """z of frames, float32 `[len(wanted), Z]`, on the CPU.

    Args:
        wanted: int64, indices into the cache.
        use_target: encode with the target encoder, where there is one.
        images_from: take the pictures from these frames instead (the robot state stays).
        pictures: take these pictures instead, uint8 `[len(wanted), V, P, P, 3]`, upright.
    """
    model, cache = subject.model, subject.cache
    seen = wanted if images_from is None else images_from
    instructions = [cache.episodes[index].instruction for index in episode_of(cache, wanted.numpy())]
    states, language = torch.from_numpy(cache.robot_state), subject.language_table[instructions].float()
    was_training = model.training
    model.eval()
    parts = []
    for part in torch.arange(len(wanted)).split(ENCODE_BATCH):
        frames = cache.frames(seen[part]) if pictures is None else pictures[part]
        observation = ModelInput(
            images=frames_to_float(frames[None])[0],
            robot_state=subject.transform.normalize_robot_state(states[wanted[part]]),
            language=language[part],
        )
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
