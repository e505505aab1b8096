"""Steps per second and core of collecting demonstrations, what they go to, and how an earlier revision compares.

    python benchmarks/bench_collect.py [--before REVISION] [--worlds libero_object so101] [--episodes 3] [--rounds 3]

One process at a time makes the same episodes as a worker of `statevla collect` does, on one thread; with `--before` the
code of that revision takes turns with today's, round after round. Times are of the processor, so that neighbours on the
machine count for little. Every data set of every episode of both is hashed, and has to be the same; but for the
pictures, of which it is said where they differ. Writes `benchmarks/results/collect.json`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tyro

from harness import environment, print_table, run_child, write_results
from statevla.commands.entry import run_command
from statevla.errors import UserError

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
PARTS = ("drawing", "averaging", "physics", "expert and rest", "writing")


@dataclass(frozen=True)
class Args:
    """Measure collecting."""

    before: str = ""
    """A revision of this repository to compare with."""
    worlds: tuple[str, ...] = ("libero_object", "so101")
    """Worlds, as in `statevla collect`; the first task of each. `@4`: with `--frame-stride 4`, today's code alone."""
    episodes: int = 3
    """Episodes of each process, beside one that warms up."""
    rounds: int = 3
    """Processes of each revision and world."""
    seed: int = 0
    """Of the episodes."""
    out: str = "collect"
    """Name of the file in benchmarks/results."""
    child: str = ""
    """What one of these processes measures; set by this script."""


# One process ----------------------------------------------------------------------------------------------------------


class Clock:
    """Processor seconds by part; what one part calls of another is that one's alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._running: list[str] = []
        self._since = time.process_time()

    def within(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._turn(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._turn(None)

        return timed

    def _turn(self, part: str | None) -> None:
        now = time.process_time()
        self.seconds[self._running[-1] if self._running else "expert and rest"] += now - self._since
        self._since = now
        if part is None:
            self._running.pop()
        else:
            self._running.append(part)


def patch(clock: Clock, part: str, *places: str) -> None:
    """Time what is at the first of some places, `module:Class.method`, that this revision has."""
    for place in places:
        module_name, _, path = place.partition(":")
        with contextlib.suppress(ImportError, AttributeError):
            owner: Any = importlib.import_module(module_name)
            *owners, name = path.split(".")
            for each in owners:
                owner = getattr(owner, each)
            setattr(owner, name, clock.within(part, getattr(owner, name)))
            return
    raise UserError(f"bench_collect: this revision has none of {', '.join(places)}")


def instrument(world: str, clock: Clock) -> None:
    if world == "so101":
        patch(clock, "physics", "statevla.worlds.so101.world:So101LiftWorld.step")
        patch(clock, "drawing", "statevla.worlds.so101.world:So101LiftWorld.draw")
        old = "statevla.worlds.so101.drawing:upright_frame"
    else:
        patch(clock, "physics", "statevla.worlds.libero.simulation:FastStepper.step")
        patch(clock, "drawing", "statevla.worlds.libero.simulation:Simulation.render")
        old = "statevla.worlds.libero.rendering:upright_frame"
    patch(clock, "averaging", "statevla.worlds.drawing.canvas:upright_frame", old)


def recipe_of(world: str, seed: int) -> Any:
    if world == "so101":
        from statevla.worlds.recording import WorldRecipe

        return WorldRecipe(world, seed=seed)
    from statevla.worlds.libero.episodes import CollectSettings

    suite, _, stride = world.partition("@")
    return CollectSettings(suite, seed, frame_stride=int(stride or 1))


def digest(datasets: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name, values in sorted(datasets.items()):
        found.update(name.encode() + np.ascontiguousarray(values).tobytes())
    return found.hexdigest()[:16]


def collect_some(args: Args, world: str) -> dict[str, Any]:
    from statevla.worlds.demo_file import write_episode

    recorder = recipe_of(world, args.seed).open(0)
    recorder.record(args.episodes)  # compiles, makes contexts
    clock = Clock()
    instrument(world, clock)
    write = clock.within("writing", write_episode)
    began, clock._since = time.perf_counter(), time.process_time()
    digests, picture_digests, num_steps, num_frames, num_kept, hashing_s = [], [], 0, 0, 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for index in range(args.episodes):
            episode = recorder.record(index)
            if episode is not None:
                write(Path(folder) / f"{index}.hdf5", episode)
                num_steps, num_kept = num_steps + len(episode.datasets["actions"]), num_kept + 1
                before = time.process_time()
                pictures = {name for name in episode.datasets if name.endswith("_rgb")}
                num_frames += sum(len(episode.datasets[name]) for name in pictures)
                digests.append(digest({n: v for n, v in episode.datasets.items() if n not in pictures}))
                picture_digests.append(digest({n: v for n, v in episode.datasets.items() if n in pictures}))
                hashing_s += time.process_time() - before
    clock.within("writing", lambda: None)()
    clock.seconds["expert and rest"] -= hashing_s
    return {
        "steps": num_steps,
        "demonstrations": num_kept,
        "frames_per_step": num_frames / num_steps,
        "cpu_s": clock.seconds,
        "wall_s": time.perf_counter() - began,
        "digests": digests,
        "picture_digests": picture_digests,
    }


# All ------------------------------------------------------------------------------------------------------------------


def summary(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the rounds: milliseconds of a core per step by part, and rates per core."""
    per_step = {part: 1e3 * median(s["cpu_s"][part] / s["steps"] for s in samples) for part in PARTS}
    total = 1e3 * median(sum(s["cpu_s"].values()) / s["steps"] for s in samples)
    steps = samples[0]["steps"] / samples[0]["demonstrations"]
    return {
        **{f"{part} ms": value for part, value in per_step.items()},
        "ms": total,
        "steps_per_s": 1e3 / total,
        "frames_per_s": 1e3 / total * samples[0]["frames_per_step"],
        "demonstrations_per_hour": 3.6e6 / total / steps,
    }


