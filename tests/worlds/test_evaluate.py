"""Evaluation in simulation: which episodes, what is recorded, how it continues, and what a killed worker costs."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statevla.config import Config
from statevla.errors import UserError
from statevla.worlds.libero.tasks import TaskSpec
from statevla.worlds.rollout_plan import EpisodeSpec, Schedule, episode_spec
from statevla.worlds.rollout_results import (
    EpisodeLog,
    EpisodeResult,
    claim_folder,
    read_results,
    success_interval,
    summarize,
    summarize_alarms,
)

TASKS = [TaskSpec("libero_object", i, f"task_{i}", f"do {i}", Path("x.bddl"), 280) for i in range(10)]


def result(task: int, trial: int, success: bool | None = True, **changes: object) -> EpisodeResult:
    error = None if success is not None else "broken"
    plain = EpisodeResult(task, trial, f"task_{task}", f"do {task}", trial, 7, success, error, 100, 1, 2.0)
    return replace(plain, **changes)  # type: ignore[arg-type]


@given(
    num_trials=st.integers(1, 60),
    more=st.integers(0, 60),
    seed=st.integers(0, 5),
    task=st.integers(0, 9),
    trial=st.integers(0, 59),
)
def test_an_episode_does_not_depend_on_how_many_others_there_are(
    num_trials: int, more: int, seed: int, task: int, trial: int
) -> None:
    trial = trial % num_trials
    one = episode_spec(task * num_trials + trial, TASKS, num_trials, 50, seed)
    many = num_trials + more
    same = episode_spec(task * many + trial, TASKS, many, 50, seed)
    alone = episode_spec(trial, TASKS[task : task + 1], num_trials, 50, seed)
    assert one.key == same.key == alone.key == (task, trial)
    assert one.init_state_index == same.init_state_index == trial % 50
    assert one.seed == same.seed == alone.seed
    assert one.seed != episode_spec(task * num_trials + trial, TASKS, num_trials, 50, seed + 1).seed


def test_all_episodes_differ_and_cover_every_initial_state() -> None:
    episodes = [episode_spec(number, TASKS, 50, 50, 0) for number in range(500)]
    assert len({episode.seed for episode in episodes}) == 500
    assert {episode.key for episode in episodes} == {(task, trial) for task in range(10) for trial in range(50)}
    assert sorted(episode.init_state_index for episode in episodes[:50]) == list(range(50))


def test_shuffled_instructions_are_all_the_others_and_change_nothing_else() -> None:
    pytest.importorskip("libero")
    from statevla.worlds.libero.tasks import suite_tasks

    tasks = suite_tasks("libero_object")[:2]
    own = [episode_spec(number, tasks, 18, 50, 0) for number in range(36)]
    shuffled = [episode_spec(number, tasks, 18, 50, 0, "shuffled") for number in range(36)]
    assert [episode.instruction for episode in own] == [episode.task.instruction for episode in own]
    assert [replace(told, instruction=one.instruction) for told, one in zip(shuffled, own)] == own
    for task in (0, 1):
        told = [episode.instruction for episode in shuffled if episode.task.index == task]
        assert sorted(told) == sorted(2 * [t.instruction for t in suite_tasks("libero_object") if t.index != task])


def test_schedule_keeps_workers_at_their_task_and_loses_nothing() -> None:
    episodes = [episode_spec(number, TASKS[:3], 5, 50, 0) for number in range(15)]
    schedule, at, taken = Schedule(episodes), [None, None], list[EpisodeSpec]()
    changes = 0
    while True:
        worker = len(taken) % 2
        episode = schedule.take(at[worker], [] if at[1 - worker] is None else [at[1 - worker]])
        if episode is None:
            break
        changes += at[worker] != episode.task.index
        at[worker] = episode.task.index
        taken.append(episode)
    assert {episode.key for episode in taken} == {episode.key for episode in episodes}
    assert len(taken) == 15
    assert changes <= 4  # three tasks, and at most one shared at the end
    schedule.put_back(taken[3])
    assert schedule.take(None, []) == taken[3]


def test_results_survive_a_torn_line_and_the_last_judgement_counts(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path / "episodes.jsonl")
    for item in (result(0, 0), result(0, 1, None), result(1, 0, False)):
        log.append(item)
    log.close()
    with (tmp_path / "episodes.jsonl").open("a") as file:
        file.write('{"task": 1, "trial": 1, "task_na')
    assert set(read_results(tmp_path)) == {(0, 0), (0, 1), (1, 0)}
    log = EpisodeLog(tmp_path / "episodes.jsonl")
    log.append(result(0, 1, True))
    log.close()
    EpisodeLog(tmp_path / "episodes.1.jsonl").append(result(2, 0, None))
    found = read_results(tmp_path)
    assert found[0, 1].success is True
    assert found[2, 0].error == "broken"
    assert found[1, 0] == result(1, 0, False)
    lines = (tmp_path / "episodes.jsonl").read_text().splitlines()
    assert [json.loads(line)["trial"] for line in lines] == [0, 1, 0, 1]
    (tmp_path / "episodes.jsonl").write_text('{"task": 1}\n')
    with pytest.raises(UserError, match="line 1 is not an episode"):
        read_results(tmp_path)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    settings = {"seed": 0, "temporal_ensembling": None, "task_suite": "libero_object"}
    claim_folder(tmp_path / "new", settings)
    claim_folder(tmp_path / "new", dict(settings))
    with pytest.raises(UserError, match=r"temporal_ensembling = None, now it is 0.01; .*--out"):
        claim_folder(tmp_path / "new", {**settings, "temporal_ensembling": 0.01})


def test_intervals_are_wilsons() -> None:
    # Brown, Cai & DasGupta 2001: centre (s + z²/2) / (n + z²), half width z/(n + z²) · sqrt(s (n - s)/n + z²/4).
    z = 1.959963984540054
    for successes, episodes in ((0, 10), (7, 10), (50, 50), (486, 500)):
        centre = (successes + z * z / 2) / (episodes + z * z)
        half = z / (episodes + z * z) * np.sqrt(successes * (episodes - successes) / episodes + z * z / 4)
        low, high = success_interval(successes, episodes)
        assert low == pytest.approx(max(0.0, centre - half), abs=1e-9)
        assert high == pytest.approx(min(1.0, centre + half), abs=1e-9)
    assert success_interval(0, 0) == (0.0, 1.0)


def test_summary_counts_errors_apart() -> None:
    results = [result(0, 0), result(0, 1, False), result(0, 2, None), result(1, 0, policy_ms=[10.0, 30.0])]
    summary = summarize(results, num_planned=5)
    assert summary["complete"] is False
    assert summary["total"]["episodes"] == 3
    assert summary["total"]["successes"] == 2
    assert summary["total"]["errors"] == 1
    assert summary["tasks"][0]["success_rate"] == 0.5
    assert summary["errors"] == [{"task": 0, "trial": 2, "error": "broken"}]
    assert summary["policy_latency_ms"] == {"p50": 20.0, "p95": 29.0}
    assert json.loads(json.dumps(summary)) == summary


def test_alarms_are_counted_by_outcome() -> None:
    results = [result(0, 0, alarm_step=8), result(0, 1), result(0, 2, False, alarm_step=16), result(0, 3, None)]
    summary = summarize_alarms(results, {"alpha": 0.1, "threshold": 0.2})
    assert summary["successes"] == {"episodes": 2, "alarms": 1}
    assert summary["failures"] == {"episodes": 1, "alarms": 1}
    assert summary["threshold"] == 0.2


def test_video_and_contact_sheet(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    from PIL import Image

    from statevla.worlds.video import SurpriseTrace, caption, contact_sheet, write_mp4

    picture = np.zeros((64, 320, 3), np.uint8)
    trace = SurpriseTrace({2: 0.1, 4: 0.3, 6: 0.1}, threshold=0.2)
    assert [trace.at(step)[1] for step in (0, 2, 4, 8)] == [False, False, True, True]  # it stays on
    assert [trace.at(step)[0] for step in (1, 3)] == ["", "surprise 0.50 of threshold"]
    assert SurpriseTrace({2: 0.1}).at(2) == ("surprise 0.1", False)
    frames = [caption(picture, "pick up the milk " * 5, step, 9, None if step < 9 else True) for step in range(10)]
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    assert frames[0][:40].max() > 150  # there is text
    assert not np.array_equal(frames[0], frames[1])  # the step is drawn in
    calm = caption(picture, "pick up the milk", 3, 9, None, *trace.at(3))
    alarmed = caption(picture, "pick up the milk", 3, 9, None, *trace.at(8))
    assert not np.array_equal(calm, alarmed)
    assert (alarmed[:44] == (230, 159, 0)).all(axis=-1).any()
    assert not (calm[:44] == (230, 159, 0)).all(axis=-1).any()
    write_mp4(tmp_path / "videos" / "a.mp4", frames, 10.0)
    with av.open(str(tmp_path / "videos" / "a.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].codec_context.name == "h264"
    assert len(decoded) == 10
    assert np.abs(decoded[3].astype(int) - frames[3]).mean() < 8
    Image.fromarray(frames[0]).save(tmp_path / "strip.png")
    rows = [("one", True, tmp_path / "strip.png"), ("gone", False, tmp_path / "gone.png")]
    assert contact_sheet(rows, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width == 1200
    assert not contact_sheet([], tmp_path / "none.png")


# With the simulator ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained policy that knows the instruction of libero_object's first task."""
    pytest.importorskip("libero")
    from statevla.statevla_model import StateVLA
    from statevla.training.checkpoint import Contents, DataInfo, LanguageInfo, TrainingState, save_checkpoint
    from statevla.transforms import FieldStatistics, Statistics
    from statevla.types import RobotStateLayout
    from statevla.worlds.libero.tasks import find_task

    folder = tmp_path_factory.mktemp("checkpoint")
    vector = np.ones(16, np.float32)
    np.savez(folder / "language.npz", **{find_task("libero_object", 0).instruction: vector})
    language = tiny_config.language.model_copy(update={"encoder": str(folder / "language.npz")})
    config = tiny_config.model_copy(update={"language": language})
    rng, layout = np.random.default_rng(0), RobotStateLayout.JOINT_GRIPPER
    statistics = Statistics(
        FieldStatistics.of(rng.uniform(-1, 1, (100, 7))), {layout: FieldStatistics.of(rng.normal(size=(100, 9)))}
    )
    torch.manual_seed(0)
    parts = (config, statistics, LanguageInfo(language.encoder, 16, ""), DataInfo("", 0.7, 0), {"phase": "2"})
    save_checkpoint(folder, Contents(StateVLA(config).state_dict(), *parts), TrainingState({}, {}), is_best=True)
    return folder / "checkpoint_best.pt"


