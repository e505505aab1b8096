"""The environment of docs/worlds.md, as a third person would have it: a file of theirs, and the page's commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gymnasium")
pytest.importorskip("av")

from statevla.config import Config
from statevla.data import open_reader
from statevla.worlds.registry import open_suite
from untrained_policy import save_untrained

PAGE = Path(__file__).parents[2] / "docs" / "worlds.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the file of the page in it."""
    (code,) = blocks('python title="dot_world.py"')
    (tmp_path / "dot_world.py").write_text(code)
    return tmp_path


def call(*words: str, cwd: Path, path: Path | None = None) -> str:
    """A command in a process that finds the file by its folder or by `PYTHONPATH`."""
    environment = {**os.environ, "PYTHONPATH": "" if path is None else str(path)}
    # As the installed command does, and python -m does not, it starts without the current folder in sys.path.
    start = "import sys; sys.path.pop(0); from statevla.commands.table import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", start, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_collected_in_and_evaluated(folder: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    suite = open_suite("dot_world:DotWorld")
    save_untrained(tiny_config, suite.robot, [suite.tasks[0].instruction], folder / "run")
    world = ("--world", "dot_world:DotWorld")
    call("collect", *world, "--expert", "dot_world:expert", "--demos", "2", "--out", "demos", cwd=folder)
    with open_reader(folder / "demos") as reader:
        assert len(reader.episodes) == 2
        assert reader.robot.difference(suite.robot) is None
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    common = ("--checkpoint", str(folder / "run" / "checkpoint_best.pt"), *world, "--num_workers", "1")
    call("rollout", *common, "--num_trials", "2", "--videos", "1", "--out", "results", cwd=elsewhere, path=folder)
    summary = json.loads((elsewhere / "results" / "summary.json").read_text())
    assert summary["complete"]
    assert summary["total"]["episodes"] == 2
    assert list(elsewhere.glob("results/videos/*.mp4"))
    call("report", "results", "--out", "report.html", cwd=elsewhere)
    page = (elsewhere / "report.html").read_text()
    assert "dot_world:DotWorld" in page
    assert "move the red dot onto the green square" in page


def test_the_file_is_short() -> None:
    (code,) = blocks('python title="dot_world.py"')
    environment, _, expert = code.partition("def expert")
    assert len(environment.splitlines()) < 45
    assert len(expert.splitlines()) < 6


@pytest.mark.slow
def test_the_page_is_right_about_python(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("libero")
    monkeypatch.chdir(PAGE.parents[1])
    (code,) = [block for block in blocks("python") if "make_world(" in block]
    names: dict = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert capsys.readouterr().out.splitlines()[-1] == "done"
    seen, _ = names["env"].reset(seed=0)
    assert names["env"].observation_space.contains(seen)
    names["env"].close()
