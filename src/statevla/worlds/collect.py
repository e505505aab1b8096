"""Collect demonstrations in worker processes: resumable, and the same whatever the number of workers.

Each finished episode is a file of its own below `.parts/` in the output folder until all episodes of its task are
there; then they are joined. A run that is killed loses the episodes that were under way and no more.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from statevla.errors import UserError
from statevla.machine.lock import only_writer_in
from statevla.machine.storage import write_json
from statevla.worlds.child_process import ChildProcess, Died, Failed, with_answers
from statevla.worlds.demo_file import EpisodeRecord, join_episodes, stored_episodes, stored_settings, write_episode
from statevla.worlds.task_indices import check_index

_PARTS = ".parts"
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
        kept: episode index → file and group.
        failed: indices of failed episodes.
        running: indices under way.
    """

    task: NamedTask
    wanted: int
    file: Path
    parts: Path
    kept: dict[int, tuple[Path, str]] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)

    def scan(self) -> None:
        """Find the episodes of earlier runs."""
        if self.file.is_file():
            groups, failed = stored_episodes(self.file)
            self.kept = {index: (self.file, group) for index, group in groups.items()}
            self.failed = set(failed)
        for path in self.parts.glob("episode_*.hdf5"):
            self.kept[int(path.stem.removeprefix("episode_"))] = (path, "episode")
        for path in self.parts.glob("episode_*.failed"):
            self.failed.add(int(path.stem.removeprefix("episode_")))

    def next_index(self) -> int | None:
        """The lowest episode index that is still needed, or None.

        The kept episodes are the first `wanted` successes in the order of their indices, so that the result does not
        depend on which worker was quicker.
        """
        if self.hopeless or len(self.first()) + len(self.running) >= self.wanted:
            return None
        taken = self.kept.keys() | self.failed | self.running
        return next(index for index in range(len(taken) + 1) if index not in taken)

    def first(self) -> list[int]:
        """Indices of the episodes that are kept in the end."""
        return sorted(self.kept)[: self.wanted]

    @property
    def complete(self) -> bool:
        return not self.running and (self.hopeless or len(self.kept) >= self.wanted)

    @property
    def hopeless(self) -> bool:
        """Whether the expert fails too often to go on."""
        return len(self.failed) > _MAX_FAILURES_PER_DEMO * self.wanted + 10

    def join(self, recipe: Recipe) -> None:
        """Write the task's file from the episodes, and remove the single ones."""
        first = self.first()
        if first and [self.kept[index][0] for index in first] != [self.file] * len(first):
            failed = sorted(index for index in self.failed if index < first[-1])
            join_episodes(self.file, recipe.file_attributes(self.task.index), [self.kept[i] for i in first], failed)
        shutil.rmtree(self.parts, ignore_errors=True)


@dataclass(frozen=True)
class TaskSummary:
    """What a task's file holds after a collection: what was asked for, or more from an earlier one."""

    task: NamedTask
    file: Path
    num_demos: int
    num_failed: int


def collect(
    recipe: Recipe,
    task_indices: list[int],
    num_demos: int,
    out: Path,
    num_workers: int = 1,
    console: Console | None = None,
) -> list[TaskSummary]:
    """Collect episodes of several tasks into `out`, one HDF5 file per task.

    Args:
        recipe: what the episodes depend on.
        task_indices: tasks of the suite.
        num_demos: successful episodes per task.
        out: output folder; episodes that are there already are kept.
        num_workers: worker processes, each with one world (LIBERO's take about 1.8 GB).
        console: where progress is shown.

    Raises:
        UserError: the folder holds episodes collected with other settings, another process collects into it, or a
            worker died.
    """
    if num_demos < 1 or num_workers < 1:
        raise UserError(f"expected at least one demo and one worker, got {num_demos} and {num_workers}; raise them")
    recipe.prepare()
    with only_writer_in(out, "choose another --out folder"):
        return _collect(recipe, task_indices, num_demos, out, num_workers, console or Console())


def _collect(
    recipe: Recipe, task_indices: list[int], num_demos: int, out: Path, num_workers: int, console: Console
) -> list[TaskSummary]:
    tasks = recipe.tasks()
    jobs = [
        _open_task(tasks[check_index(index, len(tasks), "collected here")], num_demos, out, recipe)
        for index in task_indices
    ]
    with _progress(console) as progress:
        bar = progress.add_task("episodes", total=num_demos * len(jobs), completed=sum(len(j.first()) for j in jobs))
        for _ in _run(jobs, recipe, num_workers):
            progress.update(bar, completed=sum(len(job.first()) for job in jobs))
    if (out / _PARTS).is_dir() and not any((out / _PARTS).iterdir()):
        (out / _PARTS).rmdir()
    return [TaskSummary(job.task, job.file, _num_stored(job.file), len(job.failed)) for job in jobs]