@pytest.fixture
def killer() -> Iterator[list[int]]:
    """Kills the first environment process that has worked for a while; the list then holds its process id."""
    killed: list[int] = []
    stop = threading.Event()

    def hunt() -> None:
        while not stop.is_set():
            for child in multiprocessing.active_children():
                if child.name == "environment 0" and child.pid is not None:
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
    from statevla.worlds.evaluate import RolloutArgs, evaluate

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
    from statevla.worlds.evaluate import RolloutArgs, evaluate

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
    script = Path(__file__).parents[2] / "run_libero_eval.py"
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


@pytest.mark.slow
@pytest.mark.ci
def test_an_exception_in_the_environment_is_an_error_not_a_failure(checkpoint: Path, tmp_path: Path) -> None:
    from statevla.types import RobotStateLayout
    from statevla.worlds.libero.tasks import find_task
    from statevla.worlds.workers import EnvSettings, Failed, Look, Start, WorkerPool

    settings = EnvSettings(32, ("agentview",), RobotStateLayout.JOINT_GRIPPER, "official", "fast")
    task = find_task("libero_object", 0)
    broken = replace(task, bddl_path=tmp_path / "absent.bddl")
    with WorkerPool(1, settings) as pool:
        (worker,) = pool.workers
        replies = []
        for start in (broken, task):
            worker.send(Start(EpisodeSpec(0, start, 0, 0, 1, start.instruction), record=False))
            received: list = []
            while not received:
                received = pool.replies()
            replies.append(received[0][1])
    assert isinstance(replies[0], Failed)
    assert not replies[0].is_user_error
    assert "absent.bddl" in replies[0].message + replies[0].details
    assert isinstance(replies[1], Look)  # and the worker goes on
    assert replies[1].observation.images["agentview"].shape == (32, 32, 3)


def test_results_line_holds_everything(tmp_path: Path) -> None:
    """What is written is what is read, field by field."""
    item = result(3, 4, True, policy_ms=[1.5, 2.5], render_s=0.5, surprise=[0.25], novelty=[1.0, 2.0], alarm_step=16)
    log = EpisodeLog(tmp_path / "episodes.jsonl")
    log.append(item)
    log.close()
    assert json.loads((tmp_path / "episodes.jsonl").read_text()) == asdict(item)
