"""The command line: every command of the table exists, explains itself, and answers errors with one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from statevla.commands.table import COMMANDS, load_command


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
    assert callable(load_command(name)[0])
    done = run(*name.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert "--" in done.stdout


def test_help_is_a_word_too() -> None:
    assert run("help").stdout == run().stdout == run("--help").stdout
    assert run("help", "data", "inspect").stdout == run("data", "inspect", "--help").stdout
    assert "statevla data inspect" in run("help", "data", "inspect").stdout
    assert run("help", "fly").returncode == 2


def test_the_version_is_the_packages() -> None:
    for flag in ("--version", "-V"):
        assert run(flag).stdout == f"statevla {version('statevla')}\n"


COMPLETED = """
source "$1"
complete -p statevla >/dev/null || exit 1
COMP_WORDS=("${@:2}") COMP_CWORD=$(($# - 2))
_tyro_statevla
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_flags_and_choices(tmp_path: Path) -> None:
    done = run("completion", "bash")
    assert (done.returncode, done.stderr) == (0, "")
    script = tmp_path / "statevla.bash"
    script.write_text(done.stdout)

    def completed(*words: str) -> list[str]:
        shell = ["bash", "-c", COMPLETED, "bash", str(script), "statevla", *words]
        return subprocess.run(shell, capture_output=True, text=True, check=True, timeout=60).stdout.split()

    assert set(COMMANDS) - {"data inspect", "data convert", "data draw", "data cache"} <= {*completed("")}
    assert completed("rol") == ["rollout"]
    assert completed("data", "ins") == ["inspect"]
    assert "--checkpoint" in completed("rollout", "--check")
    assert completed("train", "--phase1") == ["--phase1-checkpoint"]
    assert set(completed("train", "--phase", "")) >= {"1", "2", "bc"}


def test_other_shells_have_their_scripts() -> None:
    assert run("completion", "zsh").stdout.startswith("#compdef statevla")
    done = run("completion", "cmd")
    assert done.returncode == 2
    assert "zsh" in done.stderr


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
