"""Success of a policy in a world.

In LIBERO, the published protocol (openpi, OpenVLA-OFT): official initial states, ten idle steps, a step limit per
suite, success as the environment says. Worlds live in worker processes, the policy in this one.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console

from statevla.acting.policy import StateVLAPolicy
from statevla.checkpoints.checkpoint import MODEL_FILE, resolve_checkpoint
from statevla.checkpoints.provenance import git_commit, versions
from statevla.config import expand_path, home_dir
from statevla.errors import UserError
from statevla.machine.device import resolve_device
from statevla.machine.extras import require
from statevla.machine.lock import only_writer_in
from statevla.machine.processes import join_processes
from statevla.machine.sealed import seal
from statevla.machine.storage import sha256, write_json
from statevla.types import Rendering
from statevla.worlds.fitting import check_fit
from statevla.worlds.protocol import Suite
from statevla.worlds.registry import open_suite
from statevla.worlds.rollout_loop import RolloutLoop
from statevla.worlds.rollout_plan import EpisodeSpec, Schedule, plan_episodes
from statevla.worlds.rollout_results import (
    KEPT_FIX,
    RESULTS_FIX,
    EpisodeLog,
    EpisodeResult,
    claim_folder,
    machine_info,
    read_results,
    summarize,
    summarize_alarms,
)
from statevla.worlds.rollout_view import RolloutProgress, VideoShelf
from statevla.worlds.task_indices import parse_indices
from statevla.worlds.workers import WorkerPool, WorldSettings


@dataclass(frozen=True)
class RolloutArgs:
    checkpoint: str
    """Checkpoint folder, run folder, or `…/checkpoint_best.pt`."""
    world: Annotated[str, tyro.conf.arg(aliases=["--task-suite"])] = "libero_object"
    """A suite of LIBERO or LIBERO-PRO, another world (`so101`), or your own as `module:factory` (docs/worlds.md)."""
    num_trials: int = 50
    """Episodes per task."""
    tasks: str = "all"
    """Task indices: `all`, `0,3,5` or `0-4`."""
    init_states: Literal["official", "wide", "drawn"] | None = None
    """LIBERO: initial states: the benchmark's (default), this package's with objects all over the reachable table, or
    as every seed draws them."""
    instructions: Literal["own", "shuffled"] = "own"
    """`shuffled`: tell the policy the instruction of another task, success being that of the task: does it listen?"""
    out: str | None = None
    """Results folder; an interrupted evaluation goes on here. By default in $STATEVLA_HOME/rollouts, named after the
    checkpoint and the suite."""
    seed: int = 0
    """Of what the world draws at a reset, and of the policy's noise."""
    replan_steps: int | None = None
    """Actions executed before the policy looks again; default: the whole chunk, or 1 with temporal ensembling."""
    temporal_ensembling: float | None = None
    """Blend overlapping chunks with this decay (0.01 in ACT); default: no blending."""
    num_sampling_steps: int | None = None
    """Solver steps of the flow; default: the checkpoint's."""
    sampling_temperature: float | None = None
    """Scale of the flow's noise, 0 for none; default: the checkpoint's."""
    num_workers: int = 0
    """Processes with a world each, in LIBERO about 2 GB; 0: one per CPU core (shared among torchrun's processes)."""
    videos: int = 1
    """Videos per task: so many successes and so many failures; rendered after the episode, some seconds each."""
    render_size: int | None = None
    """Side of the frames (pixels); default: that of the frames that the checkpoint was trained on."""
    rendering: Rendering | None = None
    """LIBERO, so101: as in the training data: `exact` (robosuite's) for published data sets; `statevla collect` draws
    `fast`, the default."""
    device: str = "auto"
    """`auto` takes CUDA, else MPS, else the CPU."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the policy's forward; `auto` takes bf16 where it is faster."""
    batching: Literal["auto", "on", "off"] = "auto"
    """One forward for all worlds that wait (`auto`: on a GPU), or one each: then results do not depend on who
    happened to wait at the same time, to the last bit."""


def evaluate(args: RolloutArgs, console: Console | None = None) -> tuple[Path, dict[str, Any] | None]:
    """Run all episodes that the results folder does not hold yet.

    Under torchrun, process r takes episodes r, r + world, r + 2·world, …

    Returns:
        The results folder, and the summary (None in processes other than the first).

    Raises:
        UserError: bad arguments, checkpoint or installation; another process writes to the results folder; or the first
            episodes all end in errors.
    """
    console = console or Console()
    with join_processes(resolve_device(args.device)) as (processes, device), contextlib.ExitStack() as stack:
        rank, world = processes.rank, processes.world_size
        suite, settings, planned, policy = _prepare(args, device)
        folder = results_folder(args, settings["weights_sha256"])
        stack.enter_context(processes.main_holds(only_writer_in(folder, RESULTS_FIX), device))
        facts = {"control_freq_hz": suite.robot.control_freq_hz}
        if rank == 0:
            claim_folder(folder, settings, facts)
        processes.wait()
        done = {key for key, result in read_results(folder).items() if result.error is None}
        processes.wait()  # nobody may write before everybody has read
        mine = [episode for episode in planned[rank::world] if episode.key not in done]
        started = time.monotonic()
        if mine:
            log = EpisodeLog(folder / ("episodes.jsonl" if world == 1 else f"episodes.{rank}.jsonl"))
            _run(args, policy, folder, log, mine, world, console if rank == 0 else None)
        processes.wait()
        if rank != 0:
            return folder, None
        summary = {
            "checkpoint": args.checkpoint,
            "settings": {**settings, **facts},
            "num_trials": args.num_trials,
            **_summary(args, policy, folder, planned),
            "wall_s": round(time.monotonic() - started, 2),
            "episodes_in_this_run": len(mine),
            "versions": {**versions(), **suite.versions()},
            "git_commit": git_commit(),
            "machine": machine_info(),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        }
        write_json(folder / "summary.json", seal(summary), KEPT_FIX)
        return folder, summary


