"""Success of a policy in simulation: `python run_libero_eval.py`, `statevla rollout`.

The published protocol (openpi, OpenVLA-OFT): official initial states, ten idle steps, a step limit per suite, success
as the environment says. Environments live in worker processes, the policy in this one.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from statevla.command import run_command
from statevla.config import expand_path, home_dir
from statevla.device import resolve_device
from statevla.errors import UserError
from statevla.policy import StateVLAPolicy
from statevla.training.checkpoint import MODEL_FILE, resolve_checkpoint
from statevla.training.distributed import join_processes
from statevla.training.provenance import git_commit, versions
from statevla.training.storage import sha256
from statevla.types import Rendering
from statevla.worlds.libero.backend import versions as simulator_versions
from statevla.worlds.libero.tasks import parse_task_indices, suite_tasks
from statevla.worlds.rollout_plan import EpisodeSpec, Schedule, plan_episodes
from statevla.worlds.rollout_results import (
    EpisodeLog,
    EpisodeResult,
    claim_folder,
    machine_info,
    read_results,
    summarize,
    summarize_alarms,
    write_json,
)
from statevla.worlds.rollout_view import RolloutProgress, VideoShelf, results_table
from statevla.worlds.running_episode import RunningEpisode
from statevla.worlds.video import SurpriseTrace
from statevla.worlds.workers import (
    Died,
    Ended,
    EnvSettings,
    Execute,
    Failed,
    Look,
    SaveVideo,
    Start,
    Worker,
    WorkerPool,
)

MAX_ATTEMPTS = 2
"""An episode whose process died is tried once more; then it counts as an error."""
MAX_FIRST_ERRORS = 3
"""So many errors before anything has worked mean that nothing will."""


@dataclass(frozen=True)
class RolloutArgs:
    checkpoint: str
    """Checkpoint folder, run folder, or `…/checkpoint_best.pt`."""
    task_suite: str = "libero_object"
    """LIBERO or LIBERO-PRO suite."""
    num_trials: int = 50
    """Episodes per task."""
    tasks: str = "all"
    """Task indices: `all`, `0,3,5` or `0-4`."""
    init_states: Literal["official", "wide"] = "official"
    """Initial states: the benchmark's, or this package's with objects all over the reachable table."""
    instructions: Literal["own", "shuffled"] = "own"
    """`shuffled`: tell the policy the instruction of another task, success being that of the task: does it listen?"""
    out: str | None = None
    """Results folder; an interrupted evaluation goes on here. By default in $STATEVLA_HOME/rollouts, named after the
    checkpoint and the suite."""
    seed: int = 0
    """Of fixtures' poses and of the policy's noise."""
    replan_steps: int | None = None
    """Actions executed before the policy looks again; default: the whole chunk, or 1 with temporal ensembling."""
    temporal_ensembling: float | None = None
    """Blend overlapping chunks with this decay (0.01 in ACT); default: no blending."""
    num_sampling_steps: int | None = None
    """Solver steps of the flow; default: the checkpoint's."""
    sampling_temperature: float | None = None
    """Scale of the flow's noise, 0 for none; default: the checkpoint's."""
    num_workers: int = 0
    """Environment processes, about 2 GB each; 0: one per CPU core (shared among torchrun's processes)."""
    videos: int = 1
    """Videos per task: so many successes and so many failures; rendered after the episode, some seconds each."""
    render_size: int | None = None
    """Side of the frames (pixels); default: the model's. Give that of the training data if it differs."""
    rendering: Rendering = "fast"
    """As in the training data: `exact` (robosuite's) for published data sets; `statevla collect` draws `fast`."""
    device: str = "auto"
    """`auto` takes CUDA, else MPS, else the CPU."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the policy's forward; `auto` takes bf16 where it is faster."""
    batching: Literal["auto", "on", "off"] = "auto"
    """One forward for all environments that wait (`auto`: on a GPU), or one each: then results do not depend on who
    happened to wait at the same time, to the last bit."""


def rollout(args: RolloutArgs) -> int:
    """Measure a policy's success in LIBERO; per-episode results, intervals, videos."""
    console = Console()
    folder, summary = evaluate(args, console)
    if summary is not None:
        console.print(results_table(summary))
        console.print(f"results: {folder}")
    return 0


def main() -> None:
    """Entry point of `run_libero_eval.py`."""
    import tyro

    run_command(lambda: rollout(tyro.cli(RolloutArgs, description=rollout.__doc__)))


