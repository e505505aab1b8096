"""The command line: every command of the table exists, explains itself, and answers errors with one line."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from statevla.commands.table import COMMANDS


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "statevla", *arguments], capture_output=True, text=True, timeout=120)


def test_overview_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name, (_, text) in COMMANDS.items():
        assert name in done.stdout
        assert text in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_has_help(name: str) -> None:
    module, _, function = COMMANDS[name][0].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    done = run(*name.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert "--" in done.stdout


def test_unknown_command_is_one_line() -> None:
    done = run("fly")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "command 'fly'" in done.stderr


def test_info_counts_what_acting_needs() -> None:
    """The predictor and what trains beside it stay behind."""
    done = run("info", "--config", "conf/compact.yaml")
    assert "3,851,222" in next(line for line in done.stdout.splitlines() if "needed to act" in line)


def test_info_shows_the_exact_total() -> None:
    done = run("info", "--config", "conf/config.yaml")
    assert done.returncode == 0
    assert "14,862,096" in done.stdout
    assert run("info", "--config", "nowhere.yaml").returncode == 2
