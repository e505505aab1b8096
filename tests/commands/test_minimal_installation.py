"""Every command in a minimal installation: it works, or says in one line which extra it needs and what to type."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import statevla
from environments import make_interpreter, project_of
from libero_files import make_libero_dir
from statevla.commands.table import COMMANDS

ROOT = Path(__file__).parents[2]
POLICY = "libero_object_compact"
# Command → arguments in a folder with the data set `data`, and the extra that it must name; None where it needs none.
CASES: dict[str, tuple[str, str | None]] = {
    "demo": ("", "language,sim,plots"),
    "doctor": ("", None),
    "info": ("--config compact", None),
    "collect": ("--suite libero_object", "sim"),
    "replay": ("data", "sim"),
    "data inspect": ("data --max-episodes 1", None),
    "data convert": ("data out --to lerobot", "lerobot-data"),
    "data draw": ("lift --out out.hdf5", "sim"),
    "data cache": ("data.path=data --config compact", None),
    "train": ("--config compact --data.path data --output_dir out", "language"),
    "eval": (f"--checkpoint {POLICY} --data data --out out", "language"),
    "probe": (f"--checkpoint {POLICY} --data data --out out", "language"),
    "rollout": (f"--checkpoint {POLICY} --task_suite libero_object", "sim"),
    "calibrate": (f"--checkpoint {POLICY} --data data", "language"),
    "share": (f"--checkpoint {POLICY} --to copy", None),
    "view": ("data", "view"),
    "report": ("data", "plots"),
    "serve": (f"--checkpoint {POLICY}", "serve"),
}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with what `pip install statevla` brings and nothing else."""
    folder = tmp_path_factory.mktemp("minimal")
    return make_interpreter(folder, project_of(ROOT)["dependencies"], Path(statevla.__file__).parents[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("elsewhere")
    make_libero_dir(where / "data")
    return where


def test_every_command_has_a_case() -> None:
    assert CASES.keys() == COMMANDS.keys()


def test_the_interpreter_lacks_what_extras_bring(python: Path) -> None:
    """Positive control, and the other way round: the declared dependencies are enough for the core."""
    code = (
        "from statevla.machine.extras import EXTRAS, missing\n"
        "assert all(missing(extra) for extra in EXTRAS), [extra for extra in EXTRAS if not missing(extra)]\n"
        "import statevla.training.run, statevla.worlds.evaluate, statevla.acting.policy\n"
    )
    subprocess.run([python, "-c", code], check=True, timeout=300)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("command", COMMANDS)
def test_commands(python: Path, folder: Path, command: str) -> None:
    arguments, extra = CASES[command]
    done = subprocess.run(
        [python, "-m", "statevla", *command.split(), *arguments.split()],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stderr, done.stderr
    if extra is None:
        assert done.returncode in (0, 1), done.stderr  # 1 is a finding of `data inspect` or `doctor`
        return
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(rf"pip install [^;]*'statevla\[{re.escape(extra)}\]'", done.stderr), done.stderr
