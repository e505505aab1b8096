"""Phase 2 on a frozen encoder: every frame is encoded once, and kept on disk.

The file is named by what it was made from (encoder weights, frame cache, language, what the policy is conditioned on),
so a changed input makes a new one. A JSON file beside it has its SHA-256: what is damaged is encoded anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from statevla.config import Config, expand_path
from statevla.data import ChunkDataset, FrameCache
from statevla.data.cache import CACHE_FIX
from statevla.diagnostics.sequences import ENCODE_BATCH, encode_batch
from statevla.errors import UserError
from statevla.machine.device import resolve_precision
from statevla.machine.lock import only_writer_of
from statevla.machine.processes import Processes
from statevla.machine.storage import read_json, sha256, sync, write_json, writing
from statevla.model.statevla_model import StateVLA
from statevla.transforms import Transform
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
    """States of all frames, float32 `[num_frames, P]`, memory-mapped; encoded first where not on disk yet.

    Another run that encodes the same frames at the same time is waited for.

    Args:
        model: with the frozen encoder, on `device`, in evaluation mode.
        language_table: float `[instructions, E]`.
        processes: each encodes its share of the frames, into one file.
        say: takes a line about the progress.

    Raises:
        UserError: the disk is full, or a frame cannot be read.
    """
    key = _fingerprint(model, config, cache, language_table, device)
    target = expand_path(config.data.cache_dir) / "latents" / f"{key}.npy"

    def is_missing(tell: Callable[[str], None]) -> bool:
        return processes.main_says(processes.is_main and not _is_whole(target, tell), device)

    if is_missing(say):
        with processes.main_holds(only_writer_of(target, CACHE_FIX, say), device):
            if is_missing(lambda line: None):  # nobody has made it meanwhile
                frames = ChunkDataset(cache, range(len(cache.episodes)), 1, transform, language_table)
                with writing(target, CACHE_FIX):
                    _encode_all(model, frames, target, config.training.precision, device, processes, say)
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


@torch.no_grad()
def _encode_all(
    model: StateVLA,
    frames: ChunkDataset,
    target: Path,
    precision: str,
    device: torch.device,
    processes: Processes,
    say: Callable[[str], None],
) -> None:
    count = frames.cache.num_frames
    width = _encode(model, frames, torch.zeros(1, dtype=torch.int64), precision, device).shape[1]
    unfinished = target.with_name(f".{target.name}.tmp")
    try:
        if processes.is_main:
            _make_empty(unfinished, (count, width))
        processes.wait()
        first_byte = np.load(unfinished, mmap_mode="r").offset
        mine = np.array_split(np.arange(len(frames)), processes.world_size)[processes.rank]
        # Written, not mapped: where a disk is full, writing to a map ends the process with a bus error.
        with open(unfinished, "r+b") as file:
            for places, states in _encode_batches(model, frames, mine, precision, device, say):
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
    model: StateVLA,
    frames: ChunkDataset,
    mine: np.ndarray,
    precision: str,
    device: torch.device,
    say: Callable[[str], None],
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Indices in the cache, and states float32 `[b, P]`, batch by batch; `mine` are indices into `frames`."""
    started = reported = time.monotonic()
    for start in range(0, len(mine), ENCODE_BATCH):
        indices = torch.from_numpy(mine[start : start + ENCODE_BATCH])
        states = _encode(model, frames, indices, precision, device)
        yield frames.frame_indices_of(indices).tolist(), states.numpy()
        done, now = start + len(indices), time.monotonic()
        if now - reported > 10.0 or done == len(mine):
            reported = now
            rate = done / max(now - started, 1e-9)
            left = (len(mine) - done) / rate
            say(f"encoding frames for phase 2: {done}/{len(mine)}, {rate:.0f} frames/s, {left:.0f} s left")


def _make_empty(path: Path, shape: tuple[int, ...]) -> None:
    """A float32 `.npy` file of this shape, zeros throughout; what is never written takes no room."""
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * math.prod(shape))


def _encode(
    model: StateVLA,
    frames: ChunkDataset,
    indices: Tensor,
    precision: str,
    device: torch.device,
) -> Tensor:
    observation = frames.gather_drawn(indices, None).observation
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
    digest.update(np.array([episode.instruction for episode in cache.episodes], "<i8").tobytes())
    settings = {
        "cache": str(cache.folder.resolve()),
        "condition": config.model.policy.condition.model_dump(),
        "precision": resolve_precision(config.training.precision, device),
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:32]
