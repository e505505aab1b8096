"""Results of an evaluation: one line per episode as it ends, the settings they belong to, and the summary.

A folder of results holds `settings.json`, `episodes.jsonl` (under torchrun `episodes.<rank>.jsonl`, one per process),
`summary.json`, `videos/` and `contact_sheet.png`. An interrupted evaluation continues in the same folder.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from statevla.errors import UserError
from statevla.machine.processor import processor_field
from statevla.machine.sealed import SEAL, check_seal, seal
from statevla.machine.storage import write_all, write_json, writing

CONFIDENCE = 0.95
RESULTS_FIX = "choose another --out"
KEPT_FIX = "finished episodes are kept; make room, and run the same command again"


@dataclass(frozen=True)
class EpisodeResult:
    """One finished episode, as `episodes.jsonl` holds it.

    Attributes:
        task, trial: name the episode.
        task_name, instruction, init_state_index, seed: what it was; no index where the seed drew the initial state.
        success: None where an error ended it.
        error: what went wrong with the simulator or its process; not the policy's failure.
        num_steps: control steps executed.
        num_attempts: 2 if its worker died once.
        setup_s, physics_s, render_s: what the worker's time went to; policy_s: this episode's share of the policy's.
        policy_ms: latency of each query, whatever its batch.
        surprise: at each query but the first (see `statevla.acting.alarm`); empty without a world model.
        novelty: at each query; empty where the checkpoint is not calibrated.
        alarm_step: control step of the query that first raised the surprise alarm; None where none did.
        novelty_alarm_step: the same of novelty.
        wall_s: from start to end.
    """

    task: int
    trial: int
    task_name: str
    instruction: str
    init_state_index: int | None
    seed: int
    success: bool | None
    error: str | None
    num_steps: int
    num_attempts: int
    wall_s: float
    setup_s: float = 0.0
    physics_s: float = 0.0
    render_s: float = 0.0
    policy_s: float = 0.0
    policy_ms: list[float] = field(default_factory=list)
    surprise: list[float] = field(default_factory=list)
    novelty: list[float] = field(default_factory=list)
    alarm_step: int | None = None
    novelty_alarm_step: int | None = None

    @property
    def key(self) -> tuple[int, int]:
        return self.task, self.trial


class EpisodeLog:
    """Appends results to a file, each one whole on the disk before the next begins."""

    def __init__(self, path: Path) -> None:
        with writing(path, RESULTS_FIX):
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_torn_line(path)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._path = path

    def append(self, result: EpisodeResult) -> None:
        """Write one result.

        Raises:
            UserError: the disk does not take it; the results before are safe.
        """
        with writing(self._path, KEPT_FIX):
            write_all(self._file, json.dumps(seal(asdict(result))).encode() + b"\n")
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_results(folder: Path) -> dict[tuple[int, int], EpisodeResult]:
    """All results in a folder by (task, trial); the last one counts, and a line cut short by a kill does not.

    Raises:
        UserError: a file holds something else.
    """
    found: dict[tuple[int, int], EpisodeResult] = {}
    for path in sorted(folder.glob("episodes*.jsonl")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            if number == len(lines) and not line.endswith("\n"):
                continue
            result = _read_episode(line, f"results {path}: line {number}")
            kept = found.get(result.key)
            if kept is None or kept.error is not None or result.error is None:
                found[result.key] = result
    return found


def _read_episode(line: str, source: str) -> EpisodeResult:
    """Of a line with its seal, or of one from before there were seals."""
    fix = "mend or delete the line, or choose another --out"
    try:
        values = json.loads(line)
        result = EpisodeResult(**{key: value for key, value in values.items() if key != SEAL})
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{source} is not an episode; {fix}") from None
    check_seal(values, source, fix, was_sealed=False)
    return result


def claim_folder(folder: Path, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Make a results folder, or check that the results in it come from the same settings.

    Args:
        folder: the folder.
        settings: what the results depend on.
        facts: what follows from the settings and is stored with them for readers; not compared.

    Raises:
        UserError: they do not; the first difference is named.
    """
    path = folder / "settings.json"
    wanted = json.loads(json.dumps(dict(settings)))
    if path.is_file():
        try:
            present = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"results {path}: not readable as JSON; choose another --out") from None
        for key in dict.fromkeys([*wanted, *present]):
            if key not in facts and present.get(key) != wanted.get(key):
                raise UserError(
                    f"results {folder}: were made with {key} = {present.get(key)!r}, now it is {wanted.get(key)!r}; "
                    "give the same settings to continue, or another --out"
                )
        return
    write_json(path, {**wanted, **facts}, RESULTS_FIX)