def results_folder(args: RolloutArgs, weights_sha256: str) -> Path:
    """Where the results go: `--out`, or a folder named after checkpoint, suite and weights (training changes them)."""
    if args.out is not None:
        return expand_path(args.out)
    path = expand_path(args.checkpoint)
    name = "-".join(part.removesuffix(".pt") for part in path.parts[-2:] if part not in ("/", "."))
    world = re.sub(r"[^A-Za-z0-9_.-]+", "_", args.world)
    return home_dir() / "rollouts" / f"{name}-{world}-{weights_sha256[:8]}"


def _prepare(
    args: RolloutArgs, device: torch.device
) -> tuple[Suite, dict[str, Any], list[EpisodeSpec], StateVLAPolicy]:
    """Everything that can be wrong is found here, before any worker starts."""
    suite = open_suite(args.world, **_chosen_options(args))
    if args.videos > 0:
        require("--videos", "video")
    tasks = [suite.tasks[index] for index in parse_indices(args.tasks, len(suite.tasks), args.world)]
    planned = plan_episodes(suite, tasks, args.num_trials, args.seed, args.instructions)
    if args.num_workers < 0 or args.videos < 0:
        raise UserError(f"expected num_workers and videos of at least 0, got {args.num_workers} and {args.videos}")
    policy = StateVLAPolicy.from_pretrained(
        args.checkpoint,
        device=str(device),
        num_sampling_steps=args.num_sampling_steps,
        sampling_temperature=args.sampling_temperature,
        execute_steps=args.replan_steps,
        temporal_ensembling=args.temporal_ensembling,
        seed=args.seed,
        precision=args.precision,
    )
    check_fit(policy.robot, policy.name, suite)
    settings = {
        "weights_sha256": sha256(resolve_checkpoint(args.checkpoint) / MODEL_FILE),
        "task_suite": args.world,
        **_recorded_options(suite),
        "instructions": args.instructions,
        "seed": args.seed,
        "execute_steps": policy.execute_steps,
        "temporal_ensembling": policy.temporal_ensembling,
        "num_sampling_steps": policy.num_sampling_steps,
        "sampling_temperature": policy.sampling_temperature,
        "precision": policy.precision,
        "render_size": args.render_size or policy.frame_size,
        "surprise_threshold": policy.threshold("surprise"),
    }
    return suite, settings, planned, policy


def _chosen_options(args: RolloutArgs) -> dict[str, Any]:
    """Of the suite, where the user has a wish."""
    wishes = {"init_states": args.init_states, "rendering": args.rendering}
    return {name: value for name, value in wishes.items() if value is not None}


def _recorded_options(suite: Suite) -> dict[str, Any]:
    """What a suite was opened with, as settings: LIBERO's by their names, others in a mapping of their own."""
    named = {"init_states": "drawn", **suite.options}
    settings = {name: named.pop(name) for name in ("init_states", "rendering") if name in named}
    return settings | ({"world_options": named} if named else {})


def _run(
    args: RolloutArgs,
    policy: StateVLAPolicy,
    folder: Path,
    log: EpisodeLog,
    episodes: list[EpisodeSpec],
    world: int,
    console: Console | None,
) -> None:
    """Run these episodes with worlds in processes of their own."""
    size = args.render_size or policy.frame_size
    world_settings = WorldSettings(args.world, _chosen_options(args), size, policy.robot.camera_names)
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, num_cpus // world)
    num_workers = min(args.num_workers or share, len(episodes))
    num_threads = policy.config.num_threads or max(1, share - num_workers)
    batched = args.batching == "on" or (args.batching == "auto" and policy.device.type != "cpu")
    with (
        contextlib.closing(log),
        _torch_threads(num_threads),
        RolloutProgress(console, len(episodes)) as progress,
        WorkerPool(num_workers, world_settings) as pool,
    ):
        policy.warm_up()  # while the workers load the simulator
        RolloutLoop(policy, log, Schedule(episodes), VideoShelf(folder, args.videos), progress, batched).run(pool)


def _summary(args: RolloutArgs, policy: StateVLAPolicy, folder: Path, planned: list[EpisodeSpec]) -> dict[str, Any]:
    """Of whatever the folder holds now; writes the contact sheet."""
    results = read_results(folder)
    wanted = [results[episode.key] for episode in planned if episode.key in results]
    VideoShelf(folder, args.videos).write_contact_sheet(results)
    return {**summarize(wanted, len(planned)), **_alarms(policy, wanted)}


def _alarms(policy: StateVLAPolicy, results: list[EpisodeResult]) -> dict[str, Any]:
    threshold = policy.threshold("surprise")
    if policy.calibration is None or threshold is None:
        return {}
    return {"alarm": summarize_alarms(results, {**policy.calibration.summary(), "threshold": threshold})}


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """The worlds take the cores; a small forward on many threads would only get in their way."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
