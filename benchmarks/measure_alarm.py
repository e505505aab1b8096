"""Does the surprise alarm rise when something goes wrong, and only then? In simulation, beside a baseline.

    statevla calibrate --checkpoint RUN
    python benchmarks/measure_alarm.py --checkpoint RUN --tasks 0-9 --episodes 20

Every episode is run once undisturbed and once with each disturbance (`statevla.worlds.libero.disturbances`) from the
same initial state with the same noise. Two detectors: surprise of the world model, and novelty (distance of z to
training frames). Two calibrations of each: `demonstrations`, the thresholds stored in the checkpoint, and `rollouts`,
set on the undisturbed episodes of even number; the others of odd number count the false alarms of both.

Recall is the share of disturbed episodes, without an alarm before the disturbance, in which it rises afterwards; also
within `WITHIN_LOOKS` looks, for a failing policy does other unusual things later. Intervals are Wilson's. Writes
`benchmarks/results/alarm.json` with every look of every episode.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro
from rich.progress import track

from harness import environment, print_table, write_results
from statevla.acting.alarm import SCORES, conformal_threshold
from statevla.acting.policy import StateVLAPolicy
from statevla.commands.entry import run_command
from statevla.errors import UserError
from statevla.types import Rendering
from statevla.worlds.fitting import check_fit
from statevla.worlds.libero.suite import LiberoSuite
from statevla.worlds.libero.tasks import find_task, parse_task_indices
from statevla.worlds.rollout_plan import EpisodeSpec, plan_episodes
from statevla.worlds.rollout_results import success_interval

if TYPE_CHECKING:
    from statevla.worlds.libero.disturbances import Disturbance, Kind
    from statevla.worlds.libero.env import LiberoWorld

WITHIN_LOOKS = 3
KINDS: tuple[Kind, ...] = ("none", "moved", "occluded", "blocked")


@dataclass(frozen=True)
class Args:
    """Measure recall and false alarms of a calibrated checkpoint in simulation."""

    checkpoint: str
    """A calibrated checkpoint (statevla calibrate)."""
    suite: str = "libero_object"
    """LIBERO suite; its goals have to name movable objects."""
    tasks: str = "0"
    """Task indices: `all`, `0,3,5` or `0-4`."""
    episodes: int = 20
    """Per task and kind of disturbance."""
    onset: tuple[int, int] = (20, 50)
    """Control steps between which a disturbance begins, drawn per episode."""
    replan_steps: int | None = None
    """Actions per look; default: the whole chunk."""
    max_steps: int | None = None
    """Control steps of an episode; default: the task's."""
    render_size: int | None = None
    """Side of the frames (pixels); default: the model's."""
    rendering: Rendering = "fast"
    """As in the training data."""
    seed: int = 0
    """Of initial states, onsets and noise."""
    out: str = "alarm"
    """Name of the file in benchmarks/results."""


def run_episode(
    policy: StateVLAPolicy, world: LiberoWorld, spec: EpisodeSpec, disturbance: Disturbance, max_steps: int
) -> dict[str, Any]:
    """One episode: looks, both scores, when the disturbance was to be seen, success."""
    world.reset(spec.seed, spec.reset_options)
    session = policy.new_session(spec.seed)
    looks: list[int] = []
    scores: dict[str, list[float]] = {name: [] for name in SCORES}
    success, num_steps = False, 0
    while not success and num_steps < max_steps:
        seen = world.observe()
        seen = replace(seen, images=disturbance.see(seen.images, num_steps))
        policy.query([(session, seen)])
        looks.append(num_steps)
        for name in SCORES:
            if (value := getattr(session, name)) is not None:
                scores[name].append(value)
        for action in session.next_actions():
            world.step(disturbance.act(world.simulation, num_steps, action))
            success, num_steps = world.success(), num_steps + 1
            if success or num_steps >= max_steps:
                break
    return {
        "task": spec.task.index,
        "trial": spec.trial,
        "success": success,
        "num_steps": num_steps,
        "looks": looks,
        "visible_from": disturbance.visible_from,
        **scores,
    }


def first_alarm(episode: dict[str, Any], detector: str, threshold: float) -> int | None:
    """Control step of the first look above the threshold."""
    values = episode[detector]
    looks = episode["looks"][len(episode["looks"]) - len(values) :]  # no surprise at the first look
    return next((look for look, value in zip(looks, values) if value > threshold), None)


def false_alarms(episodes: Sequence[dict[str, Any]], detector: str, threshold: float) -> dict[str, Any]:
    alarms = [first_alarm(episode, detector, threshold) is not None for episode in episodes]
    good = [alarm for alarm, episode in zip(alarms, episodes) if episode["success"]]
    return {**rate(sum(alarms), len(alarms)), "among_successes": rate(sum(good), len(good))}


