"""Evaluation in any world: what is checked before it starts, filmed, retried, continued; no simulator is needed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium")

import toy_worlds
from statevla.config import Config
from statevla.errors import UserError
from statevla.robots import LIBERO, LIBERO_HAND, load_robot
from statevla.worlds.child_process import Failed
from statevla.worlds.evaluate import RolloutArgs, evaluate, results_folder
from statevla.worlds.fitting import check_fit
from statevla.worlds.registry import open_suite
from statevla.worlds.rollout_plan import EpisodeSpec
from statevla.worlds.rollout_results import read_results
from statevla.worlds.surprise_trace import SurpriseTrace
from statevla.worlds.video import Film, save_episode
from statevla.worlds.workers import Ended, Execute, Look, Start, WorkerPool, WorldSettings
from toy_worlds import DOT, MAX_STEPS, DotEnv, DotSuite, DotWorld, ReplayableDotWorld
from untrained_policy import save_untrained

SO101 = load_robot("so101")
TEXTS = (toy_worlds.INSTRUCTION, "move the dot a little", "move the dot a lot")


@pytest.fixture(scope="module")
def checkpoint(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained policy of the dot."""
    return save_untrained(tiny_config, DOT, TEXTS, tmp_path_factory.mktemp("dot"))


def run(checkpoint: Path, world: str, out: Path, **options: object) -> tuple[Path, dict]:
    args = RolloutArgs(str(checkpoint), world, out=str(out), num_workers=1, **options)  # type: ignore[arg-type]
    folder, summary = evaluate(args)
    assert summary is not None
    return folder, summary


# Before anything moves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"actions": DOT.actions[:1]},
            r"action groups: push \(2 continuous, delta\) against push .*, lamp \(1 binary\)",
        ),
        ({"actions": SO101.actions, "state": SO101.state}, r"action groups: arm \(5 .* against push \(2 "),
        ({"state": (*DOT.state, LIBERO.state[0])}, r"state: place \(2\), lamp \(1\), joint_positions \(7\) against"),
        ({"control_freq_hz": 20.0}, r"control_freq_hz: 20.0 against 30.0"),
        ({"cameras": LIBERO.cameras[1:]}, r"looks through camera 'eye_in_hand', world 'dots' has top, side; name"),
    ],
)
def test_a_policy_of_another_robot_is_refused(changes: dict, message: str) -> None:
    robot = DOT.model_copy(update={"name": "other", **changes})
    with pytest.raises(UserError, match=message) as caught:
        check_fit(robot, "my policy", DotSuite())
    assert "\n" not in str(caught.value)


def test_a_policy_sees_some_of_what_the_world_reports() -> None:
    check_fit(DOT, "policy", DotSuite())
    turned = DOT.model_copy(update={"state": DOT.state[::-1], "cameras": DOT.cameras[1:]})
    check_fit(turned, "policy", DotSuite())

    class Libero:
        name, robot = "libero_object", LIBERO

    check_fit(LIBERO_HAND, "policy", Libero())  # type: ignore[arg-type]


