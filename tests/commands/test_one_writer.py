"""Where another command writes, a second one is refused before it writes anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("gymnasium")

import toy_worlds
from statevla.commands.eval import EvalArgs, offline
from statevla.commands.report import ReportArgs, report
from statevla.commands.share import ShareArgs, share
from statevla.config import Config
from statevla.errors import UserError
from statevla.machine.lock import only_writer_in, only_writer_of
from statevla.worlds.evaluate import RolloutArgs, evaluate
from toy_worlds import DOT
from untrained_policy import save_untrained

POLICY = "libero_object_compact"


@pytest.fixture
def dot(tiny_config: Config, tmp_path: Path) -> str:
    texts = [toy_worlds.INSTRUCTION, *(task.instruction for task in toy_worlds.DotSuite().tasks)]
    return str(save_untrained(tiny_config, DOT, texts, tmp_path / "dot"))


def refused(command: Callable[[], object], out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.parent.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=rf"{out}: process {os.getpid()} on .* is writing here; wait until it ends"):
        command()
    assert {path: path.stat().st_mtime_ns for path in out.parent.rglob("*") if path.is_file()} == before


def test_results_folders(dot: str, tmp_path: Path) -> None:
    out = tmp_path / "results" / "folder"
    with only_writer_in(out):
        refused(lambda: offline(EvalArgs(POLICY, out=str(out))), out)
        refused(lambda: evaluate(RolloutArgs(dot, "toy_worlds:DotSuite", out=str(out), num_workers=1)), out)


def test_what_is_put_in_place_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "results" / "copy"
    with only_writer_of(out):
        refused(lambda: share(ShareArgs(POLICY, str(out))), out)
        refused(lambda: report(ReportArgs([str(tmp_path)], out=str(out))), out)
