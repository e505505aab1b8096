"""A run is recorded as it was, failures included, and the page says what the record says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from statevla.commands.eval import EvalArgs, offline
from statevla.config import Config
from statevla.machine.storage import write_json
from statevla.worlds.rollout_results import EpisodeLog, EpisodeResult, success_interval, summarize

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "record_experiment.py"


@pytest.fixture(autouse=True)
def _modules_beside_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for `python benchmarks/…`, whose folder Python puts on its path."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def load_page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("experiments_page", ROOT / "benchmarks" / "experiments_page.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Behaviour cloning through `train.py`, from a preset with one override, then evaluated."""
    folder = tmp_path_factory.mktemp("recorded")
    preset = folder / "preset.yaml"
    preset.write_text(yaml.safe_dump(tiny_config.model_dump(mode="json")))
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(preset), "--phase", "bc"]
    command += ["--output_dir", str(folder / "runs"), "--training.bc.max_steps", "4", "--seed", "3"]
    subprocess.run(command, check=True, capture_output=True)
    run = folder / "runs" / "behaviour_cloning"
    offline(EvalArgs(str(run), max_samples=20, probes=False, device="cpu"))
    return run


def record(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


def make_rollout(folder: Path) -> Path:
    episodes = [
        EpisodeResult(0, trial, "pick_up_the_milk", "pick up the milk", trial, 0, success, error, 90, 1, 5.0)
        for trial, (success, error) in enumerate([(True, None), (False, None), (True, None), (None, "it broke")])
    ]
    settings = {"task_suite": "libero_object", "sampling_temperature": 0.0, "execute_steps": 4}
    extra = {"settings": settings, "command": ["run_libero_eval.py", "--num_trials", "4"]}
    write_json(folder / "summary.json", {**summarize(episodes, 5), **extra})
    log = EpisodeLog(folder / "episodes.jsonl")
    for episode in episodes:
        log.append(episode)
    log.close()
    return folder


def test_the_record_and_its_page(run: Path, tmp_path: Path) -> None:
    rollout = make_rollout(tmp_path / "rollout")
    done = record(
        "--name", "first-try", "--checkpoint", str(run), "--rollout", str(rollout), "--note", "Too short to learn.",
        "--out", str(tmp_path / "records"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tree = json.loads((tmp_path / "records" / "first-try.json").read_text())
    assert (tree["phase"], tree["seed"], tree["preset"]) == ("bc", 3, "preset.yaml")
    assert tree["overrides"] == {"training.bc.max_steps": 4}
    assert tree["training"]["last"]["step"] == 4
    assert tree["command"].startswith("train.py --config")
    assert tree["offline"]["num_samples"] == 20
    assert tree["diagnostics"]["world_model"] is None, "behaviour cloning has none"
    total = tree["simulated"][0]["total"]
    assert (total["successes"], total["episodes"], total["errors"]) == (2, 3, 1)
    assert total["interval_95"] == pytest.approx(list(success_interval(2, 3)))
    rows = (tmp_path / "records" / "first-try-rollout.csv").read_text().splitlines()
    assert [row.split(",")[4:6] for row in rows[1:]] == [["True", ""], ["False", ""], ["True", ""], ["", "it broke"]]

    page = load_page().experiments_page(tmp_path / "records")
    low, high = success_interval(2, 3)
    name = "libero_object (noise x 0) (4 actions a look)"
    assert f"{name}: 2 / 3 ({100 * low:.1f} to {100 * high:.1f} %), of 5 planned" in page
    assert "`training.bc.max_steps=4`" in page
    assert "Too short to learn." in page
    assert f"{tree['offline']['normalized']['mse']:.3g}" in page


def test_a_run_that_failed_is_recorded_too(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    broken.mkdir()
    (broken / "run.json").write_text((run / "run.json").read_text())
    done = record(
        "--name", "broken", "--checkpoint", str(broken), "--command", "python train.py", "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    tree = json.loads((tmp_path / "broken.json").read_text())
    assert (tree["training"], tree["simulated"], tree["offline"]) == ({}, [], None)
    page = load_page().experiments_page(tmp_path)
    assert "Training wrote no checkpoint." in page
    assert "not simulated" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "a b"], "expected letters, digits and hyphens"),
        (["--name", "x", "--checkpoint", "/nowhere"], "--checkpoint /nowhere: expected a folder with run.json"),
    ],
)
def test_bad_input_gives_one_line(run: Path, arguments: list[str], message: str) -> None:
    given = arguments if "--checkpoint" in arguments else [*arguments, "--checkpoint", str(run)]
    done = record(*given)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_page_is_current() -> None:
    folder = ROOT / "benchmarks" / "results" / "experiments"
    assert (ROOT / "docs" / "experiments.md").read_text() == load_page().experiments_page(folder)
