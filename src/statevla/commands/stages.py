"""Long work as a row of commands: each runs once, goes on where it was cut, and anew when what it depends on changes.

Every stage runs the very command that it prints, in a process of its own, and leaves a mark when it is done. What took
long and is to be made anew is kept in the folder `earlier` beside it.
"""

from __future__ import annotations

import ctypes
import hashlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from rich.console import Console

from statevla.checkpoints.checkpoint import LAST
from statevla.checkpoints.measured import read_tree
from statevla.config import EARLIER, PHASES, Config, TrainingConfig
from statevla.errors import UserError
from statevla.machine.lock import LOCK_NAME, only_writer_in
from statevla.machine.storage import write_json


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: of its mark.
        command: of `statevla`.
        arguments: of the command.
        settings: what else the result depends on: the sections of the configuration that the command reads.
        resume: arguments that continue what an interrupted run left, as far as it got.
        fresh: makes room where an earlier run with other settings left results.
        resources: more arguments, on which the result does not depend: how many processes.
        makes: folder or file that the command leaves, for later stages to read.
        reads: folders or files of earlier stages; where one is gone although its mark says done, it is made again.
    """

    name: str
    command: str
    arguments: list[str]
    settings: str = ""
    resume: Callable[[], list[str]] = list
    fresh: Callable[[], None] | None = None
    resources: tuple[str, ...] = ()
    makes: Path | None = None
    reads: tuple[Path, ...] = ()

    def shown(self, more: list[str]) -> str:
        return shlex.join(["statevla", self.command, *self.arguments, *self.resources, *more])


def training_stage(
    phase: str,
    config: Config,
    arguments: list[str],
    checkpoints: Path,
    phase1_checkpoints: Path | None = None,
    init_checkpoint: str | None = None,
    more: str = "",
    reads: tuple[Path, ...] = (),
) -> Stage:
    """`statevla train` of one phase.

    Args:
        phase: `1`, `2` or `bc`.
        config: as the command will read it; other phases' sections do not count.
        arguments: of the command, beside phase and phase-1 checkpoint.
        checkpoints: `output_dir`.
        phase1_checkpoints: the `output_dir` that phase 2 takes phase 1's best from; its own by default.
        init_checkpoint: what it begins with instead of random weights.
        more: what else the result depends on.
        reads: the data sets.
    """
    last = checkpoints / PHASES[phase].folder / LAST
    if init_checkpoint is not None:
        before = ["--init_checkpoint", init_checkpoint]
    elif phase == "2":
        phase1 = (phase1_checkpoints or checkpoints) / PHASES["1"].folder / "checkpoint_best.pt"
        before = ["--phase1_checkpoint", str(phase1)]
    else:
        before = []
    others = {
        other.section: getattr(TrainingConfig(), other.section) for number, other in PHASES.items() if number != phase
    }
    read = config.model_copy(update={"training": config.training.model_copy(update=others)})
    # A key that is new to the configuration does not make what was trained without it stale.
    settings = read.model_dump_json(exclude_defaults=True)
    return Stage(
        f"phase_{phase}",
        "train",
        ["--phase", phase, *before, *arguments],
        settings=settings + more,
        resume=lambda: ["--resume"] if last.exists() else [],
        fresh=lambda: set_aside(checkpoints / PHASES[phase].folder),
        reads=reads,
    )


def run_stages(stages: Sequence[Stage], folder: Path, console: Console) -> None:
    """Run stages in order; one whose command, settings or predecessors have changed since its mark is run anew.

    Raises:
        UserError: a command failed, or another process runs stages in this folder.
    """
    keys = _keys(stages)
    with only_writer_in(folder):
        for index, stage in enumerate(stages):
            mark = read_tree(mark_path(folder, stage))
            if mark.get("key") == keys[index] and mark.get("done"):
                console.print(f"[{index + 1}/{len(stages)}] {stage.name}: done already", highlight=False, markup=False)
                continue
            gone = [i for i, earlier in enumerate(stages[:index]) if _is_gone(earlier, stage)]
            for number in [*gone, index]:
                run_stage(stages[number], keys[number], folder, f"[{number + 1}/{len(stages)}]", console)


def _keys(stages: Sequence[Stage]) -> list[str]:
    """Of each stage, what changes with its command, its settings and those of all before it."""
    keys, key = [], ""
    for stage in stages:
        words = [key, stage.command, *stage.arguments, stage.settings]
        key = hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
        keys.append(key)
    return keys


def _is_gone(earlier: Stage, stage: Stage) -> bool:
    """Whether what a stage reads was made by an earlier one and removed since: it would train without it, in silence.
    What nobody reads any more may be removed for its room."""
    made = earlier.makes
    return made is not None and not made.exists() and any(made.is_relative_to(read) for read in stage.reads)


def run_stage(stage: Stage, key: str, folder: Path, number: str, console: Console) -> None:
    """Run a stage, on from where it was interrupted.

    Raises:
        UserError: its command failed.
    """
    path = mark_path(folder, stage)
    mark = read_tree(path)
    same = mark.get("key") == key
    if not same and stage.fresh is not None:
        stage.fresh()
    more = stage.resume() if same else []
    spent_s = float(mark.get("seconds", 0.0)) if same else 0.0
    command = stage.shown(more)
    console.print(f"\n{number} {command}", style="bold", highlight=False, markup=False, soft_wrap=True)
    write_json(path, {"key": key, "done": False, "seconds": spent_s, "command": command})
    began = time.monotonic()
    status = None
    try:
        status = call([sys.executable, "-m", *shlex.split(command)])
    finally:
        spent_s += time.monotonic() - began
        write_json(path, {"key": key, "done": status == 0, "seconds": spent_s, "command": command})
    if status != 0:
        raise UserError(f"stage '{stage.name}' ended with status {status}; mend what it says and run it again")


def call(command: list[str]) -> int:
    """Run a command to its end; on Linux it does not outlive this process, however that dies. Elsewhere neither, where
    SIGTERM is an exception, as in every command (`run_command`)."""
    die_with_parent = None
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG in <sys/prctl.h>
        die_with_parent = partial(ctypes.CDLL(None).prctl, set_parent_death_signal, signal.SIGTERM)
    return subprocess.run(command, check=False, preexec_fn=die_with_parent).returncode


def mark_path(folder: Path, stage: Stage) -> Path:
    return folder / "stages" / f"{stage.name}.json"


def set_aside(folder: Path) -> None:
    """Move the results of other settings, if there are any, to `earlier/<name>-<number>` beside them.

    Raises:
        UserError: they cannot be moved, or something writes there.
    """
    if not folder.exists():
        return
    kept = folder.parent / EARLIER
    target = next(path for number in count(1) if not (path := kept / f"{folder.name}-{number}").exists())
    try:
        kept.mkdir(exist_ok=True)
        with only_writer_in(folder):
            folder.rename(target)
        (target / LOCK_NAME).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be moved to {kept} ({error.strerror}); move it by hand") from None
