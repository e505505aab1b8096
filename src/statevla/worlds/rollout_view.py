"""What a person sees of an evaluation: progress while it runs, the table at its end, videos and contact sheet."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from statevla.machine.storage import writing
from statevla.report.page import rate_cells
from statevla.worlds.rollout_plan import EpisodeSpec
from statevla.worlds.rollout_results import KEPT_FIX, EpisodeResult

PLAIN_INTERVAL_S = 15.0


class RolloutProgress:
    """A bar with the running success rate; plain lines where the output is no terminal; nothing without a console."""

    def __init__(self, console: Console | None, num_episodes: int) -> None:
        self._console, self._num_episodes = console, num_episodes
        self._done = self._successes = self._errors = 0
        self._last_line = self._started = time.monotonic()
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
            )

    def __enter__(self) -> RolloutProgress:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("rollout", total=self._num_episodes)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def episode_done(self, result: EpisodeResult) -> None:
        self._done += 1
        self._successes += bool(result.success)
        self._errors += result.success is None
        judged = self._done - self._errors
        text = f"success {self._successes}/{judged}" + (f" ({self._successes / judged:.0%})" if judged else "")
        text += f", {self._errors} errors" if self._errors else ""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=text)
        elif now - self._last_line > PLAIN_INTERVAL_S or self._done == self._num_episodes:
            self._last_line = now
            per_hour = 3600 * self._done / max(now - self._started, 1e-9)
            self.say(f"{self._done}/{self._num_episodes} episodes, {text}, {per_hour:.0f} episodes/h")

    def say(self, text: str) -> None:
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False)


class VideoShelf:
    """Which episodes get a video: the first successes and the first failures of every task, `num_videos` of each."""

    def __init__(self, folder: Path, num_videos: int) -> None:
        self._folder, self._num_videos = folder, num_videos
        self._taken: dict[tuple[int, bool], set[int]] = {}
        for task, trial, success, _ in self._strips():
            self._taken.setdefault((task, success), set()).add(trial)

    def may_want(self, episode: EpisodeSpec) -> bool:
        """Whether there is room for this episode, as a success or as a failure."""
        return any(self._has_room(episode.task.index, success) for success in (True, False))

    def claim(self, episode: EpisodeSpec, success: bool) -> tuple[Path, Path] | None:
        """Where to write video and strip of an episode that has ended; None if it gets none."""
        if not self._has_room(episode.task.index, success):
            return None
        self._taken.setdefault((episode.task.index, success), set()).add(episode.trial)
        name = f"task{episode.task.index:02d}_trial{episode.trial:03d}_{'success' if success else 'failure'}"
        return self._folder / "videos" / f"{name}.mp4", self._folder / "videos" / f"{name}.png"

    def write_contact_sheet(self, results: Mapping[tuple[int, int], EpisodeResult]) -> None:
        """Every episode that has a strip, task by task.

        Raises:
            UserError: the disk does not take it.
        """
        rows = [
            (f"{results[task, trial].instruction} (task {task}, trial {trial})", success, path)
            for task, trial, success, path in self._strips()
            if (task, trial) in results
        ]
        if not rows:
            return
        from statevla.worlds.video import contact_sheet  # needs the extra `video`

        sheet = self._folder / "contact_sheet.png"
        with writing(sheet, KEPT_FIX):
            contact_sheet(rows, sheet)

    def _has_room(self, task: int, success: bool) -> bool:
        return len(self._taken.get((task, success), ())) < self._num_videos

    def _strips(self) -> list[tuple[int, int, bool, Path]]:
        """(task, trial, success, PNG) of every episode filmed so far."""
        found = []
        for path in sorted((self._folder / "videos").glob("task*_trial*_*.png")):
            task, trial, outcome = path.stem.split("_")
            found.append((int(task.removeprefix("task")), int(trial.removeprefix("trial")), outcome == "success", path))
        return found


def results_table(summary: Mapping[str, Any]) -> Table:
    """Success per task with its interval; `steps` are the mean control steps of successes."""
    table = Table(title=f"{summary['settings']['task_suite']}: success in simulation")
    table.add_column("task")
    table.add_column("instruction")
    for column in ("success", "rate", "95 % interval", "steps", "errors"):
        table.add_column(column, justify="right", no_wrap=True)
    for task in summary["tasks"]:
        table.add_row(str(task["task"]), task["instruction"], *rate_cells(task))
    table.add_section()
    table.add_row("all", "", *rate_cells(summary["total"]))
    return table
