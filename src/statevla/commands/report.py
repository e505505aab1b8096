"""`statevla report`: everything that a run left behind, on one self-contained HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from statevla.config import expand_path
from statevla.errors import UserError
from statevla.machine.extras import require
from statevla.report.page import write_report


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
    require("report", "plots")
    folders = [expand_path(folder) for folder in args.folders]
    print(write_report(folders, expand_path(args.out) if args.out else folders[0] / "report.html", args.title))
    return 0
