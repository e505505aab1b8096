"""Speed and memory of the loader alone, on frame caches larger than the memory it may use, raw and compressed.

    python benchmarks/bench_loader.py [--size-gb 10] [--num-workers 0 1 2] [--data DATA] [--name loader]

Makes a cache in a temporary folder for each codec, all of the same frames, draws shuffled, augmented batches of both
data sets from it, and reports frames per second (a frame is one control step with all its cameras), bytes per frame and
resident memory. A cold run is one whose file the system was asked to forget; a warm one comes after it. `DATA` gives
pictures that a camera took; without it they are noise, which nothing compresses. The folder is deleted at the end.
Writes `benchmarks/results/<name>.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from harness import environment, update_summary, write_results
from statevla.config import AugmentationConfig, ConvStem, ModelConfig, Phase1Config
from statevla.data import (
    BatchSampler,
    CachedEpisode,
    ChunkDataset,
    FrameCache,
    Prefetcher,
    TransitionDataset,
    open_reader,
)
from statevla.data.cache import ACTIONS, FRAME_CRCS, FRAME_OFFSETS, STATE_PREFIX, write_cache
from statevla.data.frame_codecs import RAW, decode_frame, encode_frame
from statevla.data.frame_store import FRAMES_FILE, frame_checksum
from statevla.robots import LIBERO, RobotSpec
from statevla.transforms import Transform, resize_frames, to_upright

EPISODE_STEPS = 150
NUM_PICTURES = 600
"""Different frames of a cache; a larger one repeats them."""


def make_cache(
    folder: Path,
    size_gb: float,
    image_size: int,
    robot: RobotSpec,
    pictures: np.ndarray | None = None,
    codec: str = RAW,
) -> FrameCache:
    """A cache of the frames that make `size_gb` raw, with random actions and states.

    Args:
        pictures: uint8 `[count, V, P, P, 3]`, frames that it repeats; by default noise.
        codec: as in `data.cache_codec`.
    """
    frame_bytes = len(robot.cameras) * image_size**2 * 3
    num_episodes = max(2, round(size_gb * 1e9 / frame_bytes / EPISODE_STEPS))
    num_frames = num_episodes * EPISODE_STEPS
    rng = np.random.default_rng(0)
    if pictures is None:
        shape = (NUM_PICTURES, len(robot.cameras), image_size, image_size, 3)
        pictures = rng.integers(0, 256, shape, dtype=np.uint8)
    stored = [frame.tobytes() if codec == RAW else encode_frame(codec, frame) for frame in pictures]
    which = np.arange(num_frames) % len(stored)
    with open(folder / FRAMES_FILE, "wb") as file:
        for index in which.tolist():
            file.write(stored[index])
        file.flush()
        os.fsync(file.fileno())  # what is not on the disk yet cannot be forgotten
    episodes = [
        CachedEpisode(f"episode_{i}", f"task_{i % 10}", i % 10, i * EPISODE_STEPS, EPISODE_STEPS)
        for i in range(num_episodes)
    ]
    actions = rng.uniform(-1, 1, (num_frames, robot.action_dim)).astype(np.float32)
    off, on = robot.binary_values()
    actions[:, robot.is_binary] = np.where(actions[:, robot.is_binary] > 0, on, off)
    arrays: dict[str, np.ndarray] = {ACTIONS: actions}
    for field in robot.state:
        arrays[STATE_PREFIX + field.name] = rng.normal(size=(num_frames, field.size)).astype(np.float32)
    arrays[FRAME_CRCS] = np.array([frame_checksum(frame) for frame in stored], np.uint32)[which]
    if codec != RAW:
        sizes = np.array([len(frame) for frame in stored], np.int64)[which]
        arrays[FRAME_OFFSETS] = np.concatenate([[0], np.cumsum(sizes)])
    tasks = [f"task {i}" for i in range(10)]
    write_cache(folder, episodes, tasks, robot, image_size, image_size, arrays, codec)
    return FrameCache(folder)


def camera_pictures(data: str, image_size: int, num_cameras: int) -> np.ndarray:
    """Frames `[count, V, P, P, 3]` out of a data set's episodes, each camera's from another moment."""
    found: list[np.ndarray] = []
    with open_reader(data) as reader:
        camera = reader.robot.cameras[0]
        for index in range(len(reader.episodes)):
            frames = reader.read(index, [camera.name]).images[camera.name][::5]
            found += list(resize_frames(to_upright(frames, camera.orientation), image_size, camera.fit))
            if len(found) >= NUM_PICTURES * num_cameras:
                break
    count = len(found) // num_cameras
    return np.stack(found[: count * num_cameras]).reshape(num_cameras, count, image_size, image_size, 3).swapaxes(0, 1)


def measure(dataset: Any, batch_size: int, frames_per_item: int, num_workers: int, duration_s: float) -> dict[str, Any]:
    """Draw batches for `duration_s` after a warm-up; frames per second, memory, and the milliseconds of each batch."""
    process = psutil.Process()
    sampler = BatchSampler(len(dataset), batch_size, seed=0)
    batches_ms: list[float] = []
    with Prefetcher(dataset, sampler, augment=True, num_workers=num_workers) as loader:
        for _ in range(3):
            next(loader)
        start = before = time.perf_counter()
        cpu, peak = time.process_time(), 0
        while before - start < duration_s:
            next(loader)
            now = time.perf_counter()
            batches_ms.append(round(1e3 * (now - before), 2))
            before = now
            peak = max(peak, process.memory_info().rss)
        elapsed, cpu = before - start, time.process_time() - cpu
    frames = len(batches_ms) * batch_size * frames_per_item
    return {
        "batch_size": batch_size,
        "frames_per_item": frames_per_item,
        "num_workers": num_workers,
        "frames_per_s": round(frames / elapsed, 1),
        "frames_per_cpu_s": round(frames / cpu, 1),
        "frames_read": frames,
        "rss_peak_mb": round(peak / 2**20),
        "batches_ms": batches_ms,
    }


def forget(file: Path) -> None:
    """Ask the system to drop a file's pages from its cache."""
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def measure_codec(
    folder: Path, codec: str, pictures: np.ndarray | None, options: argparse.Namespace
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a codec's cache takes, and its runs."""
    robot, augmentation = LIBERO, AugmentationConfig(random_shift_px=6, brightness=0.2, contrast=0.2)
    model = ModelConfig(image_size=options.image_size, embed_dim=192, stem=ConvStem(), language_dim=384)
    cache = make_cache(folder, options.size_gb, options.image_size, robot, pictures, codec)
    episodes, language = range(len(cache.episodes)), torch.randn(10, 384)
    transform = Transform(model, cache.statistics(episodes), robot, augmentation)
    phase1 = Phase1Config(frame_skip=4, num_frames=4)
    samples: dict[str, tuple[Any, int, int]] = {
        "windows": (TransitionDataset(cache, episodes, phase1, transform, language), 32, 4),
        "chunks": (ChunkDataset(cache, episodes, 16, transform, language), 128, 1),
    }
    runs = []
    for is_cold in (True, False):
        for num_workers in (max(options.num_workers),) if is_cold else options.num_workers:
            for name, (dataset, batch_size, frames_per_item) in samples.items():
                if is_cold:
                    forget(folder / FRAMES_FILE)
                found = measure(dataset, batch_size, frames_per_item, num_workers, options.duration_s)
                runs.append({"codec": codec, "page_cache": "cold" if is_cold else "warm", "data": name} | found)
                print({key: value for key, value in runs[-1].items() if key != "batches_ms"}, flush=True)
    cache.close()
    num_bytes = (folder / FRAMES_FILE).stat().st_size
    room = {"cache_gb": round(num_bytes / 1e9, 3), "bytes_per_frame": round(num_bytes / cache.num_frames)}
    return room | {"num_frames": cache.num_frames}, runs


def measure_decoding(codec: str, pictures: np.ndarray) -> dict[str, float | None]:
    """Frames per second of one core, coding alone, and what it does to the pictures."""
    stored = [encode_frame(codec, frame) for frame in pictures]
    decoded = np.empty_like(pictures)

    def decode_all() -> None:
        for content, out in zip(stored, decoded):
            decode_frame(codec, content, out)

    encode_s = best_cpu_s(lambda: [encode_frame(codec, frame) for frame in pictures])
    decode_s = best_cpu_s(decode_all)
    error = decoded.astype(np.float64) - pictures
    psnr_db = 10 * np.log10(255**2 / np.square(error).mean()) if error.any() else None
    return {
        "encode_frames_per_cpu_s": round(len(pictures) / encode_s),
        "decode_frames_per_cpu_s": round(len(pictures) / decode_s),
        "psnr_db": None if psnr_db is None else round(float(psnr_db), 1),
        "largest_error": int(np.abs(error).max()),
    }


def measure_checksums() -> dict[str, float]:
    """GB/s of one core on the bytes of a frame."""
    frame = np.random.default_rng(0).bytes(98_304)
    kinds: Mapping[str, Callable[[], object]] = {
        "crc32": lambda: zlib.crc32(frame),
        "blake2b": lambda: hashlib.blake2b(frame).digest(),
        "sha256": lambda: hashlib.sha256(frame).digest(),
    }

    def gb_per_s(checksum: Callable[[], object]) -> float:
        return round(1000 * len(frame) / best_cpu_s(lambda: [checksum() for _ in range(1000)]) / 1e9, 2)

    return {name: gb_per_s(checksum) for name, checksum in kinds.items()}


def best_cpu_s(function: Callable[[], object], rounds: int = 5) -> float:
    """The least processor time of some calls."""
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-gb", type=float, default=10.0, help="of the raw cache; the others hold the same frames")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--duration-s", type=float, default=20.0)
    parser.add_argument("--num-workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--codecs", nargs="+", default=["raw", "qoi", "jpeg"])
    parser.add_argument("--data", default=None, help="data set whose pictures the caches hold; by default noise")
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary caches go")
    parser.add_argument("--name", default="loader", help="of the results, and of their keys in summary.json")
    options = parser.parse_args()

    cameras = len(LIBERO.cameras)
    pictures = None
    if options.data is not None:
        # In a process of its own: reading whole episodes takes more memory than all that is measured here.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            pictures = pool.submit(camera_pictures, options.data, options.image_size, cameras).result()
    rss_mb = round(psutil.Process().memory_info().rss / 2**20)
    rooms, runs = {}, []
    for codec in options.codecs:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            rooms[codec], found = measure_codec(Path(name), codec, pictures, options)
            runs += found
        if codec != RAW and pictures is not None:
            rooms[codec] |= measure_decoding(codec, pictures)
        print(json.dumps({codec: rooms[codec]}))
    result = {
        **environment(seed=0),
        "load_average": psutil.getloadavg()[0],
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "cameras": cameras,
        "image_size": options.image_size,
        "num_pictures": NUM_PICTURES if pictures is None else len(pictures),
        "codecs": rooms,
        "checksum_gb_per_cpu_s": measure_checksums(),
        "rss_before_mb": rss_mb,
        "rss_peak_of_process_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "runs": runs,
    }
    print(f"wrote {write_results(options.name, result)}")
    metrics = {f"{options.name}_rss_mb": max(run["rss_peak_mb"] for run in runs)}
    for codec in options.codecs:
        warm = [run for run in runs if run["codec"] == codec and run["page_cache"] == "warm"]
        end = "" if codec == RAW else f"_{codec}"
        metrics[f"{options.name}_frames_per_s{end}"] = max(run["frames_per_s"] for run in warm)
        metrics[f"{options.name}_bytes_per_frame{end}"] = rooms[codec]["bytes_per_frame"]
    update_summary(metrics)


if __name__ == "__main__":
    main()