def test_what_is_wrong_is_said_before_a_worker_starts(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not fit world 'toy_worlds:DotEnv' .*control_freq_hz|action groups"):
        run(checkpoint, "toy_worlds:DotEnv", tmp_path)
    with pytest.raises(UserError, match="takes no option 'rendering'"):
        run(checkpoint, "toy_worlds:DotSuite", tmp_path, rendering="exact")
    with pytest.raises(UserError, match="task 2 of suite"):
        run(checkpoint, "toy_worlds:DotSuite", tmp_path, tasks="0-2")
    assert not list(tmp_path.iterdir())


def test_folders_are_named_after_checkpoint_world_and_weights() -> None:
    folder = results_folder(RolloutArgs("runs/a/checkpoint_best.pt", "my_world:make"), "0123456789")
    assert folder.name == "a-checkpoint_best-my_world_make-01234567"


# A whole evaluation ---------------------------------------------------------------------------------------------------


def test_an_evaluation_continues_where_it_was(checkpoint: Path, tmp_path: Path) -> None:
    folder, summary = run(checkpoint, "toy_worlds:DotSuite", tmp_path, num_trials=2)
    assert summary["complete"]
    assert summary["settings"] == json.loads((folder / "settings.json").read_text())
    assert summary["settings"]["task_suite"] == "toy_worlds:DotSuite"
    assert summary["settings"]["world_options"] == {"size": "large"}
    assert summary["settings"]["control_freq_hz"] == 30.0
    assert summary["settings"]["render_size"] == 96  # as the data that it was trained on
    assert summary["versions"]["dots"] == "1.0"
    results = read_results(folder)
    assert [results[0, trial].init_state_index for trial in (0, 1)] == [0, 1]  # of three fixed ones
    assert results[1, 0].init_state_index is None
    assert results[1, 0].instruction == "move the dot a lot"
    assert all(result.num_steps <= MAX_STEPS for result in results.values())
    assert len(list(folder.glob("videos/task0[01]_*.mp4"))) >= 2
    assert (folder / "contact_sheet.png").is_file()
    before = (folder / "episodes.jsonl").read_text()
    _, summary = run(checkpoint, "toy_worlds:DotSuite", tmp_path, num_trials=3)
    assert summary["episodes_in_this_run"] == 2
    assert summary["total"]["episodes"] == 6
    assert (folder / "episodes.jsonl").read_text().startswith(before)
    with pytest.raises(UserError, match="task_suite = 'toy_worlds:DotSuite', now it is 'toy_worlds:DotWorld'"):
        run(checkpoint, "toy_worlds:DotWorld", tmp_path)


def test_a_world_that_cannot_replay_is_filmed_on_the_way(checkpoint: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    folder, _ = run(checkpoint, "toy_worlds:DotWorld", tmp_path, num_trials=2)
    (video, *_) = folder.glob("videos/*.mp4")
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 10  # of 30 control steps a second
        assert (stream.width, stream.height) == (2 * 256, 256 + 44)


def test_a_killed_worker_is_retried(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.touch()
    monkeypatch.setenv("TOY_DIES", str(token))
    folder, summary = run(checkpoint, "toy_worlds:DyingWorld", tmp_path / "out", num_trials=2, videos=0)
    assert [result.num_attempts for result in read_results(folder).values()] == [2, 1]
    assert summary["total"]["errors"] == 0


def test_an_error_of_the_world_is_not_a_failure_of_the_policy(checkpoint: Path, tmp_path: Path) -> None:
    folder, summary = run(checkpoint, "toy_worlds:BrokenWorld", tmp_path, num_trials=2, videos=0)
    assert (summary["total"]["episodes"], summary["total"]["errors"]) == (0, 2)
    assert "the table has no legs" in read_results(folder)[0, 0].error  # type: ignore[operator]
    with pytest.raises(UserError, match=r"the first 3 episodes all ended in errors .*no legs"):
        run(checkpoint, "toy_worlds:BrokenWorld", tmp_path / "more", num_trials=5, videos=0)


def test_an_episode_may_end_early(checkpoint: Path, tmp_path: Path) -> None:
    folder, _ = run(checkpoint, "toy_worlds:FallingDotWorld", tmp_path, num_trials=1, videos=0)
    assert read_results(folder)[0, 0].num_steps == 1


def test_a_gymnasium_environment_is_a_world(tiny_config: Config, tmp_path: Path) -> None:
    checkpoint = save_untrained(tiny_config, DotEnv.robot, TEXTS, tmp_path / "run")
    folder, summary = run(checkpoint, "toy_worlds:DotEnv", tmp_path / "out", num_trials=2)
    assert summary["total"]["episodes"] == 2
    assert "gymnasium" in summary["versions"]
    assert list(folder.glob("videos/*.mp4"))


# Workers --------------------------------------------------------------------------------------------------------------


def ask(pool: WorkerPool, message: object) -> object:
    (worker,) = pool.workers
    worker.send(message)
    replies: list = []
    while not replies:
        replies = pool.replies()
    return replies[0][1]


def test_a_worker_looks_acts_and_goes_on_after_an_exception() -> None:
    suite = open_suite("toy_worlds:BrokenWorld")
    spec = EpisodeSpec(0, suite.tasks[0], 0, None, 1, "")
    with WorkerPool(1, WorldSettings("toy_worlds:BrokenWorld", {}, 24, ("side",))) as pool:
        look = ask(pool, Start(spec, record=False))
        assert isinstance(look, Look)
        assert {name: image.shape for name, image in look.observation.images.items()} == {"side": (24, 24, 3)}
        failed = ask(pool, Execute(np.zeros((2, 3))))
        assert isinstance(failed, Failed)
        assert not failed.is_user_error
        assert "ZeroDivisionError" in failed.details
        assert isinstance(ask(pool, Start(spec, record=False)), Look)


def test_the_step_limit_is_the_tasks() -> None:
    suite = open_suite("toy_worlds:DotWorld")
    spec = EpisodeSpec(0, replace(suite.tasks[0], max_steps=3), 0, None, 1, "")
    with WorkerPool(1, WorldSettings("toy_worlds:DotWorld", {}, 24, ("top",))) as pool:
        ask(pool, Start(spec, record=True))
        assert isinstance(ask(pool, Execute(np.zeros((2, 3)))), Look)
        ended = ask(pool, Execute(np.zeros((2, 3))))
        assert isinstance(ended, Ended)
        assert (ended.success, ended.num_steps) == (False, 3)


# Films ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DotWorld, ReplayableDotWorld])
def test_a_film_shows_every_third_moment_and_the_last(kind: type[DotWorld], tmp_path: Path) -> None:
    pytest.importorskip("av")
    world = kind(32)
    world.reset(0)
    film = Film(world, ("top",))
    num_frames, places = world.num_frames, []
    for step in range(8):
        film.note(step, is_last=step == 7)
        places.append(world.dot.copy())
        world.step(np.array([1.0, 0.0, 1.0]))
    drawn_on_the_way = world.num_frames - num_frames
    assert drawn_on_the_way == (0 if kind is ReplayableDotWorld else 8)  # two cameras, four moments
    frames = dict(film.frames())
    assert list(frames) == [0, 3, 6, 7]
    assert all(len(views) == 1 and views[0].shape == (384, 384, 3) for views in frames.values())
    # Where the red dot is, in the frame and in the world.
    for step, (view,) in frames.items():
        red = np.argwhere((view[..., 0] > 180) & (view[..., 1] < 100)).mean(0)
        assert red[1] / 384 * 2.4 - 1.2 == pytest.approx(places[step][0], abs=0.1)
    save_episode(film, True, tmp_path / "a.mp4", tmp_path / "a.png", "move", SurpriseTrace())
    assert (tmp_path / "a.mp4").stat().st_size > 0
    assert (tmp_path / "a.png").is_file()