def main(args: Args) -> None:
    if args.child:
        print(json.dumps(collect_some(args, args.child)))
        return
    from bench_model import code_of  # whose imports an earlier revision lacks

    flags = ["--episodes", str(args.episodes), "--seed", str(args.seed)]
    samples: dict[str, dict[str, list[Any]]] = {}
    with code_of(args.before) as codes:
        for world in args.worlds:
            of_code = samples[world] = {name: [] for name in codes if name == "now" or "@" not in world}
            for _ in range(args.rounds):
                for name, runs in of_code.items():
                    runs.append(run_child(__file__, world, flags, {**ONE_THREAD, **codes[name]}))
            digests = {tuple(sample["digests"]) for each in of_code.values() for sample in each}
            if len(digests) != 1:
                raise UserError(f"{world}: the episodes of {' and '.join(codes)} differ; nothing is to be compared")
            if len({tuple(sample["picture_digests"]) for each in of_code.values() for sample in each}) != 1:
                print(f"{world}: the same episodes, but their pictures differ")
    summaries = {world: {name: summary(each) for name, each in found.items()} for world, found in samples.items()}
    rows = []
    for world, by_code in summaries.items():
        for name, found in by_code.items():
            ratio = by_code["before"]["ms"] / found["ms"] if "before" in by_code else float("nan")
            shares = [found[f"{part} ms"] for part in PARTS]
            rates = [found["steps_per_s"], found["frames_per_s"], found["demonstrations_per_hour"]]
            rows.append([f"{world} {name}", *shares, found["ms"], *rates, ratio])
        bound = max(PARTS, key=lambda part: by_code["now"][f"{part} ms"])
        print(f"{world}: bound by {bound}, {by_code['now'][f'{bound} ms'] / by_code['now']['ms']:.0%} of the time")
    columns = ["one core", *(f"{part} ms" for part in PARTS), "a step ms", "steps/s", "frames/s", "demos/h", "x before"]
    print_table("collecting", columns, rows)
    tree = {"environment": environment(args.seed), "before": args.before, "summaries": summaries, "samples": samples}
    print(f"raw samples in {write_results(args.out, tree).name}")


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(tyro.cli(Args))))
