"""Where numbers of a run go: the terminal, `log.jsonl`, TensorBoard, Weights & Biases. Only the main process writes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from statevla.checkpoints.checkpoint import LAST
from statevla.errors import UserError
from statevla.machine.extras import install_line, missing
from statevla.machine.storage import whole_folder, write_all, write_text, writing
from statevla.training.tensorboard import EventFile

LOG_FILE, TENSORBOARD = "log.jsonl", "tensorboard"


class RunLog:
    """Writes the records of one run.

    Args:
        folder: of the run.
        title: of the progress bar.
        total_steps: optimizer steps of the whole run.
        first_step: 0, or the step that a resumed run continues from; later records are dropped, they will come anew.
        settings: the configuration, for W&B.
        wandb: `off`, `offline` or `online`.
        enabled: False makes everything a no-op (other processes than the main one).
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        total_steps: int,
        first_step: int,
        settings: Mapping[str, Any],
        wandb: str = "off",
        enabled: bool = True,
    ) -> None:
        self.enabled, self.total_steps = enabled, total_steps
        self._console = Console(quiet=not enabled)
        self._step, self._since = first_step, time.monotonic()
        if not enabled:
            return
        self._folder = folder
        path = folder / LOG_FILE
        with self._writing(path):
            write_text(path, "".join(_records_until(path, first_step)))
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        with self._writing(folder / TENSORBOARD):
            self._tensorboard = None if missing("tensorboard") else EventFile(folder / TENSORBOARD, first_step)
        self._wandb = _start_wandb(folder, wandb, settings) if wandb != "off" else None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        more = (TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        self._progress = Progress(*columns, *more, console=self._console, disable=not self._console.is_terminal)
        self._task = self._progress.add_task(title, total=total_steps, completed=first_step, note="")
        self._progress.start()
        for extra, what in (("tensorboard", "TensorBoard"), ("plots", "pictures")):
            if missing(extra):
                self.say(f"no {what}, {LOG_FILE} has the numbers; for more: {install_line(extra)}")

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write scalars of `kind` (train, validation, ...) at `step`; other values go to the JSON lines only."""
        if not self.enabled:
            return
        entry = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        with self._writing(self._folder / LOG_FILE):
            write_all(self._file, json.dumps(_jsonable(entry)).encode() + b"\n")
        scalars = {f"{kind}/{key}": value for key, value in values.items() if isinstance(value, int | float)}
        if scalars and self._tensorboard is not None:
            with self._writing(self._folder / TENSORBOARD):
                self._tensorboard.add_scalars(scalars, step)
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)

    def progress(self, step: int, values: Mapping[str, float], samples_per_step: int) -> None:
        """Record a training step and show it: the bar on a terminal, a plain line elsewhere."""
        now = time.monotonic()
        rate = (step - self._step) * samples_per_step / max(now - self._since, 1e-9)
        left = (self.total_steps - step) * samples_per_step / max(rate, 1e-9)
        self._step, self._since = step, now
        if not self.enabled:
            return
        self.record("train", step, {**values, "samples_per_s": rate})
        shown = " ".join(f"{key} {value:.4g}" for key, value in values.items() if key != "learning_rate")
        note = f"{shown} | {rate:.0f} samples/s"
        self._progress.update(self._task, completed=step, note=note)
        if self._progress.disable:
            self.say(f"step {step}/{self.total_steps} {note}, {timedelta(seconds=round(left))} left")

    def pause_clock(self) -> None:
        """Do not count the time since the last step (validation, saving) as training."""
        self._since = time.monotonic()

    def close(self) -> None:
        if self.enabled:
            self._progress.stop()
            if self._tensorboard is not None:
                self._tensorboard.close()
            self._file.close()
            if self._wandb is not None:
                self._wandb.finish()

    def _writing(self, path: Path) -> contextlib.AbstractContextManager[None]:
        """Turn failures of writing into an error that says what of the run is safe."""
        if whole_folder(self._folder / LAST) is None:
            return writing(path, "no checkpoint was written yet; make room, and start again")
        return writing(path, f"the last checkpoint in {self._folder} is intact; make room, and go on with --resume")


def _records_until(path: Path, step: int) -> list[str]:
    """Lines of an older log up to `step`; a line cut short by a kill is dropped."""
    if step == 0 or not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step and line.endswith("\n"):
                kept.append(line)
        except (ValueError, KeyError):
            continue
    return kept


def _start_wandb(folder: Path, mode: str, settings: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"training.wandb is '{mode}' but wandb is absent; pip install 'statevla[wandb]' or set training.wandb=off"
        ) from None
    os.environ.setdefault("WANDB_SILENT", "true")
    return wandb.init(project="statevla", name=folder.name, dir=str(folder), mode=mode, config=dict(settings))


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return float(f"{value:.8g}") if isinstance(value, float) else value
