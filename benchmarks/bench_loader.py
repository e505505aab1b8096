"""Speed and memory of the loader alone, on a synthetic frame cache larger than the memory it may use.

    python benchmarks/bench_loader.py [--size-gb 10] [--num-workers 0] [--name loader]

Makes a cache in a temporary folder, draws shuffled, augmented batches of both data sets from it, and reports frames per
second (a frame is one control step with all its cameras) and resident memory. The folder is deleted at the end.
Writes `benchmarks/results/<name>.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from harness import environment, update_summary, write_results
from statevla.config import AugmentationConfig, ConvStem, ModelConfig, Phase1Config
from statevla.data import BatchSampler, CachedEpisode, ChunkDataset, FrameCache, Prefetcher, TransitionDataset
from statevla.data.cache import ACTIONS, FRAMES_FILE, STATE_PREFIX, write_index
from statevla.robots import LIBERO, RobotSpec
from statevla.transforms import Transform

EPISODE_STEPS = 150


def make_cache(folder: Path, size_gb: float, image_size: int, robot: RobotSpec) -> FrameCache:
    """A cache of random pictures of about `size_gb`, written frame by frame, with random actions and states."""
    frame_bytes = len(robot.cameras) * image_size**2 * 3
    num_episodes = max(2, round(size_gb * 1e9 / frame_bytes / EPISODE_STEPS))
    num_frames = num_episodes * EPISODE_STEPS
    rng = np.random.default_rng(0)
    with open(folder / FRAMES_FILE, "wb") as file:
        for _ in range(num_episodes):
            file.write(rng.integers(0, 256, EPISODE_STEPS * frame_bytes, dtype=np.uint8).tobytes())
    episodes = [
        CachedEpisode(f"episode_{i}", f"task_{i % 10}", i % 10, i * EPISODE_STEPS, EPISODE_STEPS)
        for i in range(num_episodes)
    ]
    actions = rng.uniform(-1, 1, (num_frames, robot.action_dim)).astype(np.float32)
    off, on = robot.binary_values()
    actions[:, robot.is_binary] = np.where(actions[:, robot.is_binary] > 0, on, off)
    arrays = {ACTIONS: actions}
    for field in robot.state:
        arrays[STATE_PREFIX + field.name] = rng.normal(size=(num_frames, field.size)).astype(np.float32)
    write_index(folder, episodes, [f"task {i}" for i in range(10)], robot, image_size, image_size, arrays)
    return FrameCache(folder)


def measure(dataset: Any, batch_size: int, frames_per_item: int, num_workers: int, duration_s: float) -> dict[str, Any]:
    """Draw batches for `duration_s` after a warm-up; frames per second and memory."""
    process = psutil.Process()
    sampler = BatchSampler(len(dataset), batch_size, seed=0)
    with Prefetcher(dataset, sampler, augment=True, num_workers=num_workers) as loader:
        for _ in range(3):
            next(loader)
        start, cpu, batches, peak = time.perf_counter(), time.process_time(), 0, 0
        while time.perf_counter() - start < duration_s:
            next(loader)
            batches += 1
            peak = max(peak, process.memory_info().rss)
        elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    frames = batches * batch_size * frames_per_item
    return {
        "batch_size": batch_size,
        "frames_per_item": frames_per_item,
        "num_workers": num_workers,
        "frames_per_s": round(frames / elapsed, 1),
        "frames_per_cpu_s": round(frames / cpu, 1),
        "frames_read": frames,
        "rss_peak_mb": round(peak / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-gb", type=float, default=10.0)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--duration-s", type=float, default=20.0)
    parser.add_argument("--num-workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary cache goes")
    parser.add_argument("--name", default="loader", help="of the results, and of their keys in summary.json")
    options = parser.parse_args()

    robot = LIBERO
    model = ModelConfig(image_size=options.image_size, embed_dim=192, stem=ConvStem(), language_dim=384)
    phase1 = Phase1Config(frame_skip=4, num_frames=4)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        start = time.perf_counter()
        cache = make_cache(Path(name), options.size_gb, options.image_size, robot)
        size_gb = (Path(name) / FRAMES_FILE).stat().st_size / 1e9
        print(f"cache of {size_gb:.1f} GB, {cache.num_frames} frames, made in {time.perf_counter() - start:.0f} s")
        episodes = range(len(cache.episodes))
        augmentation = AugmentationConfig(random_shift_px=6, brightness=0.2, contrast=0.2)
        transform = Transform(model, cache.statistics(episodes), robot, augmentation)
        language = torch.randn(10, 384)
        windows = TransitionDataset(cache, episodes, phase1, transform, language)
        chunks = ChunkDataset(cache, episodes, 16, transform, language)
        rss_mb = round(psutil.Process().memory_info().rss / 2**20)
        for num_workers in options.num_workers:
            runs.append({"data": "windows"} | measure(windows, 32, 4, num_workers, options.duration_s))
            print(json.dumps(runs[-1]))
            runs.append({"data": "chunks"} | measure(chunks, 128, 1, num_workers, options.duration_s))
            print(json.dumps(runs[-1]))
        cache.close()
    result = {
        **environment(seed=0),
        "load_average": psutil.getloadavg()[0],
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "cache_gb": round(size_gb, 2),
        "cameras": len(robot.cameras),
        "image_size": options.image_size,
        "augmentation": augmentation.model_dump(),
        "rss_before_mb": rss_mb,
        "rss_peak_of_process_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "runs": runs,
    }
    print(f"wrote {write_results(options.name, result)}")
    best = max(run["frames_per_s"] for run in runs)
    update_summary({f"{options.name}_frames_per_s": best, f"{options.name}_rss_mb": result["rss_peak_of_process_mb"]})


if __name__ == "__main__":
    main()
