"""Phase 2 on a frozen encoder: every frame is encoded once, and kept on disk.

The file is named by what it was made from (encoder weights, frame cache, language, what the policy is conditioned on),
so a changed input makes a new one. A JSON file beside it has its SHA-256: what is damaged is encoded anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from statevla.config import expand_path
from statevla.data import ChunkDataset
from statevla.data.cache import CACHE_FIX
from statevla.diagnostics.sequences import ENCODE_BATCH, Subject, encode_batch
from statevla.errors import UserError
from statevla.machine.device import resolve_precision
from statevla.machine.lock import only_writer_of
from statevla.machine.processes import Processes
from statevla.machine.storage import read_json, sha256, sync, write_json, writing
from statevla.model.action_policy import PolicyStateLayout
from statevla.model.state_encoder import PHASE_1_PARTS
from statevla.types import ChunkBatch, ModelInput


class LatentSamples:
    """A `ChunkDataset` whose observations are replaced by stored states; what `Prefetcher` gathers from.

    Args:
        dataset: of the episodes to train on.
        states: float32 `[num_frames, P]`, memory-mapped, of the plain frames.
    """

    num_draws = 0

    def __init__(self, dataset: ChunkDataset, states: Tensor) -> None:
        self.dataset, self.states = dataset, states

    def __len__(self) -> int:
        return len(self.dataset)

    def gather_drawn(self, indices: Tensor, draws: Tensor | None) -> ChunkBatch:
        """The batch of these items; there is nothing to draw."""
        return self.dataset.gather_latents(indices, self.states)

    def observations(self, indices: Tensor) -> ModelInput:
        """The frames that the states of these items were made from."""
        observation = self.dataset.gather_drawn(indices, None).observation
        assert observation is not None
        return observation

    def episode_ids_of(self, indices: Tensor) -> list[str]:
        return self.dataset.episode_ids_of(indices)


def open_latents(subject: Subject, processes: Processes, say: Callable[[str], None]) -> Tensor:
    """States of all frames, float32 `[num_frames, P]`, memory-mapped; encoded first where not on disk yet.

    Another run that encodes the same frames at the same time is waited for.

    Args:
        subject: its model has the frozen encoder, and is in evaluation mode.
        processes: each encodes its share of the frames, into one file.
        say: takes a line about the progress.

    Raises:
        UserError: the disk is full, or a frame cannot be read.
    """
    target = expand_path(subject.config.data.cache_dir) / "latents" / f"{_fingerprint(subject)}.npy"

    def is_missing(tell: Callable[[str], None]) -> bool:
        return processes.main_says(processes.is_main and not _is_whole(target, tell), subject.device)

    if is_missing(say):
        with processes.main_holds(only_writer_of(target, CACHE_FIX, say), subject.device):
            if is_missing(lambda line: None):  # nobody has made it meanwhile
                with writing(target, CACHE_FIX):
                    _encode_all(subject, target, processes, say)
    # Copy-on-write: nothing writes to it, but PyTorch warns of maps that it could not write to.
    return torch.from_numpy(np.load(target, mmap_mode="c"))


def _record_of(target: Path) -> Path:
    return target.with_suffix(".json")


def _is_whole(target: Path, say: Callable[[str], None]) -> bool:
    """Whether the file is there and as it was written; if not as it was, that is said."""
    if not target.exists():
        return False
    try:
        recorded = read_json(_record_of(target))["sha256"]
    except (UserError, TypeError, KeyError):
        say(f"{_record_of(target)}: does not say what {target.name} has to be; the frames are encoded anew")
        return False
    if sha256(target) != recorded:
        say(f"{target}: damaged (its SHA-256 is not the one in {_record_of(target).name}); the frames are encoded anew")
        return False
    return True


def _encode_all(subject: Subject, target: Path, processes: Processes, say: Callable[[str], None]) -> None:
    cache = subject.cache
    frames = ChunkDataset(cache, range(len(cache.episodes)), 1, subject.transform, subject.language_table)
    shape = (cache.num_frames, sum(PolicyStateLayout(subject.config.model).widths))
    unfinished = target.with_name(f".{target.name}.tmp")
    try:
        if processes.is_main:
            np.lib.format.open_memmap(unfinished, "w+", np.float32, shape)  # what is never written takes no room
        processes.wait()
        first_byte = np.load(unfinished, mmap_mode="r").offset
        mine = np.array_split(np.arange(len(frames)), processes.world_size)[processes.rank]
        # Written, not mapped: where a disk is full, writing to a map ends the process with a bus error.
        with open(unfinished, "r+b") as file:
            for places, states in _encode_batches(subject, frames, mine, say):
                for place, state in zip(places, states):
                    file.seek(first_byte + place * state.nbytes)
                    file.write(state.tobytes())
        processes.wait()
        if processes.is_main:
            sync(unfinished)
            write_json(_record_of(target), {"sha256": sha256(unfinished)}, CACHE_FIX)
            os.replace(unfinished, target)
        processes.wait()
    finally:
        if processes.is_main:
            unfinished.unlink(missing_ok=True)


def _encode_batches(
    subject: Subject, frames: ChunkDataset, mine: np.ndarray, say: Callable[[str], None]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Indices in the cache, and states float32 `[b, P]`, batch by batch; `mine` are indices into `frames`."""
    started = reported = time.monotonic()
    for start in range(0, len(mine), ENCODE_BATCH):
        indices = torch.from_numpy(mine[start : start + ENCODE_BATCH])
        observation = frames.gather(indices).observation
        assert observation is not None
        verb, precision = subject.model.encode_for_policy, subject.config.training.precision
        yield (
            frames.frame_indices_of(indices).tolist(),
            encode_batch(verb, observation, precision, subject.device).numpy(),
        )
        done, now = start + len(indices), time.monotonic()
        if now - reported > 10.0 or done == len(mine):
            reported = now
            rate = done / max(now - started, 1e-9)
            left = (len(mine) - done) / rate
            say(f"encoding frames for phase 2: {done}/{len(mine)}, {rate:.0f} frames/s, {left:.0f} s left")


def _fingerprint(subject: Subject) -> str:
    config, cache, digest = subject.config, subject.cache, hashlib.sha256()
    for name, tensor in subject.model.state_encoder.state_dict().items():
        # What only phase 1 needs has no part in encoding.
        if name.partition(".")[0] not in PHASE_1_PARTS:
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(subject.language_table.contiguous().numpy().tobytes())
    digest.update(np.array([episode.instruction for episode in cache.episodes], "<i8").tobytes())
    settings = {
        "cache": str(cache.folder.resolve()),
        "condition": config.model.policy.condition.model_dump(),
        "precision": resolve_precision(config.training.precision, subject.device),
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:32]
