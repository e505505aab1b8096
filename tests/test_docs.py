"""The pages build, are current, and every command in them is one that exists, with flags that exist.

Commands that need hours, a GPU, a robot or a hub are parsed by the very parser that would run them; each command of
`statevla` is really executed by the test named in `EXECUTED_BY`, or here.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import tyro

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

from statevla.cli import COMMANDS
from statevla.config import load_config
from statevla.training.cli import TrainArgs, parse_overrides

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("packages/*/README.md"))]
SCRIPTS = {"train.py": "train", "eval.py": "eval", "run_libero_eval.py": "rollout"}
EXECUTED_BY = {
    "demo": "test_demo.py",
    "doctor": "test_doctor.py",
    "info": "test_cli.py",
    "collect": "sim/test_sim_collect.py",
    "replay": "sim/test_sim_collect.py",
    "data inspect": "test_docs.py",
    "data convert": "test_docs.py",
    "data cache": "data/test_frame_cache.py",
    "train": "training/test_processes.py",
    "eval": "diagnostics/test_offline.py",
    "probe": "diagnostics/test_object_surprise.py",
    "rollout": "sim/test_evaluate.py",
    "calibrate": "diagnostics/test_calibrate.py",
    "report": "test_report.py",
    "view": "test_view.py",
    "share": "test_share.py",
    "serve": "serving/test_serve_command.py",
}
# What belongs to other programs, of which nothing here could say whether its flags exist.
FOREIGN = {"git", "cd", "lerobot-train", "lerobot-eval", "rerun"}


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


def check(words: list[str]) -> str | None:
    """Parse a command as the program that it names would; the name of the `statevla` command, if it is one."""
    head, rest = words[0], words[1:]
    if head in FOREIGN:
        return None
    if head == "torchrun":
        return check(["python", *rest[next(i for i, word in enumerate(rest) if word.endswith(".py")) :]])
    if head == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(rest) <= set(targets), f"make {rest}: no such target"
        return None
    if head in ("pip", "python") and "pip" in words[:3]:
        check_install(words)
        return None
    if head == "python" and rest[:2] == ["-m", "statevla.mamba"]:
        return None  # run below
    if head == "python" and rest[0] in SCRIPTS:
        return check_statevla(SCRIPTS[rest[0]].split(), rest[1:])
    if head == "python" and rest[0].startswith(("benchmarks/", "scripts/")):
        check_script(ROOT / rest[0], rest[1:])
        return None
    assert head == "statevla", f"{shlex.join(words)}: not known here; add it to FOREIGN if it belongs to others"
    name = rest[:2] if " ".join(rest[:2]) in COMMANDS else rest[:1]
    return check_statevla(name, rest[len(name) :])


def check_statevla(name: list[str], arguments: list[str]) -> str:
    command = " ".join(name)
    assert command in COMMANDS, f"statevla {command}: no such command"
    module, _, attribute = COMMANDS[command][0].partition(":")
    function = getattr(importlib.import_module(module), attribute)
    (kind, *_) = (t for key, t in typing.get_type_hints(function).items() if key != "return")
    if kind == list[str]:
        assert command == "train"
        args, keys = tyro.cli(TrainArgs, args=arguments, return_unknown_args=True)
        load_config(ROOT / args.config, parse_overrides(keys))
    elif "--help" not in arguments:
        tyro.cli(kind, args=arguments)
    return command


def check_script(path: Path, arguments: list[str]) -> None:
    assert path.is_file(), f"{path}: no such script"
    source = path.read_text(encoding="utf-8")
    if "class Args" not in source:
        assert set(arguments) <= set(re.findall(r'"(--[a-z-]+)"', source)), f"{path.name}: no such flag"
        return
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(f"documented_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        tyro.cli(module.Args, args=arguments)
    finally:
        sys.path.remove(str(path.parent))


def check_install(words: list[str]) -> None:
    """Extras that a page asks for are those of pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        if found := re.search(r"(?:^\.|^statevla)\[(.*)\]$", word):
            assert set(found[1].split(",")) <= set(extras), f"{word}: no such extra"


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