def success_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a success rate (Wilson 1927; Brown, Cai & DasGupta 2001)."""
    if not episodes:
        return 0.0, 1.0
    quantile = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    spread = quantile**2 / episodes
    rate = successes / episodes
    middle = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (rate * (1 - rate) + spread / 4)) / (1 + spread)
    # Exactly 0 and 1 at the ends, whatever the rounding.
    return 0.0 if successes == 0 else middle - half, 1.0 if successes == episodes else middle + half


def _told(episodes: Sequence[EpisodeResult]) -> str:
    """The instruction of a task's episodes, in words where they had several."""
    different = {episode.instruction for episode in episodes}
    return different.pop() if len(different) == 1 else f"{episodes[0].task_name}, {len(different)} instructions"


def summarize(results: Iterable[EpisodeResult], num_planned: int) -> dict[str, Any]:
    """Success per task and in total, with intervals; steps, latency, and what the time went to.

    Args:
        results: of the episodes asked for.
        num_planned: how many were asked for; the summary says whether all are there.
    """
    episodes = sorted(results, key=lambda result: result.key)
    by_task: dict[int, list[EpisodeResult]] = {}
    for result in episodes:
        by_task.setdefault(result.task, []).append(result)
    tasks = [
        {"task": index, "name": group[0].task_name, "instruction": _told(group), **_rates(group)}
        for index, group in by_task.items()
    ]
    latencies = np.array([ms for result in episodes for ms in result.policy_ms])
    kinds = ("setup", "physics", "render", "policy")
    spent = {kind: round(sum(getattr(result, f"{kind}_s") for result in episodes), 2) for kind in kinds}
    return {
        "complete": len(episodes) == num_planned,
        "planned": num_planned,
        "total": _rates(episodes),
        "tasks": tasks,
        "policy_latency_ms": _percentiles(latencies),
        "num_queries": len(latencies),
        "time_s": spent,
        "errors": [
            {"task": result.task, "trial": result.trial, "error": result.error} for result in episodes if result.error
        ],
    }


def summarize_alarms(results: Iterable[EpisodeResult], calibration: Mapping[str, Any]) -> dict[str, Any]:
    """In how many episodes the surprise alarm rose, among successes and among failures, and what it was set to.

    Args:
        results: of the episodes asked for; errors do not count.
        calibration: `Calibration.summary` and the `threshold` that held.
    """
    judged = [result for result in results if result.success is not None]
    raised = {
        name: [result.alarm_step is not None for result in judged if result.success is success]
        for name, success in (("successes", True), ("failures", False))
    }
    counts = {name: {"episodes": len(alarms), "alarms": sum(alarms)} for name, alarms in raised.items()}
    return {**calibration, **counts}


def machine_info() -> dict[str, Any]:
    """The machine that a result was made on."""
    return {"system": platform.platform(), "processor": processor_field("model name"), "num_cpus": os.cpu_count()}


def _rates(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    judged = [result for result in results if result.success is not None]
    successes = sum(bool(result.success) for result in judged)
    low, high = success_interval(successes, len(judged))
    steps = [result.num_steps for result in judged if result.success]
    return {
        "episodes": len(judged),
        "successes": successes,
        "success_rate": successes / len(judged) if judged else None,
        "interval_95": [low, high],
        "errors": len(results) - len(judged),
        "mean_steps_to_success": float(np.mean(steps)) if steps else None,
    }


def _percentiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    p50, p95 = np.percentile(values, (50, 95))
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that a kill left unfinished, so that the next one starts on its own."""
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
