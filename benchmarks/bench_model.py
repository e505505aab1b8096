"""The whole model: latency of `sample_actions` at batch 1, and training samples per second.

    python benchmarks/bench_model.py [--threads 2] [--rounds 60] [--part all|sample|train]

Latency of one chunk (tokenizer, encoder, 4 solver steps, gripper; random weights), for the full and the compact preset,
in bf16 and fp32, prepared for inference or not: each case in processes of its own, as a policy runs, which take turns.
Training: a phase-1 step of the full preset, with online forward and backward, target forward, gradient clipping, AdamW
and EMA. Writes `benchmarks/results/model.json`, or `model_<part>.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from harness import alternate, environment, median_ms, of_host, print_table, run_child, update_summary, write_results
from statevla.config import Config, load_config
from statevla.machine.allocator import keep_freed_memory
from statevla.machine.device import autocast
from statevla.model.statevla_model import StateVLA
from statevla.types import ModelInput, TransitionBatch

CONF = Path(__file__).parents[1] / "conf"
PRESETS = {"full": "config.yaml", "compact": "compact.yaml"}
TURNS = 4
"""Processes for each case."""


@dataclass(frozen=True)
class Args:
    """Measure the latency of acting and the speed of training."""

    threads: int = 2
    """CPU threads."""
    rounds: int = 60
    """Timed calls per case; training takes a fifth of them."""
    batch_size: int = 8
    """Of the training step."""
    part: Literal["all", "sample", "train"] = "all"
    """What to measure."""
    host: str = ""
    """Names the results (`model_<host>.json`, `..._<host>` in the summary), so that those of another host stay."""
    seed: int = 0
    child: str = ""
    """Used by the script itself: `<preset>:<precision>:<prepared or plain>`, in a process of its own."""


def random_input(config: Config, *batch: int) -> ModelInput:
    model = config.model
    return ModelInput(
        images=torch.rand(*batch, len(model.cameras), 3, model.image_size, model.image_size) * 2 - 1,
        robot_state=torch.randn(*batch, model.robot_state_dim),
        language=torch.randn(*batch, model.language_dim),
    )


def sampling_case(config: Config, precision: str, prepared: bool) -> Any:
    """A call that samples one chunk; the model's state is its own, so that cases do not disturb one another."""
    model = StateVLA(config).eval()
    if prepared:
        model.prepare_for_inference(precision)
    observation = random_input(model.config, 1)

    def call() -> None:
        with torch.inference_mode(), autocast(torch.device("cpu"), "fp32" if prepared else precision):
            model.sample_actions(observation)

    return call


def training_case(config: Config, precision: str, batch_size: int) -> Any:
    """A call that makes one whole phase-1 step."""
    model = StateVLA(config)
    config, phase1 = model.config, config.training.phase1
    parameters = [parameter for _, parameter in model.phase_parameters("1")]
    optimizer = torch.optim.AdamW(parameters, lr=phase1.learning_rate, fused=True)
    actions = torch.rand(batch_size, phase1.num_frames - 1, phase1.frame_skip * config.model.action_dim) * 2 - 1
    batch = TransitionBatch(random_input(config, batch_size, phase1.num_frames), actions)
    if phase1.behavior_cloning_weight:
        horizon = config.model.action_seq_len
        chunks = torch.rand(batch_size, phase1.num_frames, horizon, config.model.action_dim) * 2 - 1
        batch = replace(batch, chunks=chunks, chunk_is_pad=torch.zeros(chunks.shape[:3], dtype=torch.bool))

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(torch.device("cpu"), precision):
            total = model.jepa_loss(batch).total
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.training.grad_clip_norm)
        optimizer.step()
        model.update_target(1, 100)

    return call


def measure_sampling(args: Args) -> dict[str, Any]:
    cases = [
        (preset, precision, kind)
        for preset in PRESETS
        for precision in ("bf16", "fp32")
        for kind in ("prepared", "plain")
    ]
    samples: dict[str, list[float]] = {" ".join(case): [] for case in cases}
    flags = ["--threads", str(args.threads), "--rounds", str(-(-args.rounds // TURNS)), "--seed", str(args.seed)]
    for _ in range(TURNS):
        for case in cases:
            samples[" ".join(case)] += run_child(__file__, ":".join(case), flags)
    rows = [[name, median_ms(times), 1e3 * min(times), 1e3 * max(times)] for name, times in samples.items()]
    print_table("sample_actions, batch 1, 4 Euler steps", ["case", "median ms", "min ms", "max ms"], rows)
    for preset in PRESETS:
        best = min(median_ms(times) for name, times in samples.items() if name.startswith(f"{preset} "))
        update_summary({of_host(f"sample_actions_ms_{preset}", args.host): best})
    return samples


def sampling_child(args: Args) -> None:
    """Print the seconds of a case's calls."""
    preset, precision, kind = args.child.split(":")
    case = sampling_case(load_config(CONF / PRESETS[preset]), precision, kind == "prepared")
    print(json.dumps(alternate({"case": case}, args.rounds, warmup=10)["case"]))


def measure_training(args: Args) -> dict[str, Any]:
    config = load_config(CONF / PRESETS["full"])
    cases = {precision: training_case(config, precision, args.batch_size) for precision in ("bf16", "fp32")}
    samples = alternate(cases, max(args.rounds // 5, 3), warmup=2)
    rows = [[name, args.batch_size / (median_ms(t) / 1e3), median_ms(t)] for name, t in samples.items()]
    print_table("phase-1 step, full preset", ["precision", "samples/s", "ms per step"], rows)
    rate = args.batch_size / (median_ms(samples["bf16"]) / 1e3)
    update_summary({of_host("train_samples_per_s_full", args.host): rate})
    return samples


def main(args: Args) -> None:
    keep_freed_memory()  # as training does
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.child:
        sampling_child(args)
        return
    parts = {"sample": measure_sampling, "train": measure_training}
    wanted = parts if args.part == "all" else {args.part: parts[args.part]}
    seconds = {name: measure(args) for name, measure in wanted.items()}
    name = "model" if args.part == "all" else f"model_{args.part}"
    tree = {"environment": environment(args.seed), "batch_size": args.batch_size, "seconds": seconds}
    write_results(of_host(name, args.host), tree)


if __name__ == "__main__":
    main(tyro.cli(Args))
