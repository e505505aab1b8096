"""The pages build, are current, and every command in them is one that exists, with flags that exist.

Commands that need hours, a GPU, a robot or a hub are parsed by the very parser that would run them; each command of
`statevla` is really executed by the test named in `EXECUTED_BY`, or here.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from command_lines import ROOT, check
from statevla.commands.table import COMMANDS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("packages/*/README.md"))]
EXECUTED_BY = {
    "demo": "commands/test_demo.py",
    "doctor": "commands/test_doctor.py",
    "info": "commands/test_cli.py",
    "collect": "worlds/test_collect.py",
    "replay": "worlds/libero/test_sim_collect.py",
    "data inspect": "test_docs.py",
    "data convert": "test_docs.py",
    "data draw": "worlds/robosuite/test_replay.py",
    "data cache": "data/test_frame_cache.py",
    "train": "machine/test_processes.py",
    "eval": "diagnostics/test_offline.py",
    "probe": "diagnostics/test_object_surprise.py",
    "rollout": "worlds/test_own_world.py",
    "calibrate": "diagnostics/test_calibrate.py",
    "report": "report/test_report.py",
    "view": "commands/test_view.py",
    "share": "checkpoints/test_share.py",
    "serve": "serving/test_serve_command.py",
}


def commands_of(page: Path) -> list[str]:
    """Commands in the shell blocks of a page, one string each."""
    blocks = re.findall(r"^```(?:bash|console|sh)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    parts: list[list[str]] = []
    for line in words:
        rest = line
        while "&&" in rest:
            parts.append(rest[: rest.index("&&")])
            rest = rest[rest.index("&&") + 1 :]
        parts.append(rest)
    return [shlex.join(part) for part in parts if part]


CASES = sorted({(page.relative_to(ROOT).as_posix(), command) for page in PAGES for command in commands_of(page)})


@pytest.mark.parametrize(("page", "command"), CASES)
def test_documented_commands_parse(page: str, command: str) -> None:
    try:
        name = check(shlex.split(command))
    except SystemExit as error:
        pytest.fail(f"{page}: '{command}' is refused (status {error.code})")
    if name is not None:
        assert name in EXECUTED_BY, f"{page}: no test executes 'statevla {name}'"


def test_every_command_is_executed_by_a_test() -> None:
    assert set(EXECUTED_BY) == set(COMMANDS)
    for name, file in EXECUTED_BY.items():
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert name.split()[-1] in source, f"{file} does not mention '{name}'"


@pytest.mark.parametrize("wrong", ["statevla collect --demoes 50", "python train.py --training.phase1.batchsize 8"])
def test_a_wrong_flag_would_be_found(wrong: str) -> None:
    from statevla.errors import UserError

    with pytest.raises((SystemExit, UserError)):
        check(shlex.split(wrong))


def test_commands_on_data_run_as_documented(libero_dir: Path, tmp_path: Path) -> None:
    shown = [command for _, command in CASES if command.startswith("statevla data inspect PATH")]
    assert shown
    target = str(tmp_path / "lerobot")
    for command in (*shown, f"statevla data convert PATH {target} --to lerobot"):
        words = [str(libero_dir) if word == "PATH" else word for word in shlex.split(command)]
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "lerobot" / "meta" / "info.json").is_file()


@pytest.mark.parametrize("script", ["api_reference", "config_reference"])
def test_generated_pages_are_current(script: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pages_build_strictly(tmp_path: Path) -> None:
    """Every link and every page of the navigation exists."""
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for page in (ROOT / "docs").glob("*.md"):
        built = tmp_path / "site" / ("index.html" if page.stem == "index" else f"{page.stem}/index.html")
        assert built.is_file()
