"""Kill every command that writes, at random moments: nothing is lost, and the same command completes.

    python scripts/random_kills.py [--kills 15] [--seed 0] [--only "train phase 2" collect] [--verbose]

Half of the kills come right before a random change of files, the others after a random time (`killed_run.py`). After
each one: what was there before is there, nothing looks whole and is not, and no process is left. Then the command runs
again, to its end; its result is that of a run that was left alone, and nothing unfinished lies about. The exit status
is 1 where one of these does not hold. What is run, and on what, is in `kill_scenarios.py`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tyro
from kill_scenarios import Scenario, make_inputs, scenarios
from killed_run import Ended, How, run_command
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PROCESSES_END_WITHIN_S = 60.0
TOKEN = "RANDOM_KILLS"


@dataclass(frozen=True)
class Args:
    kills: int = 15
    """Of each command."""
    seed: int = 0
    """Of the moments."""
    only: tuple[str, ...] = ()
    """Names of the commands; all by default."""
    verbose: bool = False
    """Tell of each kill."""


@dataclass
class Outcome:
    """What became of the kills of one command."""

    changes: int = 0
    killed: int = 0
    ended_first: int = 0
    findings: list[str] = field(default_factory=list)


class Bench:
    """A working folder, always at the same place, and copies of what is in it before each command."""

    def __init__(self, folder: Path, args: Args) -> None:
        self.work, self.args = folder / "work", args
        self.token = uuid.uuid4().hex
        self._templates: dict[tuple[str, ...], Path] = {}
        self.work.mkdir()
        make_inputs(self.work)
        self._keep(())

    def test(self, scenario: Scenario) -> Outcome:
        """Kill a command as often as asked for."""
        outcome = Outcome()
        self.restore(scenario.before)
        done = self.run(scenario.words)
        assert done.status == 0, f"{scenario.words}\n{done.stderr}"
        alone = scenario.result()
        outcome.changes = done.changes
        rng = np.random.default_rng([self.args.seed, *scenario.name.encode()])
        for number in range(self.args.kills):
            how: How = "seconds" if number % 2 else "change"
            value = rng.uniform(0, done.seconds) if how == "seconds" else rng.integers(1, done.changes + 1)
            found = list(self._kill(scenario, how, float(value), alone, outcome))
            outcome.findings += [f"{scenario.name}, {how} {value:.4g}: {finding}" for finding in found]
            if self.args.verbose:
                print(f"{scenario.name}, {how} {value:.4g}: {found or 'fine'}", file=sys.stderr, flush=True)
        return outcome

    def restore(self, before: Sequence[str]) -> None:
        """Fill the working folder with what these commands make."""
        key = tuple(before)
        if key not in self._templates:
            self.restore(before[:-1])
            done = self.run(before[-1])
            assert done.status == 0, f"{before[-1]}\n{done.stderr}"
            self._keep(key)
        os.chdir("/")
        shutil.rmtree(self.work)
        shutil.copytree(self._templates[key], self.work, symlinks=True)
        os.chdir(self.work)

    def run(self, words: str, how: How = "never", value: float = 0.0) -> Ended:
        """Run a command of `statevla` in the working folder."""
        environment = {
            TOKEN: self.token,
            "STATEVLA_HOME": str(self.work / "home"),
            "PYTHONPATH": os.pathsep.join([str(HERE.parent / "tests"), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        }
        return run_command(shlex.split(words), self.work, self.work.parent, environment, how, value)

    def _keep(self, key: tuple[str, ...]) -> None:
        folder = self.work.parent / f"template_{len(self._templates)}"
        shutil.copytree(self.work, folder, symlinks=True)
        self._templates[key] = folder

    def _kill(self, scenario: Scenario, how: How, value: float, alone: Any, outcome: Outcome) -> Iterator[str]:
        """Kill once, look, and run again; yields what is wrong."""
        self.restore(scenario.before)
        before = scenario.kept()
        done = self.run(scenario.words, how, value)
        if done.status == -signal.SIGKILL:
            outcome.killed += 1
        elif done.status == 0:
            outcome.ended_first += 1
        else:
            yield f"ended with status {done.status}: {done.stderr.strip()}"
        yield from self._processes_left()
        try:
            after = scenario.kept()
        except Exception:
            yield f"looks whole and is not: {_last_line()}"
        else:
            if not scenario.is_kept(before, after):
                yield f"lost: {before} before, {after} after"
            if after == alone:  # all was done but to say so
                return
        if done.status == 0:
            return
        words = f"{scenario.words} {scenario.resume()}"
        again = self.run(words)
        if again.status:
            yield f"does not complete: {words}: {again.stderr.strip()}"
            return
        try:
            if (result := scenario.result()) != alone:
                yield f"another result: {result} instead of {alone}"
        except Exception:
            yield f"another result: {_last_line()}"
        if left := sorted(str(path.relative_to(self.work)) for path in self.work.rglob("*") if _is_unfinished(path)):
            yield f"left lying about: {', '.join(left)}"

    def _processes_left(self) -> Iterator[str]:
        """Processes of the killed command that do not end by themselves; they are ended."""
        end = time.monotonic() + PROCESSES_END_WITHIN_S
        while (left := list(self._mine())) and time.monotonic() < end:
            time.sleep(0.1)
        for process in left:
            yield f"process left: {' '.join(process.cmdline())[:200]}"
            process.kill()

    def _mine(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(TOKEN) == self.token:
                    yield process
            except psutil.Error:
                continue


def _is_unfinished(path: Path) -> bool:
    return path.name.startswith(".") or path.suffix in (".part", ".tmp", ".new", ".old", ".lock")


def _last_line() -> str:
    return traceback.format_exc().strip().splitlines()[-1]


def main(args: Args) -> int:
    sys.path.insert(0, str(HERE.parent / "tests"))
    torch.set_num_threads(1)
    chosen = [scenario for scenario in scenarios() if not args.only or scenario.name in args.only]
    table = Table(
        "command", "changes of files", "killed", "ended first", "findings", title=f"kill -9, seed {args.seed}"
    )
    findings: list[str] = []
    folder = Path(tempfile.mkdtemp())
    try:
        bench = Bench(folder, args)
        for scenario in chosen:
            outcome = bench.test(scenario)
            findings += outcome.findings
            numbers = outcome.changes, outcome.killed, outcome.ended_first, len(outcome.findings)
            table.add_row(scenario.name, *map(str, numbers))
            print(f"{scenario.name}: {numbers}", file=sys.stderr, flush=True)
    finally:
        os.chdir("/")
        shutil.rmtree(folder)
    console = Console(width=None if sys.stdout.isatty() else 160, soft_wrap=True)
    console.print(table)
    for finding in findings:
        console.print(finding, markup=False, highlight=False)
    console.print(f"{len(findings)} finding(s)")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
