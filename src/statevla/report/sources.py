"""Find and read the results that a page shows: training runs, offline evaluations, simulated evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statevla.config import EARLIER
from statevla.errors import UserError
from statevla.machine.sealed import check_seal
from statevla.machine.storage import check_own

_SKIPPED = {"training_state", "tensorboard", "frame_cache", "videos", EARLIER}


@dataclass(frozen=True)
class Run:
    """A training run: `info` is its `run.json`, `log` the records of `log.jsonl`."""

    folder: Path
    info: dict[str, Any]
    log: list[dict[str, Any]]

    @property
    def phase(self) -> str:
        return str(self.info.get("phase", "?"))

    def records(self, kind: str) -> list[dict[str, Any]]:
        return [entry for entry in self.log if entry.get("kind") == kind]


@dataclass(frozen=True)
class Tree:
    """A folder with one JSON file that says it all: `evaluation.json` or `summary.json`."""

    folder: Path
    values: dict[str, Any]


@dataclass(frozen=True)
class Sources:
    """All that was found, oldest first; `folders` are those that were looked through."""

    folders: list[Path]
    runs: list[Run]
    evaluations: list[Tree]
    rollouts: list[Tree]
    commands: list[tuple[str, float]]
    """Commands of a demo's stages, with the seconds they took."""


def find_sources(folders: Sequence[Path]) -> Sources:
    """Look through folders and what is below them.

    Raises:
        UserError: a folder is absent, a file is damaged or a link out of the folders, or there is nothing to show.
    """
    found = Sources(list(folders), [], [], [], [])
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"report {folder}: no such folder; give the folder of a run, of a demo, or of rollouts")
        for path in sorted(_json_files(folder), key=lambda file: file.stat().st_mtime):
            check_own(path, folders)
            if path.name == "run.json":
                found.runs.append(Run(path.parent, _read(path), _read_log(path.parent / "log.jsonl", folders)))
            elif path.name == "evaluation.json":
                found.evaluations.append(Tree(path.parent, _read(path)))
            elif path.name == "summary.json" and "settings" in (summary := _read(path)):
                found.rollouts.append(Tree(path.parent, summary))
            elif path.parent.name == "stages" and "command" in (mark := _read(path)):
                found.commands.append((str(mark["command"]), float(mark.get("seconds", 0.0))))
    if not (found.runs or found.evaluations or found.rollouts):
        names = ", ".join(map(str, folders))
        raise UserError(f"report {names}: nothing to show; expected run.json, evaluation.json or summary.json below it")
    return found


def read_episodes(folder: Path, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The lines of a simulated evaluation's `episodes*.jsonl`; none where only its summary is there.

    Raises:
        UserError: one is a link out of `folders`.
    """
    return [line for path in sorted(folder.glob("episodes*.jsonl")) for line in _read_log(path, folders)]


def _json_files(folder: Path) -> Iterable[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink() and entry.name not in _SKIPPED:
            yield from _json_files(entry)
        elif entry.suffix == ".json" and entry.is_file():
            yield entry


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"report {path}: not readable as JSON ({error}); delete it or make it anew") from None
    if not isinstance(tree, dict):
        return {}
    check_seal(tree, f"report {path}", "delete it or make it anew", was_sealed=False)
    return tree


def _read_log(path: Path, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Records of a log; the last line may be cut short where training still runs."""
    if not path.is_file():
        return []
    check_own(path, folders)
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict):
            continue
        check_seal(record, f"report {path}: line {number}", "mend or delete the line", was_sealed=False)
        records.append(record)
    return records
