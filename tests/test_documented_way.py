"""The shell blocks of README and docs, run one after the other in a fresh folder: what one writes, the next one reads.

Each command runs as it is printed, with flags of its own appended that make it small (`SMALL`). Left out is what
installs, belongs to other programs, needs a hub or names what is the reader's own (`LEFT_OUT`); and
docs/experiments.md, whose commands take hours and are the record of what ran.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from command_lines import FOREIGN, ROOT, SCRIPTS
from libero_files import smooth_episode, write_official_file
from test_docs import commands_of


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PORT = free_port()
_STEPS = "--training.phase{0}.max_steps 3 --training.phase{0}.batch_size 4 --training.phase{0}.warmup_steps 1"
_MODEL = "--model.image_size 64 --model.encoder_depth 1"
SMALL = {
    "collect": "--tasks 0 --demos 3 --image-size 64",
    "replay": "--demos 1",
    "train 1": f"{_STEPS.format(1)} {_MODEL} --overwrite",
    "train 2": f"{_STEPS.format(2)} {_MODEL} --overwrite",
    "eval": "--max-samples 20",
    "rollout": "--tasks 0 --num_trials 1",
    "calibrate": "--alpha 0.6",
    "serve": f"--port {PORT}",
    "view": "--out recording.rrd",
}
LEFT_OUT = (
    "--push",  # tests/checkpoints/test_share.py, with a folder in place of the hub
    "DATA",  # below, on docs/own-data.md
    "my_module:make_env",  # tests/worlds/test_own_world.py
)
PAGES = ["README.md", "docs/quickstart.md", "docs/alarm.md", "docs/deploying.md", "docs/index.md"]


def name_of(words: list[str]) -> str:
    """Key of `SMALL`: the command of `statevla`, and of `train` the phase."""
    name = SCRIPTS[words[1]] if words[0] == "python" else words[1]
    return f"{name} {words[words.index('--phase') + 1]}" if name == "train" else name


def is_left_out(words: list[str]) -> bool:
    text = shlex.join(words)
    # `make demo` is run, small, by tests/commands/test_demo.py.
    return words[0] in {*FOREIGN, "pip", "make"} or any(part in text for part in LEFT_OUT)


def run(words: list[str], folder: Path) -> None:
    """As typed in the project's folder, which `folder` stands for."""
    small = SMALL.get(name_of(words), "")
    if "--init_checkpoint" in words:  # its model is as large as it is
        small = small.replace(_MODEL, "")
    words = [os.path.expandvars(word) for word in [*words, *shlex.split(small)]]
    program = [sys.executable, *words[1:]] if words[0] == "python" else [sys.executable, "-m", *words]
    if name_of(words) == "serve":
        serve(program, folder)
        return
    print(shlex.join(words), flush=True)
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True)
    # A replay or an evaluation that ends is enough here; so small a policy solves nothing.
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


def serve(program: list[str], folder: Path) -> None:
    """Start, wait until it answers, end."""
    log = folder / "serve.log"
    with log.open("w") as file:
        process = subprocess.Popen(program, cwd=folder, stderr=file)
    try:
        end = time.monotonic() + 120
        while True:
            assert process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=5) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert time.monotonic() < end, "the server never answered"
                time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's files as links, so that nothing is written into the checkout."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("conf", "models", "train.py", "eval.py", "run_libero_eval.py"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "key.txt").write_text("a-key-of-some-length\n")
    (folder / "key.txt").chmod(0o600)
    monkeypatch.setenv("STATEVLA_HOME", str(tmp_path / "home"))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_documented_way(project: Path) -> None:
    pytest.importorskip("libero")
    done = set()
    for page in PAGES:
        for command in commands_of(ROOT / page):
            words = shlex.split(command.replace("ROLLOUTS", "outputs/rollouts"))
            if is_left_out(words) or command in done:
                continue
            if "view" in words[:2]:
                pytest.importorskip("rerun")
            run(words, project)
            done.add(command)
    assert (project / "report.html").is_file()
    assert (project / "my-policy" / "README.md").is_file()
    # The names that the spec gives them.
    for run_folder in ("phase1_temporal_jepa", "phase2_flow_matching"):
        assert (project / "checkpoints" / run_folder / "checkpoint_best.pt").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_own_data_as_documented(project: Path) -> None:
    source = project / "recordings"
    source.mkdir()
    rng = np.random.default_rng(0)
    episodes = [smooth_episode(rng, 40, 64, (220, 40, 30)) for _ in range(4)]
    file = source / "put_the_cup_on_the_plate_demo.hdf5"
    write_official_file(file, "put the cup on the plate", episodes, cameras=("front", "wrist"))
    places = {"PATH": str(source), "DATA": str(source), "SOURCE": str(source), "TARGET": str(project / "converted")}
    for command in commands_of(ROOT / "docs" / "own-data.md"):
        if command.startswith("statevla serve"):
            continue  # in the other test
        words = shlex.split(command)
        if words[:3] == ["statevla", "data", "convert"]:
            to = words[words.index("--to") + 1]
            begin = places["SOURCE"] if to == "lerobot" else places["TARGET"]
            words = [*words[:3], begin, f"{places['TARGET']}{'' if to == 'lerobot' else '_back'}", *words[5:]]
        run([places.get(word, word) for word in words], project)
    assert (project / "report.html").is_file()
