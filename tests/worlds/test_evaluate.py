"""An evaluation's records: which episodes, what is written and read back, intervals, videos."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statevla.errors import UserError
from statevla.machine.sealed import seal
from statevla.worlds.protocol import Task
from statevla.worlds.rollout_plan import EpisodeSpec, Schedule, episode_spec, plan_episodes
from statevla.worlds.rollout_results import (
    EpisodeLog,
    EpisodeResult,
    claim_folder,
    read_results,
    success_interval,
    summarize,
    summarize_alarms,
)

TASKS = [Task("libero_object", i, f"task_{i}", f"do {i}", 280, num_init_states=50) for i in range(10)]


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
    one = episode_spec(task * num_trials + trial, TASKS, num_trials, seed)
    many = num_trials + more
    same = episode_spec(task * many + trial, TASKS, many, seed)
    alone = episode_spec(trial, TASKS[task : task + 1], num_trials, seed)
    assert one.key == same.key == alone.key == (task, trial)
    assert one.init_state_index == same.init_state_index == trial % 50
    assert one.seed == same.seed == alone.seed
    assert one.seed != episode_spec(task * num_trials + trial, TASKS, num_trials, seed + 1).seed


def test_all_episodes_differ_and_cover_every_initial_state() -> None:
    episodes = [episode_spec(number, TASKS, 50, 0) for number in range(500)]
    assert len({episode.seed for episode in episodes}) == 500
    assert {episode.key for episode in episodes} == {(task, trial) for task in range(10) for trial in range(50)}
    assert sorted(episode.init_state_index for episode in episodes[:50]) == list(range(50))


class TenTasks:
    name, tasks = "libero_object", TASKS


def test_shuffled_instructions_are_all_the_others_and_change_nothing_else() -> None:
    own = plan_episodes(TenTasks(), TASKS[:2], 18, 0)  # type: ignore[arg-type]
    shuffled = plan_episodes(TenTasks(), TASKS[:2], 18, 0, "shuffled")  # type: ignore[arg-type]
    assert [episode.instruction for episode in own] == [episode.task.instruction for episode in own]
    assert [replace(told, instruction=one.instruction) for told, one in zip(shuffled, own)] == own
    for task in (0, 1):
        told = [episode.instruction for episode in shuffled if episode.task.index == task]
        assert sorted(told) == sorted(2 * [t.instruction for t in TASKS if t.index != task])


def test_nothing_to_shuffle_and_no_trials() -> None:
    suite = TenTasks()
    suite.tasks = TASKS[:1]
    with pytest.raises(UserError, match="has one instruction only"):
        plan_episodes(suite, TASKS[:1], 1, 0, "shuffled")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="num_trials: expected at least 1, got 0"):
        plan_episodes(suite, TASKS[:1], 0, 0)  # type: ignore[arg-type]


def test_without_fixed_states_the_seed_draws_one() -> None:
    episode = episode_spec(3, [replace(TASKS[0], num_init_states=0)], 5, 0)
    assert episode.init_state_index is None
    assert episode.reset_options == {}
    assert episode.seed == episode_spec(3, TASKS, 5, 0).seed
    assert episode_spec(3, TASKS, 5, 0).reset_options == {"init_state_index": 3}


def test_schedule_keeps_workers_at_their_task_and_loses_nothing() -> None:
    episodes = [episode_spec(number, TASKS[:3], 5, 0) for number in range(15)]
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
    settings, facts = {"seed": 0, "temporal_ensembling": None, "task_suite": "libero_object"}, {"control_freq_hz": 20.0}
    claim_folder(tmp_path / "new", settings, facts)
    claim_folder(tmp_path / "new", dict(settings), facts)
    assert json.loads((tmp_path / "new" / "settings.json").read_text()) == {**settings, **facts}
    with pytest.raises(UserError, match=r"temporal_ensembling = None, now it is 0.01; .*--out"):
        claim_folder(tmp_path / "new", {**settings, "temporal_ensembling": 0.01}, facts)


def test_a_folder_from_before_a_fact_was_stored_goes_on(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"seed": 0}')
    claim_folder(tmp_path, {"seed": 0}, {"control_freq_hz": 20.0})
    with pytest.raises(UserError, match="instructions = None, now it is 'shuffled'"):
        claim_folder(tmp_path, {"seed": 0, "instructions": "shuffled"}, {})


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

    from statevla.worlds.surprise_trace import SurpriseTrace
    from statevla.worlds.video import caption, contact_sheet, write_mp4

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
        assert container.streams.video[0].average_rate == 10
    assert len(decoded) == 10
    assert np.abs(decoded[3].astype(int) - frames[3]).mean() < 8
    Image.fromarray(frames[0]).save(tmp_path / "strip.png")
    rows = [("one", True, tmp_path / "strip.png"), ("gone", False, tmp_path / "gone.png")]
    assert contact_sheet(rows, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width == 1200
    assert not contact_sheet([], tmp_path / "none.png")


def test_results_line_holds_everything(tmp_path: Path) -> None:
    """What is written is what is read, field by field."""
    item = result(3, 4, True, policy_ms=[1.5, 2.5], render_s=0.5, surprise=[0.25], novelty=[1.0, 2.0], alarm_step=16)
    log = EpisodeLog(tmp_path / "episodes.jsonl")
    log.append(item)
    log.close()
    assert json.loads((tmp_path / "episodes.jsonl").read_text()) == seal(asdict(item))


def test_flipped_bits_of_results_are_noticed(tmp_path: Path) -> None:
    path, rng = tmp_path / "episodes.jsonl", np.random.default_rng(0)
    log = EpisodeLog(path)
    for item in (result(0, 0), result(0, 1, False, surprise=[0.25]), result(1, 0)):
        log.append(item)
    log.close()
    whole, before = path.read_bytes(), read_results(tmp_path)
    for place, bit in zip(rng.integers(0, len(whole) - 1, 40), rng.integers(0, 8, 40)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"episodes\.jsonl"):
            read_results(tmp_path)
    path.write_bytes(whole.replace(b'"trial": 1', b'"trial": 2'))
    with pytest.raises(UserError, match="line 2: damaged, or edited"):
        read_results(tmp_path)
    # Of before there were seals.
    path.write_text("".join(json.dumps(asdict(item)) + "\n" for item in before.values()))
    assert read_results(tmp_path) == before
