"""Phase 2 on a frozen encoder: every frame is encoded once, and kept on disk.

The file is named by what it was made from (encoder weights, frame cache, language, what the policy is conditioned on,
augmentation), so a changed input makes a new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from statevla.config import Config, expand_path
from statevla.data import ChunkDataset, FrameCache
from statevla.data.pixels import item_draws
from statevla.diagnostics.sequences import ENCODE_BATCH, encode_batch
from statevla.machine.device import resolve_precision
from statevla.machine.processes import Processes
from statevla.machine.storage import sync, writing
from statevla.model.statevla_model import StateVLA
from statevla.transforms import Transform
from statevla.types import ChunkBatch, ModelInput

VIEW_SEED = 0x1A7E27


class LatentSamples:
    """A `ChunkDataset` whose observations are replaced by stored states; what `Prefetcher` gathers from.

    Args:
        dataset: of the episodes to train on.
        states: float32 `[views, num_frames, P]`, memory-mapped; view 0 is the plain frame.
    """

    num_draws = 1

    def __init__(self, dataset: ChunkDataset, states: Tensor) -> None:
        self.dataset, self.states = dataset, states

    def __len__(self) -> int:
        return len(self.dataset)

    def gather_drawn(self, indices: Tensor, draws: Tensor | None) -> ChunkBatch:
        """The batch of these items; `draws` `[B, 1]` in [0, 1) choose the view, None takes the plain one."""
        batch = self.dataset.gather_latents(indices, self.states[0])
        if draws is None or len(self.states) == 1:
            return batch
        views = (draws[:, 0] * len(self.states)).long()
        return replace(batch, state=self.states[views, self.dataset.frame_indices_of(indices)])

    def observations(self, indices: Tensor) -> ModelInput:
        """The frames that the plain states of these items were made from."""
        observation = self.dataset.gather_drawn(indices, None).observation
        assert observation is not None
        return observation

    def episode_ids_of(self, indices: Tensor) -> list[str]:
        return self.dataset.episode_ids_of(indices)


def open_latents(
    model: StateVLA,
    config: Config,
    cache: FrameCache,
    transform: Transform,
    language_table: Tensor,
    device: torch.device,
    processes: Processes,
    say: Callable[[str], None],
) -> Tensor:
    """States of all frames, float32 `[views, num_frames, P]`, memory-mapped; encoded first where not on disk yet.

    Args:
        model: with the frozen encoder, on `device`, in evaluation mode.
        language_table: float `[instructions, E]`.
        processes: each encodes its share of the frames, into one file.
        say: takes a line about the progress.

    Raises:
        UserError: the disk is full, or a frame cannot be read.
    """
    views = config.training.phase2.num_latent_views
    key = _fingerprint(model, config, cache, language_table, device)
    folder = expand_path(config.data.cache_dir) / "latents"
    target = folder / f"{key}.npy"
    if processes.main_says(not target.exists(), device):
        frames = ChunkDataset(cache, range(len(cache.episodes)), 1, transform, language_table)
        with writing(target):
            folder.mkdir(parents=True, exist_ok=True)
            _encode_all(model, frames, views, target, config.training.precision, device, processes, say)
    # Copy-on-write: nothing writes to it, but PyTorch warns of maps that it could not write to.
    return torch.from_numpy(np.load(target, mmap_mode="c"))


@torch.no_grad()
def _encode_all(
    model: StateVLA,
    frames: ChunkDataset,
    views: int,
    target: Path,
    precision: str,
    device: torch.device,
    processes: Processes,
    say: Callable[[str], None],
) -> None:
    count = frames.cache.num_frames
    width = _encode(model, frames, torch.zeros(1, dtype=torch.int64), None, precision, device).shape[1]
    unfinished = target.with_name(f".{target.name}.tmp")
    if processes.is_main:
        np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=(views, count, width)).flush()
    processes.wait()
    out = np.load(unfinished, mmap_mode="r+")
    mine = np.array_split(np.arange(len(frames)), processes.world_size)[processes.rank]
    started = reported = time.monotonic()
    for view in range(views):
        for start in range(0, len(mine), ENCODE_BATCH):
            indices = torch.from_numpy(mine[start : start + ENCODE_BATCH])
            draws = item_draws(VIEW_SEED, view, indices, frames.num_draws) if view else None
            states = _encode(model, frames, indices, draws, precision, device)
            out[view, frames.frame_indices_of(indices).numpy()] = states.numpy()
            done, now = view * len(mine) + start + len(indices), time.monotonic()
            if now - reported > 10.0 or done == views * len(mine):
                reported = now
                rate = done / max(now - started, 1e-9)
                left = (views * len(mine) - done) / rate
                say(f"encoding frames for phase 2: {done}/{views * len(mine)}, {rate:.0f} frames/s, {left:.0f} s left")
    out.flush()
    processes.wait()
    if processes.is_main:
        sync(unfinished)
        os.replace(unfinished, target)
    processes.wait()


def _encode(
    model: StateVLA,
    frames: ChunkDataset,
    indices: Tensor,
    draws: Tensor | None,
    precision: str,
    device: torch.device,
) -> Tensor:
    observation = frames.gather_drawn(indices, draws).observation
    assert observation is not None
    return encode_batch(model.encode_for_policy, observation, precision, device)


def _fingerprint(
    model: StateVLA, config: Config, cache: FrameCache, language_table: Tensor, device: torch.device
) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_encoder.state_dict().items():
        # What only phase 1 needs has no part in encoding.
        if not name.startswith(("target.", "predictor.", "inverse_dynamics.", "keyframe.")):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(language_table.contiguous().numpy().tobytes())
    views = config.training.phase2.num_latent_views
    settings = {
        "cache": str(cache.folder.resolve()),
        "views": views,
        "augmentation": config.data.augmentation.model_dump() if views > 1 else None,
        "condition": config.model.policy.condition.model_dump(),
        "precision": resolve_precision(config.training.precision, device),
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:32]
