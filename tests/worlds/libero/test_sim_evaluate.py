"""Evaluation in LIBERO: killed workers, continuing, independence of the workers' number, torchrun."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("libero")

from statevla.config import Config
from statevla.errors import UserError
from statevla.robots import LIBERO
from statevla.worlds.evaluate import RolloutArgs, evaluate
from statevla.worlds.libero.suite import LiberoSuite
from statevla.worlds.rollout_results import read_results
from untrained_policy import save_untrained

TASK = LiberoSuite("libero_object").tasks[0]


@pytest.fixture(scope="module")
def checkpoint(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained policy that knows the instruction of libero_object's first task."""
    return save_untrained(tiny_config, LIBERO, [TASK.instruction], tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def killer() -> Iterator[list[int]]:
    """Kills the first world's process that has worked for a while; the list then holds its process id."""
    killed: list[int] = []
    stop = threading.Event()

    def hunt() -> None:
        while not stop.is_set():
            for child in multiprocessing.active_children():
                if child.name == "world 0" and child.pid is not None:
                    time.sleep(4.0)  # in the middle of importing, building or acting: any moment must do
                    child.kill()
                    killed.append(child.pid)
                    return
            time.sleep(0.05)

    thread = threading.Thread(target=hunt, daemon=True)
    thread.start()
    yield killed
    stop.set()
    thread.join()


@pytest.mark.slow
@pytest.mark.ci
def test_killed_worker_is_retried_and_an_evaluation_continues(
    checkpoint: Path, tmp_path: Path, killer: list[int]
) -> None:
    args = RolloutArgs(str(checkpoint), tasks="0", num_trials=2, out=str(tmp_path), num_workers=1, videos=1)
    folder, summary = evaluate(args)
    assert killer
    assert summary is not None
    assert summary["complete"]
    assert summary["total"]["episodes"] == 2
    assert summary["total"]["errors"] == 0
    first = read_results(folder)
    assert sorted(item.num_attempts for item in first.values()) == [1, 2]
    assert {item.success for item in first.values()} <= {True, False}
    # A surprise at every look but the first.
    assert all(len(item.surprise) == len(item.policy_ms) - 1 > 0 for item in first.values())
    assert len(list(folder.glob("videos/*.mp4"))) == 1
    assert (folder / "contact_sheet.png").is_file()
    assert summary["versions"]["mujoco"] == "3.3.2"
    # One more trial: what is there stays as it is, and the new episode comes on top.
    before = (folder / "episodes.jsonl").read_text()
    _, summary = evaluate(replace(args, num_trials=3))
    assert summary is not None
    assert summary["episodes_in_this_run"] == 1
    assert summary["total"]["episodes"] == 3
    assert (folder / "episodes.jsonl").read_text().startswith(before)
    with pytest.raises(UserError, match="seed = 0, now it is 1"):
        evaluate(replace(args, seed=1))


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """To the last bit: an untrained policy moves the arm at random, so that any difference would grow."""
    strips = []
    for count in (1, 2):
        out = tmp_path / str(count)
        args = RolloutArgs(str(checkpoint), tasks="0", num_trials=2, out=str(out), num_workers=count, videos=2)
        evaluate(args)
        assert len(read_results(out)) == 2
        strips.append({path.name: path.read_bytes() for path in sorted(out.glob("videos/*.png"))})
    assert len(strips[0]) == 2
    assert strips[0] == strips[1]


@pytest.mark.slow
def test_processes_share_the_episodes(checkpoint: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[3] / "run_libero_eval.py"
    flags = ["--tasks", "0", "--num_trials", "3", "--num_workers", "1", "--videos", "0", "--out", str(tmp_path)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, str(script), "--checkpoint", str(checkpoint), "--task_suite", "libero_object", *flags],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shares = [
        [json.loads(line)["trial"] for line in (tmp_path / f"episodes.{rank}.jsonl").read_text().splitlines()]
        for rank in (0, 1)
    ]
    assert [sorted(share) for share in shares] == [[0, 2], [1]]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["complete"]
    assert summary["total"]["episodes"] == 3
    assert done.stdout.count("success in simulation") == 1  # the table, by the first process alone
