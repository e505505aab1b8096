"""Phase 2 on stored states against encoding every batch anew: samples per second of the real training loop.

    python benchmarks/bench_phase2_latents.py [--config conf/config.yaml] [--threads 2] [--name phase2_latents]

Both runs use the same `Trainer`, batch size and precision, on a synthetic frame cache (speed does not depend on what
pictures show) in a temporary folder. Encoding every frame once is timed as well, and the number of epochs after which
it has paid for itself. Writes `benchmarks/results/<name>.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench_loader import make_cache
from harness import environment, update_summary, write_results
from statevla.checkpoints.checkpoint import DataInfo
from statevla.config import Config, fit_to_robot, load_config
from statevla.data import ChunkDataset
from statevla.model.language import LanguageInfo
from statevla.model.statevla_model import StateVLA
from statevla.robots import LIBERO, RobotSpec
from statevla.training.latents import LatentSamples, open_latents
from statevla.training.run_log import LOG_FILE
from statevla.training.setup import RunContext, Setup
from statevla.training.sources import Source
from statevla.training.trainer import Trainer
from statevla.transforms import Transform


def make_setup(config: Config, robot: RobotSpec, folder: Path, size_gb: float) -> Setup:
    """A phase-2 setup on random frames; `train` is still the data set of images."""
    cache = make_cache(folder, size_gb, config.model.image_size, robot)
    episodes = list(range(len(cache.episodes)))
    transform = Transform(config.model, cache.statistics(episodes), robot)
    table = torch.randn(len(cache.instructions), config.model.language_dim)
    torch.manual_seed(0)
    model = StateVLA(config, robot)
    model.freeze_encoder()
    frames = ChunkDataset(cache, episodes, config.model.action_seq_len, transform, table)
    return Setup(
        config=config,
        phase="2",
        model=model,
        transform=transform,
        main=Source(cache, table, episodes, held_out=[], reaches=[]),
        language=LanguageInfo("random", config.model.language_dim, ""),
        data=DataInfo("synthetic", 1.0, 0),
        train=frames,
        validation=None,
        context=RunContext(),
    )


def samples_per_s(setup: Setup, num_steps: int, log_every: int, folder: Path) -> list[float]:
    """Throughput between log lines of a real run, the first interval (warm-up) left out."""
    phase2 = setup.config.training.phase2.model_copy(update={"max_steps": num_steps})
    training = setup.config.training.model_copy(update={"phase2": phase2, "log_every_steps": log_every})
    config = setup.config.model_copy(update={"training": training})
    Trainer(replace(setup, config=config), folder).fit()
    records = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    return [record["samples_per_s"] for record in records if record["kind"] == "train"][1:]


class ImageSamples:
    """The data set of images under the interface that the first batch's picture expects of phase 2."""

    def __init__(self, dataset: ChunkDataset) -> None:
        self.dataset, self.num_draws = dataset, dataset.num_draws
        self.gather_drawn, self.episode_ids_of = dataset.gather_drawn, dataset.episode_ids_of

    def __len__(self) -> int:
        return len(self.dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="conf/config.yaml")
    parser.add_argument("--size-gb", type=float, default=0.4, help="of the synthetic frame cache")
    parser.add_argument("--encoding-steps", type=int, default=8)
    parser.add_argument("--latent-steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads, unless the configuration says a number")
    parser.add_argument("--name", default="phase2_latents", help="of the results, and of their keys in summary.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "frames").mkdir()
        config = load_config(args.config, [f"data.cache_dir={folder}", "device=cpu", f"output_dir={folder}"])
        config, robot = fit_to_robot(config, LIBERO)
        torch.set_num_threads(config.num_threads or args.threads)
        setup = make_setup(config, robot, folder / "frames", args.size_gb)
        encoding = samples_per_s(
            replace(setup, train=ImageSamples(setup.train)), args.encoding_steps, 1, folder / "encoding"
        )
        started = time.perf_counter()
        setup.model.eval()
        states = open_latents(setup.subject, setup.context.processes, print)
        encode_s = time.perf_counter() - started
        stored = samples_per_s(
            replace(setup, train=LatentSamples(setup.train, states)), args.latent_steps, 25, folder / "stored"
        )
    result = summarize(encoding, stored, encode_s, setup.main.cache.num_frames)
    result |= {
        "config": args.config,
        "batch_size": config.training.phase2.batch_size,
        "load_average": os.getloadavg()[0],
        **environment(config.seed),
    }
    path = write_results(args.name, result)
    update_summary(
        {f"{args.name}_ratio": result["ratio"], f"{args.name}_samples_per_s": result["stored_samples_per_s"]}
    )
    print(f"encoding every batch: {result['encoding_samples_per_s']:.1f} samples/s")
    print(f"stored states:        {result['stored_samples_per_s']:.1f} samples/s ({result['ratio']:.0f} times)")
    print(f"encoding once pays for itself after {result['epochs_to_break_even']:.2f} epochs; {path}")


def summarize(encoding: list[float], stored: list[float], encode_s: float, num_frames: int) -> dict[str, Any]:
    """Medians, their ratio, and the epochs after which encoding once is the cheaper way."""
    slow, fast = statistics.median(encoding), statistics.median(stored)
    return {
        "encoding_samples_per_s": slow,
        "stored_samples_per_s": fast,
        "ratio": fast / slow,
        "encode_once_frames_per_s": num_frames / encode_s,
        "epochs_to_break_even": encode_s / (num_frames / slow - num_frames / fast),
        "raw": {"encoding": encoding, "stored": stored},
    }


if __name__ == "__main__":
    main()