def recall(episodes: Sequence[dict[str, Any]], detector: str, threshold: float) -> dict[str, Any]:
    """Of the episodes whose disturbance was to be seen at a look, and that were quiet before."""
    delays: list[int | None] = []
    early = quick = 0
    for episode in episodes:
        begin = episode["visible_from"]
        after = [look for look in episode["looks"] if begin is not None and look >= begin]
        if begin is None or not after:
            continue
        step = first_alarm(episode, detector, threshold)
        if step is not None and step < begin:
            early += 1
            continue
        delays.append(None if step is None else step - begin)
        quick += step is not None and step <= after[:WITHIN_LOOKS][-1]
    found = [delay for delay in delays if delay is not None]
    return {
        **rate(len(found), len(delays)),
        f"within_{WITHIN_LOOKS}_looks": rate(quick, len(delays)),
        "alarm_before_disturbance": early,
        "median_delay_steps": float(np.median(found)) if found else None,
    }


def rate(count: int, total: int) -> dict[str, Any]:
    low, high = success_interval(count, total)
    return {"count": count, "episodes": total, "rate": count / total if total else None, "interval_95": [low, high]}


def evaluate(policy: StateVLAPolicy, episodes: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Detector → calibration → threshold, false alarms on undisturbed episodes of odd number, recall per kind."""
    assert policy.calibration is not None
    even, odd = ([e for e in episodes["none"] if e["trial"] % 2 == parity] for parity in (0, 1))
    results: dict[str, Any] = {}
    for detector in SCORES:
        thresholds = {"demonstrations": policy.threshold(detector)}
        try:
            largest = np.array([max(episode[detector], default=0.0) for episode in even])
            thresholds["rollouts"] = conformal_threshold(largest, policy.calibration.alpha)
        except UserError as error:
            print(f"no calibration on rollouts: {error}", file=sys.stderr)
        results[detector] = {
            name: {
                "threshold": threshold,
                "false_alarms": false_alarms(odd, detector, threshold),
                "recall": {kind: recall(episodes[kind], detector, threshold) for kind in KINDS if kind != "none"},
            }
            for name, threshold in thresholds.items()
            if threshold is not None
        }
    return results


def main(args: Args) -> None:
    from statevla.worlds.libero.disturbances import Disturbance
    from statevla.worlds.libero.env import LiberoWorld

    suite = LiberoSuite(args.suite)
    tasks = [suite.tasks[index] for index in parse_task_indices(args.suite, args.tasks)]
    if args.episodes < 2 or not 0 <= args.onset[0] < args.onset[1]:
        raise UserError(f"expected at least 2 episodes and 0 <= onset[0] < onset[1], got {args.episodes}, {args.onset}")
    policy = StateVLAPolicy.from_pretrained(args.checkpoint, execute_steps=args.replan_steps, seed=args.seed)
    if policy.threshold("surprise") is None:
        raise UserError(
            f"checkpoint {args.checkpoint}: not calibrated for {policy.execute_steps} actions per look; run "
            "'statevla calibrate'"
        )
    check_fit(policy.robot, policy.name, suite)
    size = args.render_size or policy.config.model.image_size
    specs = plan_episodes(suite, tasks, args.episodes, args.seed)
    episodes: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    world: LiberoWorld | None = None
    for spec in track(specs, description="episodes"):
        if world is None or world.task.index != spec.task.index:
            if world is not None:
                world.close()
            task = find_task(args.suite, spec.task.index)
            world = LiberoWorld(task, size, policy.robot.camera_names, rendering=args.rendering)
        onset = int(np.random.default_rng([args.seed, *spec.key]).integers(*args.onset))
        for kind in KINDS:
            disturbance = Disturbance(kind, onset)
            limit = args.max_steps or spec.task.max_steps
            episodes[kind].append(run_episode(policy, world, spec, disturbance, limit))
    results = evaluate(policy, episodes)
    assert policy.calibration is not None
    path = write_results(
        args.out,
        {
            "environment": environment(args.seed),
            "checkpoint": str(Path(args.checkpoint)),
            "suite": args.suite,
            "tasks": [task.index for task in tasks],
            "episodes_per_task": args.episodes,
            "onset": list(args.onset),
            "execute_steps": policy.execute_steps,
            "calibration": policy.calibration.summary(),
            "success": {k: rate(sum(e["success"] for e in found), len(found)) for k, found in episodes.items()},
            "results": results,
            "episodes": episodes,
        },
    )
    rows = [
        [detector, name, _share(found["false_alarms"]), *(_share(found["recall"][kind]) for kind in KINDS[1:])]
        for detector, calibrations in results.items()
        for name, found in calibrations.items()
    ]
    print_table("alarms", ["detector", "calibrated on", "false alarms", *(f"recall, {k}" for k in KINDS[1:])], rows)
    print(f"written: {path}")


def _share(found: dict[str, Any]) -> str:
    return f"{found['count']}/{found['episodes']}"


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Args, description=__doc__)))
