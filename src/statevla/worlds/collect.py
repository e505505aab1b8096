"""Collect demonstrations in worker processes: resumable, and the same whatever the number of workers and of processes.

A run that is killed loses the episodes that were under way and no more. Under `torchrun` each process makes a share of
the episodes, in a folder that all of them see; the main one joins them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from statevla.errors import UserError
from statevla.machine.capacity import num_processes
from statevla.machine.lock import only_writer_in
from statevla.machine.processes import Processes, join_processes
from statevla.machine.storage import write_text
from statevla.worlds.child_process import ChildProcess, Died, Failed, with_answers
from statevla.worlds.collect_tasks import PARTS, NamedTask, Recipe, Recorder, TaskProgress, open_task
from statevla.worlds.demo_file import stored_episodes, write_episode
from statevla.worlds.task_indices import check_index

_FIX = "choose another --out folder"


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
        num_workers: worker processes, each with one world; 0: one per core, as far as there is memory for them.
        console: where progress is shown.

    Returns:
        What there is of each task; nothing in processes of `torchrun` other than the first.

    Raises:
        UserError: the folder holds episodes collected with other settings, another process collects into it, or an
            episode or its worker ended in an error.
    """
    if num_demos < 1 or num_workers < 0:
        raise UserError(f"expected at least one demo, and no fewer workers than 0, got {num_demos} and {num_workers}")
    recipe.prepare()
    tasks = recipe.tasks()
    chosen = [tasks[check_index(index, len(tasks), "collected here")] for index in task_indices]
    with (
        join_processes(torch.device("cpu")) as (processes, device),
        processes.main_holds(only_writer_in(out, _FIX), device),
    ):
        num_workers = num_workers or num_processes(recipe.worker_gb, processes.local_world_size)
        jobs = _open_tasks(chosen, num_demos, out, recipe, processes)
        with _progress((console or Console()) if processes.is_main else None) as progress:
            bar = progress.add_task("episodes", total=num_demos * len(jobs))
            while _share_out(jobs, processes):
                progress.update(bar, completed=_num_kept(jobs))
                for _ in _run(jobs, recipe, num_workers, joins=processes.world_size == 1):
                    progress.update(bar, completed=_num_kept(jobs))
                if processes.world_size == 1:
                    break  # what failed has been made up for
                processes.wait()
            progress.update(bar, completed=_num_kept(jobs))
        if not processes.is_main:
            return []
        for job in jobs:
            job.join(recipe)
        if (out / PARTS).is_dir() and not any((out / PARTS).iterdir()):
            (out / PARTS).rmdir()
        return [TaskSummary(job.task, job.file, _num_stored(job.file), len(job.failed)) for job in jobs]


def _open_tasks(
    tasks: list[NamedTask], num_demos: int, out: Path, recipe: Recipe, processes: Processes
) -> list[TaskProgress]:
    """By the main process first, which notes the settings."""
    jobs = [open_task(task, num_demos, out, recipe) for task in tasks] if processes.is_main else []
    processes.wait()
    return jobs or [open_task(task, num_demos, out, recipe) for task in tasks]


def _share_out(jobs: list[TaskProgress], processes: Processes) -> bool:
    """Agree on who makes which of the episodes that are needed next; whether there are any.

    What fails is made up for in a further round, so that no process makes an episode that may not be needed.
    """
    for job in jobs:
        job.scan()
    processes.wait()  # nobody may write before everybody has read
    missing = [(job, index) for job in jobs for index in job.missing()]
    if processes.world_size > 1:
        for job in jobs:
            job.share = set()
        for job, index in missing[processes.rank :: processes.world_size]:
            assert job.share is not None
            job.share.add(index)
    return bool(missing)


def _num_kept(jobs: list[TaskProgress]) -> int:
    """Of all processes."""
    for job in jobs:
        if job.share is not None:
            job.scan_parts()
    return sum(len(job.first()) for job in jobs)


def _num_stored(file: Path) -> int:
    return len(stored_episodes(file)[0]) if file.is_file() else 0


def summary_table(summaries: list[TaskSummary]) -> Table:
    """A table of what was collected."""
    table = Table("task", "demos", "failed attempts", "file")
    for summary in summaries:
        table.add_row(summary.task.name, str(summary.num_demos), str(summary.num_failed), summary.file.name)
    return table


def _run(jobs: list[TaskProgress], recipe: Recipe, num_workers: int, joins: bool) -> Iterator[None]:
    """Hand out this process's episodes until there are no more; yields after each episode.

    Args:
        jobs: the tasks.
        recipe: what the episodes depend on.
        num_workers: worker processes.
        joins: write a task's file as soon as its episodes are there.
    """
    with _workers(min(num_workers, sum(len(job.todo()) for job in jobs)), recipe) as workers:
        at: dict[ChildProcess, tuple[TaskProgress, int]] = {}
        idle = list(workers)
        last: dict[ChildProcess, TaskProgress] = {}
        while True:
            for worker in list(idle):
                chosen = _choose(jobs, last.get(worker), list(last.values()))
                if chosen is None:
                    break
                index = chosen.todo()[0]
                chosen.running.add(index)
                worker.send((chosen.task.index, index, chosen.part(index)))
                idle.remove(worker)
                at[worker], last[worker] = (chosen, index), chosen
            if not at:
                return
            for worker in with_answers(list(at)):
                job, index = at.pop(worker)
                _note(worker.receive(), job, index)
                idle.append(worker)
                if joins and job.is_complete:
                    job.join(recipe)
                yield


def _choose(jobs: list[TaskProgress], mine: TaskProgress | None, busy: list[TaskProgress]) -> TaskProgress | None:
    """The task a worker goes on with: its own, else one that nobody has, else any (an environment takes seconds)."""
    open_jobs = [job for job in jobs if job.todo()]
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
        traceback = job.part(index).with_suffix(".traceback")
        write_text(traceback, answer.details, _FIX)
        raise UserError(
            f"episode {index} of '{job.task.name}' ended in {answer.message} (where: {traceback}); finished episodes "
            "are kept: mend the world or its expert, and run the same command again"
        )
    job.running.discard(index)
    if answer:
        job.kept[index] = (job.part(index), "episode")
    else:
        job.failed.add(index)


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
        """Make episode `index` of a task and write it to a file; whether it succeeded."""
        task_index, index, part = message
        if self._recorder is None or self._task_index != task_index:
            if self._recorder is not None:
                self._recorder.close()
                self._recorder = None
            self._recorder, self._task_index = self._recipe.open(task_index), task_index
        record = self._recorder.record(index)
        if record is None:
            part.with_suffix(".failed").touch()
            return False
        write_episode(part, record)
        return True


@contextmanager
def _progress(console: Console | None) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, disable=console is None) as progress:
        yield progress