def _num_stored(file: Path) -> int:
    return len(stored_episodes(file)[0]) if file.is_file() else 0


def summary_table(summaries: list[TaskSummary]) -> Table:
    """A table of what was collected."""
    table = Table("task", "demos", "failed attempts", "file")
    for summary in summaries:
        table.add_row(summary.task.name, str(summary.num_demos), str(summary.num_failed), summary.file.name)
    return table


def _open_task(task: NamedTask, num_demos: int, out: Path, recipe: Recipe) -> TaskProgress:
    settings = json.loads(json.dumps(recipe.as_dict()))
    file = out / f"{task.name}_{recipe.kind}.hdf5"
    parts = out / _PARTS / task.name
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
    write_json(record, settings, "free space or choose another --out folder")
    job = TaskProgress(task, num_demos, file, parts)
    job.scan()
    return job


def _run(jobs: list[TaskProgress], recipe: Recipe, num_workers: int) -> Iterator[None]:
    """Hand out episodes until all tasks are complete; yields after each episode."""
    for job in jobs:
        if job.complete:
            job.join(recipe)
    missing = sum(max(job.wanted - len(job.kept), 0) for job in jobs)
    if not missing:
        return
    with _workers(min(num_workers, missing), recipe) as workers:
        at: dict[ChildProcess, tuple[TaskProgress, int]] = {}
        idle = list(workers)
        last: dict[ChildProcess, TaskProgress] = {}
        while True:
            for worker in list(idle):
                chosen = _choose(jobs, last.get(worker), list(last.values()))
                if chosen is None:
                    break
                index = chosen.next_index()
                assert index is not None
                chosen.running.add(index)
                worker.send((chosen.task.index, index, chosen.parts))
                idle.remove(worker)
                at[worker], last[worker] = (chosen, index), chosen
            if not at:
                return
            for worker in with_answers(list(at)):
                job, index = at.pop(worker)
                _note(worker.receive(), job, index)
                idle.append(worker)
                if job.complete:
                    job.join(recipe)
                yield


def _choose(jobs: list[TaskProgress], mine: TaskProgress | None, busy: list[TaskProgress]) -> TaskProgress | None:
    """The task a worker goes on with: its own, else one that nobody has, else any (an environment takes seconds)."""
    open_jobs = [job for job in jobs if job.next_index() is not None]
    if mine in open_jobs:
        return mine
    return next((job for job in open_jobs if job not in busy), open_jobs[0] if open_jobs else None)


def _note(answer: bool | Failed | Died, job: TaskProgress, index: int) -> None:
    """What became of an episode: whether it succeeded, or an error to raise."""
    if isinstance(answer, Died):
        raise UserError(
            f"{answer.message} in episode {index} of '{job.task.name}'; finished episodes are kept: run the same "
            "command again, with fewer --workers if memory ran out"
        )
    if isinstance(answer, Failed):
        if answer.is_user_error:
            raise UserError(answer.message)
        raise RuntimeError(f"episode {index} of '{job.task.name}' failed in its worker:\n{answer.details}")
    job.running.discard(index)
    if answer:
        job.kept[index] = (_part(job.parts, index), "episode")
    else:
        job.failed.add(index)


def _part(folder: Path, index: int) -> Path:
    return folder / f"episode_{index:05d}.hdf5"


@contextmanager
def _workers(count: int, recipe: Recipe) -> Iterator[list[ChildProcess]]:
    """Worker processes, ended with the block."""
    workers: list[ChildProcess] = []
    try:
        for number in range(count):
            workers.append(ChildProcess(f"collector {number}", _Collector, recipe))
        yield workers
    finally:
        for worker in workers:
            worker.close()


class _Collector:
    """In a worker: episodes of one task after another."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._recorder: Recorder | None = None
        self._task_index: int | None = None

    def handle(self, message: tuple[int, int, Path]) -> bool:
        """Make episode `index` of a task and write it into a folder; whether it succeeded."""
        task_index, index, folder = message
        if self._recorder is None or self._task_index != task_index:
            if self._recorder is not None:
                self._recorder.close()
                self._recorder = None
            self._recorder, self._task_index = self._recipe.open(task_index), task_index
        record = self._recorder.record(index)
        if record is None:
            _part(folder, index).with_suffix(".failed").touch()
            return False
        write_episode(_part(folder, index), record)
        return True


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        yield progress
