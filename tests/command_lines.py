"""Parse command lines, of documents and of scripts, with the very parsers that would run them."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path

import tyro

from statevla.commands.table import COMMANDS, load_command
from statevla.commands.train import TrainArgs, parse_overrides
from statevla.config import load_config

ROOT = Path(__file__).parents[1]
SCRIPTS = {"train.py": "train", "eval.py": "eval", "run_libero_eval.py": "rollout"}
# What belongs to other programs, of which nothing here could say whether its flags exist.
FOREIGN = {"export", "lerobot-train", "lerobot-eval", "rerun", "vla-eval"}


def check(words: list[str]) -> str | None:
    """Parse a command as the program that it names would; the name of the `statevla` command, if it is one."""
    head, rest = words[0], words[1:]
    if head in FOREIGN:
        return None
    if head == "torchrun":
        start = next(i for i, word in enumerate(rest) if word == "-m" or word.endswith(".py"))
        return check(["python", *rest[start:]])
    if head == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(rest) <= set(targets), f"make {rest}: no such target"
        return None
    if head in ("pip", "python") and "pip" in words[:3]:
        check_install(words)
        return None
    if head == "python" and rest[:2] == ["-m", "statevla.model.mamba"]:
        return None  # run below
    if head == "python" and rest[:2] == ["-m", "statevla"]:
        return check(["statevla", *rest[2:]])
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
    _, kind = load_command(command)
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
        assert not word.startswith("packages/") or (ROOT / word / "pyproject.toml").is_file(), f"{word}: no package"