def evaluate(args: RolloutArgs, console: Console | None = None) -> tuple[Path, dict[str, Any] | None]:
    """Run all episodes that the results folder does not hold yet.

    Under torchrun, process r takes episodes r, r + world, r + 2·world, …

    Returns:
        The results folder, and the summary (None in processes other than the first).

    Raises:
        UserError: bad arguments, checkpoint or installation; or the first episodes all end in errors.
    """
    console = console or Console()
    with join_processes(resolve_device(args.device)) as (processes, device):
        rank, world = processes.rank, processes.world_size
        settings, planned, policy = _prepare(args, device)
        folder = results_folder(args, settings["weights_sha256"])
        if rank == 0:
            claim_folder(folder, settings)
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
        return folder, _finish(args, policy, folder, planned, settings, time.monotonic() - started, len(mine))


def results_folder(args: RolloutArgs, weights_sha256: str) -> Path:
    """Where the results go: `--out`, or a folder named after checkpoint, suite and weights (training changes them)."""
    if args.out is not None:
        return expand_path(args.out)
    path = expand_path(args.checkpoint)
    name = "-".join(part.removesuffix(".pt") for part in path.parts[-2:] if part not in ("/", "."))
    return home_dir() / "rollouts" / f"{name}-{args.task_suite}-{weights_sha256[:8]}"


def _prepare(args: RolloutArgs, device: torch.device) -> tuple[dict[str, Any], list[EpisodeSpec], StateVLAPolicy]:
    """Everything that can be wrong is found here, before any worker starts."""
    suite = suite_tasks(args.task_suite)
    tasks = [suite[index] for index in parse_task_indices(args.task_suite, args.tasks)]
    planned = plan_episodes(tasks, args.num_trials, args.init_states, args.seed, args.instructions)
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
    settings = {
        "weights_sha256": sha256(resolve_checkpoint(args.checkpoint) / MODEL_FILE),
        "task_suite": args.task_suite,
        "init_states": args.init_states,
        "instructions": args.instructions,
        "seed": args.seed,
        "execute_steps": policy.execute_steps,
        "temporal_ensembling": policy.temporal_ensembling,
        "num_sampling_steps": policy.num_sampling_steps,
        "sampling_temperature": policy.sampling_temperature,
        "precision": policy.precision,
        "render_size": args.render_size or policy.config.model.image_size,
        "rendering": args.rendering,
        "surprise_threshold": policy.threshold("surprise"),
    }
    return settings, planned, policy


class _Evaluation:
    """The main process's loop: give episodes to workers, answer those that wait, record those that ended."""

    def __init__(
        self,
        args: RolloutArgs,
        policy: StateVLAPolicy,
        folder: Path,
        log: EpisodeLog,
        schedule: Schedule,
        progress: RolloutProgress,
    ) -> None:
        self._args, self._policy, self._log = args, policy, log
        self._schedule, self._progress = schedule, progress
        self._batched = args.batching == "on" or (args.batching == "auto" and policy.device.type != "cpu")
        self._videos = VideoShelf(folder, args.videos)
        self._running: dict[int, RunningEpisode] = {}  # by worker number
        self._attempts: dict[tuple[int, int], int] = {}
        self._first_errors: list[str] | None = []  # None once an episode has ended without one

    def run(self, pool: WorkerPool) -> None:
        for worker in pool.workers:
            self._give(worker, pool)
        while self._running:
            looking: list[tuple[RunningEpisode, Worker, Look]] = []
            for worker, message in pool.replies():
                run = self._running[worker.number]
                if isinstance(message, Look):
                    looking.append((run, worker, message))
                else:
                    self._settle(run, worker, message, pool)
            if self._batched:
                self._answer(looking)
            else:
                for one in looking:
                    self._answer([one])

    def _give(self, worker: Worker, pool: WorkerPool) -> None:
        """The next episode for an idle worker, if there is one."""
        others = [w.task_index for w in pool.workers if w.episode is not None and w is not worker]
        episode = self._schedule.take(worker.task_index, [index for index in others if index is not None])
        worker.episode = episode
        if episode is None:
            return
        attempt = self._attempts[episode.key] = self._attempts.get(episode.key, 0) + 1
        self._running[worker.number] = RunningEpisode(episode, self._policy.new_session(episode.seed), attempt)
        worker.send(Start(episode, record=self._videos.may_want(episode)))

    def _answer(self, looking: list[tuple[RunningEpisode, Worker, Look]]) -> None:
        """One forward for these workers."""
        if not looking:
            return
        began = time.perf_counter()
        told = [replace(look.observation, instruction=run.episode.instruction) for run, _, look in looking]
        self._policy.query([(run.session, observation) for (run, _, _), observation in zip(looking, told)])
        took_s = time.perf_counter() - began
        for run, worker, _ in looking:
            run.policy_s += took_s / len(looking)
            run.policy_ms.append(round(1000.0 * took_s, 3))
            run.note_look(run.session.num_steps)  # what the look before has queued is executed by now
            worker.send(Execute(run.session.next_actions()))

    def _settle(self, run: RunningEpisode, worker: Worker, message: Any, pool: WorkerPool) -> None:
        """A message that ends something: an episode, a video, or the worker; then the worker goes on to the next."""
        del self._running[worker.number]
        if isinstance(message, Died):
            worker = pool.replace(worker)
        if isinstance(message, Failed) and message.is_user_error:
            raise UserError(message.message)
        if isinstance(message, Ended):
            self._record(run.result(message.success, None, message))
            self._first_errors = None
            if (shots := self._videos.claim(run.episode, message.success)) is not None:
                run.filming = True
                self._running[worker.number] = run
                looks = range(self._policy.execute_steps, 10**9, self._policy.execute_steps)
                trace = SurpriseTrace(dict(zip(looks, run.surprise)), self._policy.threshold("surprise"))
                worker.send(SaveVideo(*shots, run.episode.instruction, trace))
                return
        elif isinstance(message, Died) and not run.filming and run.attempt < MAX_ATTEMPTS:
            self._schedule.put_back(run.episode)
        elif isinstance(message, (Died, Failed)):
            self._fail(run, message)
        self._give(worker, pool)

    def _fail(self, run: RunningEpisode, message: Died | Failed) -> None:
        where = f"task {run.episode.task.index} trial {run.episode.trial}"
        if run.filming:
            self._progress.say(f"{where}: no video ({message.message})")
            return
        self._record(run.result(None, message.message, None))
        self._progress.say(f"{where}: error, not counted as a failure: {message.message}")
        if isinstance(message, Failed):
            self._progress.say(message.details)
        if self._first_errors is not None:
            self._first_errors.append(message.message)
            if len(self._first_errors) >= MAX_FIRST_ERRORS:
                raise UserError(
                    f"rollout: the first {MAX_FIRST_ERRORS} episodes all ended in errors ({self._first_errors[-1]}); "
                    "run 'statevla doctor'"
                )

    def _record(self, result: EpisodeResult) -> None:
        self._log.append(result)
        self._progress.episode_done(result)


