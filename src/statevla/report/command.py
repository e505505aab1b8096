"""The `report` command, and the function behind it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from statevla.config import expand_path
from statevla.errors import UserError
from statevla.report.page import build_page
from statevla.report.sources import find_sources


@dataclass(frozen=True)
class ReportArgs:
    folders: tyro.conf.Positional[Annotated[list[str], tyro.conf.arg(metavar="FOLDER ...")]]
    """Folders of runs, evaluations, rollouts or a demo; what lies below them is found."""
    out: str | None = None
    """HTML file; `report.html` in the first folder by default."""
    title: str = "StateVLA report"
    """Heading of the page."""


def report(args: ReportArgs) -> int:
    """Write one self-contained HTML page: curves, offline evaluation, probes, success in simulation, videos."""
    if not args.folders:
        raise UserError("report: expected at least one folder; give the folder of a run, of a demo, or of rollouts")
    folders = [expand_path(folder) for folder in args.folders]
    print(write_report(folders, expand_path(args.out) if args.out else folders[0] / "report.html", args.title))
    return 0


def write_report(folders: Sequence[Path], out: Path, title: str = "StateVLA report") -> Path:
    """Write the page; pictures, charts and videos are inside it.

    Raises:
        UserError: nothing to show, a damaged file, or `out` cannot be written.
    """
    text = build_page(find_sources(folders), title)
    part = out.with_name(out.name + ".part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, out)
    except OSError as error:
        raise UserError(f"report {out}: cannot be written ({error.strerror}); choose another --out") from None
    return out
