"""What a collection knows of its tasks: which episodes are there, which are needed next, and what becomes of them.

Each finished episode is a file of its own below `.parts/` in the output folder until all episodes of its task are
there; then they are joined.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from statevla.errors import UserError
from statevla.machine.storage import write_json
from statevla.worlds.demo_file import EpisodeRecord, join_episodes, stored_episodes, stored_settings

PARTS = ".parts"
_MAX_FAILURES_PER_DEMO = 3


class NamedTask(Protocol):
    """What the collector knows of a task."""

    @property
    def index(self) -> int:
        """Number in its suite."""

    @property
    def name(self) -> str:
        """Begins the name of its file."""


class Recorder(Protocol):
    """Makes the episodes of one task, in a worker process."""

    def record(self, index: int) -> EpisodeRecord | None:
        """Episode number `index`, a pure function of recipe, task and number; None where it failed."""

    def close(self) -> None:
        """Free the world."""


class Recipe(Protocol):
    """What is collected: sent to the worker processes, and stored with the episodes as what they depend on."""

    @property
    def kind(self) -> str:
        """How files of such episodes end: `<task>_<kind>.hdf5`."""

    @property
    def worker_gb(self) -> float:
        """Memory that a worker takes."""

    def as_dict(self) -> dict[str, Any]:
        """All that the episodes of a task depend on, plain values."""

    def defaults(self) -> dict[str, Any]:
        """What earlier files mean that lack a key of `as_dict`."""

    def prepare(self) -> None:
        """Find out in the main process what is missing here; a UserError says it."""

    def tasks(self) -> Sequence[NamedTask]:
        """Of the suite, in order."""

    def open(self, index: int) -> Recorder:
        """What makes the episodes of task number `index`."""

    def file_attributes(self, index: int) -> dict[str, Any]:
        """Attributes of the `data` group of a task's file."""


@dataclass
class TaskProgress:
    """Which episodes of a task exist.

    Attributes:
        task: the task.
        wanted: number of episodes to keep.
        file: the joined file.
        parts: folder of single episodes.
        share: the episodes that this process makes; None: all that are needed.
        kept: episode index → file and group.
        failed: indices of failed episodes.
        running: indices under way.
    """

    task: NamedTask
    wanted: int
    file: Path
    parts: Path
    share: set[int] | None = None
    kept: dict[int, tuple[Path, str]] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)

    def scan(self) -> None:
        """Find the episodes of earlier runs and of other processes."""
        self.kept, self.failed = {}, set()
        if self.file.is_file():
            groups, failed = stored_episodes(self.file)
            self.kept = {index: (self.file, group) for index, group in groups.items()}
            self.failed = set(failed)
        self.scan_parts()

    def scan_parts(self) -> None:
        """Find the single episodes."""
        for path in self.parts.glob("episode_*.hdf5"):
            self.kept[int(path.stem.removeprefix("episode_"))] = (path, "episode")
        for path in self.parts.glob("episode_*.failed"):
            self.failed.add(int(path.stem.removeprefix("episode_")))

    def missing(self) -> list[int]:
        """The next episodes, in order, that are needed whatever becomes of them.

        The kept episodes are the first `wanted` successes in the order of their indices, so that the result does not
        depend on who was quicker; nor does how far a task is tried on which the expert fails too often.
        """
        count = min(self.wanted - len(self.kept), _MAX_FAILURES_PER_DEMO * self.wanted + 11 - len(self.failed))
        untried = (index for index in itertools.count() if index not in self.kept and index not in self.failed)
        return list(itertools.islice(untried, max(count, 0)))

    def todo(self) -> list[int]:
        """Those of the missing episodes, in order, that this process is to make and has not begun."""
        mine = self.missing() if self.share is None else sorted(self.share - self.kept.keys() - self.failed)
        return [index for index in mine if index not in self.running]

    def first(self) -> list[int]:
        """Indices of the episodes that are kept in the end."""
        return sorted(self.kept)[: self.wanted]

    @property
    def is_complete(self) -> bool:
        """Whether there are enough episodes, or the expert fails too often to go on."""
        return not self.running and not self.missing()

    def part(self, index: int) -> Path:
        """File of a single episode."""
        return self.parts / f"episode_{index:05d}.hdf5"

    def join(self, recipe: Recipe) -> None:
        """Write the task's file from the episodes, and remove the single ones."""
        first = self.first()
        if first and [self.kept[index][0] for index in first] != [self.file] * len(first):
            failed = sorted(index for index in self.failed if index < first[-1])
            join_episodes(self.file, recipe.file_attributes(self.task.index), [self.kept[i] for i in first], failed)
            self.kept = {index: (self.file, f"data/demo_{number}") for number, index in enumerate(first)}
        shutil.rmtree(self.parts, ignore_errors=True)


def open_task(task: NamedTask, num_demos: int, out: Path, recipe: Recipe) -> TaskProgress:
    """What there is of a task in the output folder, where its settings are noted.

    Raises:
        UserError: its episodes were collected with other settings.
    """
    settings = json.loads(json.dumps(recipe.as_dict()))
    file = out / f"{task.name}_{recipe.kind}.hdf5"
    parts = out / PARTS / task.name
    parts.mkdir(parents=True, exist_ok=True)
    record = parts / "settings.json"
    before = stored_settings(file) if file.is_file() else json.loads(record.read_text()) if record.is_file() else None
    # Files of before there was a choice were collected as is the default now.
    theirs = None if before is None else recipe.defaults() | before
    if theirs is not None and theirs != settings:
        changed = ", ".join(key for key in {**theirs, **settings} if settings.get(key) != theirs.get(key))
        raise UserError(
            f"{out}: episodes of '{task.name}' were collected with another {changed}; "
            "use the same settings, or another --out folder"
        )
    if not record.is_file():
        write_json(record, settings, "free space or choose another --out folder")
    job = TaskProgress(task, num_demos, file, parts)
    job.scan()
    return job