def _run(
    args: RolloutArgs,
    policy: StateVLAPolicy,
    folder: Path,
    log: EpisodeLog,
    episodes: list[EpisodeSpec],
    world: int,
    console: Console | None,
) -> None:
    """Run these episodes with environments in processes of their own."""
    model = policy.config.model
    env_settings = EnvSettings(
        args.render_size or model.image_size,
        tuple(model.cameras),
        model.robot_state_layout,
        args.init_states,
        args.rendering,
    )
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, num_cpus // world)
    num_workers = min(args.num_workers or share, len(episodes))
    num_threads = policy.config.num_threads or max(1, share - num_workers)
    with (
        contextlib.closing(log),
        _torch_threads(num_threads),
        RolloutProgress(console, len(episodes)) as progress,
        WorkerPool(num_workers, env_settings) as pool,
    ):
        policy.warm_up()  # while the workers load the simulator
        _Evaluation(args, policy, folder, log, Schedule(episodes), progress).run(pool)


def _finish(
    args: RolloutArgs,
    policy: StateVLAPolicy,
    folder: Path,
    planned: list[EpisodeSpec],
    settings: dict[str, Any],
    wall_s: float,
    num_run: int,
) -> dict[str, Any]:
    """Write summary and contact sheet from whatever the folder holds now."""
    results = read_results(folder)
    wanted = [results[episode.key] for episode in planned if episode.key in results]
    summary = {
        "checkpoint": args.checkpoint,
        "settings": settings,
        "num_trials": args.num_trials,
        **summarize(wanted, len(planned)),
        **_alarms(policy, wanted),
        "wall_s": round(wall_s, 2),
        "episodes_in_this_run": num_run,
        "versions": {**versions(), **simulator_versions()},
        "git_commit": git_commit(),
        "machine": machine_info(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
    write_json(folder / "summary.json", summary)
    VideoShelf(folder, args.videos).write_contact_sheet(results)
    return summary


def _alarms(policy: StateVLAPolicy, results: list[EpisodeResult]) -> dict[str, Any]:
    threshold = policy.threshold("surprise")
    if policy.calibration is None or threshold is None:
        return {}
    return {"alarm": summarize_alarms(results, {**policy.calibration.summary(), "threshold": threshold})}


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """The environments take the cores; a small forward on many threads would only get in their way."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
