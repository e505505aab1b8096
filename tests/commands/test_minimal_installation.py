"""Every command in a minimal installation: it works, or says in one line which extra it needs and what to type."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import statevla
from checkpoint_edits import edit
from environments import make_interpreter, project_of
from libero_files import TASKS, make_libero_dir
from statevla.commands.table import COMMANDS
from test_docs import PAGES, commands_of

ROOT = Path(__file__).parents[2]
POLICY = "libero_object_compact"
# Command → arguments in a folder with the data set `data`, and the extra that it must name; None where it needs none.
CASES: dict[str, tuple[str, str | None]] = {
    "completion": ("bash", None),
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
    "calibrate": ("--checkpoint policy --data data", "language"),
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
    shutil.copytree(ROOT / "models" / POLICY, where / "policy")
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


# Documented commands --------------------------------------------------------------------------------------------------

PROGRAMS = {"statevla", "python"}
# What a reader puts in; docs/experiments.md is a record of what ran, whose commands are these.
PLACES = {"PATH": "DATA", "SOURCE": "DATA", "CHECKPOINT": "policy", "RUN": "policy"}


def documented() -> dict[str, str]:
    """Commands of the pages, in shell blocks and in sentences, one of each kind: program and flags → as printed."""
    found = {}
    for page in (page for page in PAGES if page.name != "experiments.md"):
        sentences = re.findall(r"`((?:statevla|python) [^`…]*)`", page.read_text(encoding="utf-8"))
        for command in (*commands_of(page), *sentences):
            words = shlex.split(command)
            if words[0] in PROGRAMS and "pip" not in words:
                head = 3 if words[1] == "data" else 2
                kind = [*words[:head], *sorted(word for word in words if word.startswith("--"))]
                found.setdefault(" ".join(kind), command)
    return found


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone has, as links, with data and checkpoints where the pages have them."""
    where = tmp_path_factory.mktemp("clone")
    for name in ("conf", "models", "tests", "train.py", "eval.py", "run_libero_eval.py"):
        (where / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "benchmarks", where / "benchmarks")  # they write results beside themselves
    make_libero_dir(where / "DATA")
    shutil.copytree(ROOT / "models" / POLICY, where / "policy")
    for name in ("libero_object", "libero_object_224"):
        shutil.copytree(where / "DATA", where / "home" / "datasets" / name)
    for phase, name in (("1", "phase1_temporal_jepa"), ("2", "phase2_flow_matching")):
        folder = where / "checkpoints" / name / "best"
        shutil.copytree(ROOT / "models" / POLICY, folder)
        metrics = json.loads((folder / "metrics.json").read_text())
        edit(folder / "metrics.json", json.dumps({**metrics, "phase": phase}))
    return where


def run(python: Path, folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    home = str(folder / "home")
    filled = [PLACES.get(word, word.replace("$STATEVLA_HOME", home)) for word in words]
    program = ["-m", "statevla"] if words[0] == "statevla" else []
    return subprocess.run(
        [python, *program, *filled[1:]],
        cwd=folder,
        env={**os.environ, "STATEVLA_HOME": home},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("command", documented().values())
def test_documented_commands_end_without_a_traceback(python: Path, clone: Path, command: str) -> None:
    done = run(python, clone, shlex.split(command))
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, 1, 2), done.stderr


@pytest.mark.slow
@pytest.mark.ci
def test_the_whole_way_with_precomputed_embeddings(python: Path, clone: Path) -> None:
    """What docs/quickstart.md says of an installation without extras."""
    rng = np.random.default_rng(0)
    texts = [task.replace("_", " ") for task in TASKS]
    np.savez(clone / "language.npz", **{text: rng.normal(size=384).astype(np.float32) for text in texts})
    own = "--config compact --data.path DATA --output_dir own --language.encoder language.npz"
    small = (
        "--model.image_size 64 --model.encoder_depth 1 --training.phase{0}.max_steps 3 --training.phase{0}.batch_size 4"
    )
    for command in (
        f"train --phase 1 {own} {small.format(1)} --training.phase1.warmup_steps 1",
        f"train --phase 2 {own} {small.format(2)} --training.phase2.warmup_steps 1 "
        "--phase1_checkpoint own/phase1_temporal_jepa",
        "probe --checkpoint own/phase1_temporal_jepa --out probes",
        "eval --checkpoint own/phase2_flow_matching --out evaluation",
        "calibrate --checkpoint own/phase2_flow_matching --alpha 0.9",
        "share --checkpoint own/phase2_flow_matching --to shared",
        "info --checkpoint shared",
    ):
        done = run(python, clone, ["statevla", *command.split()])
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        if "evaluation" in command or "probes" in command:
            assert "pip install 'statevla[plots]'" in done.stdout
    assert "validation" in (clone / "own" / "phase2_flow_matching" / "log.jsonl").read_text()
