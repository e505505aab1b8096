"""The pages build, are current, and name only what exists: commands, flags, files and symbols.

Documented commands are parsed by the very parser that would run them; `test_documented_way.py` runs them.
"""

from __future__ import annotations

import importlib
import operator
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro

from command_lines import ROOT, check
from statevla.commands.table import COMMANDS, main
from statevla.config import load_config
from statevla.errors import UserError

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("packages/*/README.md"))]


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
        check(shlex.split(command))
    except SystemExit as error:
        pytest.fail(f"{page}: '{command}' is refused (status {error.code})")
    except UserError as error:
        # A record says what ran at its commit; a key or a preset may be gone since.
        if page != "docs/experiments.md" or not re.search("unknown key|no such file", str(error)):
            raise
        pytest.skip(str(error))


def undocumented(help_text: str) -> list[str]:
    """Flags of a printed help that have no text but their default."""
    entries: list[list[str]] = []
    for line in (raw.strip("│| ") for raw in help_text.splitlines()):
        if re.match("--?[a-z]", line):
            entries.append([line])
        elif entries and re.match(r"\w|[^\w\s─╰-]", line):
            entries[-1].append(line)
    bare = []
    for first, *more in entries:
        flag, *text = re.split(r"\s{2,}", first, maxsplit=1)
        if not re.sub(r"\((default|required|repeatable)\b[^()]*\)", "", " ".join([*text, *more])).strip():
            bare.append(flag)
    return bare


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_flag(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "argv", ["statevla", *name.split(), "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr().out
    assert not ended.value.code
    assert "--help" in shown
    assert undocumented(shown) == []


def test_a_flag_without_text_would_be_found(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Args:
        explained: int = 1
        """What it is."""
        bare: int = 2

    with pytest.raises(SystemExit):
        tyro.cli(Args, args=["--help"])
    assert undocumented(capsys.readouterr().out) == ["--bare INT"]


def named_here() -> list[str]:
    """What the tables of docs/specification.md name in their second column."""
    text = (ROOT / "docs" / "specification.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if re.match(r"\|[^-]", line)]
    return sorted({name for row in rows for name in re.findall("`([^`]+)`", row[2])})


def check_name(name: str) -> None:
    """A symbol, a command, a key of the configuration or a path: it exists."""
    if re.fullmatch(r"statevla(\.\w+)+", name):
        module, _, symbol = name.rpartition(".")
        assert hasattr(importlib.import_module(module), symbol), f"{module} has no {symbol}"
    elif " " in name:
        check(shlex.split(name))
    elif re.fullmatch(r"(model|language|data|training)(\.\w+)+", name):
        operator.attrgetter(name)(load_config(ROOT / "conf" / "config.yaml"))
    else:
        assert (ROOT / name).exists(), f"{name}: no such file"


@pytest.mark.parametrize("name", named_here())
def test_the_specification_is_found_where_it_is_said_to_be(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "wrong",
    [
        "src/statevla/jepa/tokenizer.py",
        "statevla.model.statevla_model.StateVLATrainer",
        "training.phase1.batchsize",
        "statevla rollout --checkpoint RUN --save_video",
        "pip install -e '.[imageio]'",
    ],
)
def test_a_wrong_name_would_be_found(wrong: str) -> None:
    with pytest.raises((AssertionError, AttributeError, SystemExit)):
        check_name(wrong)


@pytest.mark.parametrize("wrong", ["statevla collect --demoes 50", "python train.py --training.phase1.batchsize 8"])
def test_a_wrong_flag_would_be_found(wrong: str) -> None:
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


@pytest.mark.parametrize(
    "script", ["scripts/api_reference.py", "scripts/config_reference.py", "benchmarks/render_tables.py"]
)
def test_generated_pages_are_current(script: str) -> None:
    command = [sys.executable, str(ROOT / script), "--check"]
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
