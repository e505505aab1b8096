"""Collection in any world: which episodes are kept, file layout, resuming, dying workers; no simulator is needed."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("gymnasium")

import toy_worlds
from statevla.commands.collect import CollectArgs
from statevla.commands.collect import collect as collect_command
from statevla.data import open_reader
from statevla.errors import UserError
from statevla.machine.lock import only_writer_in
from statevla.robots import ImageOrientation, RobotSpec
from statevla.worlds.collect import collect
from statevla.worlds.collect_tasks import TaskProgress
from statevla.worlds.demo_file import EpisodeRecord, write_episode
from statevla.worlds.protocol import Task
from statevla.worlds.recording import WorldRecipe, run_expert
from toy_worlds import DOT, DotEnv, DotWorld, ReplayableDotWorld, expert

TASK = Task("dots", 0, "near", "move the dot a little", 25)
RECIPE = WorldRecipe("toy_worlds:DotSuite", {"size": "small"}, None, seed=1, image_size=16)


# Which episodes -------------------------------------------------------------------------------------------------------


def settle(job: TaskProgress, index: int, succeeds: bool) -> None:
    if succeeds:
        job.kept[index] = (Path("part"), "episode")
    else:
        job.failed.add(index)


def alone(outcome: list[bool], wanted: int) -> TaskProgress:
    """What one worker comes to, for which the episodes end in this way."""
    job = TaskProgress(TASK, wanted, Path("file"), Path("parts"))
    while todo := job.todo():
        settle(job, todo[0], outcome[todo[0]])
    assert job.is_complete
    return job


OUTCOMES = st.lists(st.booleans(), min_size=60, max_size=60)


@given(OUTCOMES, st.integers(1, 8), st.integers(1, 5), st.randoms())
def test_kept_episodes_do_not_depend_on_the_workers(successes: list[bool], wanted: int, workers: int, random) -> None:  # type: ignore[no-untyped-def]
    """Whatever order workers finish in, the same episodes are tried, and the first successes by index are kept."""
    outcome = [*successes, *[True] * 100]
    job = TaskProgress(TASK, wanted, Path("file"), Path("parts"))
    while True:
        while len(job.running) < workers and (todo := job.todo()):
            job.running.add(todo[0])
        if not job.running:
            break
        finished = random.choice(sorted(job.running))
        job.running.discard(finished)
        settle(job, finished, outcome[finished])
    one = alone(outcome, wanted)
    assert job.is_complete
    assert (job.kept, job.failed) == (one.kept, one.failed)
    if len(job.kept) == wanted:
        assert job.first() == [index for index, good in enumerate(outcome) if good][:wanted]


@given(OUTCOMES, st.integers(1, 8), st.integers(2, 4))
def test_kept_episodes_do_not_depend_on_the_processes(successes: list[bool], wanted: int, num_processes: int) -> None:
    """Rounds of shares come to what one worker comes to."""
    outcome = [*successes, *[True] * 100]
    job = TaskProgress(TASK, wanted, Path("file"), Path("parts"))
    while missing := job.missing():
        shares = [set(missing[rank::num_processes]) for rank in range(num_processes)]
        for share in shares:
            job.share = share
            made = job.todo()
            assert set(made) == share
            for index in made:
                settle(job, index, outcome[index])
            assert not job.todo()
    one = alone(outcome, wanted)
    assert (job.kept, job.failed) == (one.kept, one.failed)


def test_hopeless_task_ends() -> None:
    job = alone([False] * 100, 2)
    assert len(job.failed) == 17


def test_interrupted_run_is_picked_up_from_its_parts(tmp_path: Path) -> None:
    parts, file = tmp_path / "parts", tmp_path / "file.hdf5"
    parts.mkdir()
    for index in (0, 2, 5):
        record = EpisodeRecord({"actions": np.full((3, 3), index, float)}, {"num_samples": 3, "episode_index": index})
        write_episode(parts / f"episode_{index:05d}.hdf5", record)
    (parts / "episode_00001.failed").touch()
    (parts / "episode_00007.tmp").write_bytes(b"half an episode")
    job = TaskProgress(TASK, 3, file, parts)
    job.scan()
    assert job.is_complete
    job.join(RECIPE)
    job.join(RECIPE)  # a second time there is nothing to do
    assert not parts.exists()
    with h5py.File(file) as handle:
        assert [handle[f"data/demo_{i}/actions"][0, 0] for i in range(3)] == [0, 2, 5]
        assert handle["data"].attrs["num_demos"] == 3
        assert handle["data"].attrs["total"] == 9
        assert json.loads(handle["data"].attrs["failed_episodes"]) == [1]
    # More demonstrations later: the joined file's episodes count, the others are still missing.
    again = TaskProgress(TASK, 5, file, parts)
    again.scan()
    assert sorted(again.kept) == [0, 2, 5]
    assert again.missing() == [3, 4]


# One episode ----------------------------------------------------------------------------------------------------------


def seeds_by_outcome(kind: type[DotWorld]) -> dict[bool, int]:
    """A seed of which the expert succeeds, and one of which it fails."""
    world, found = kind(), {}
    for seed in range(20):
        world.reset(seed)
        found.setdefault(run_expert(world, expert, np.random.default_rng(0)) is not None, seed)
    return found


@pytest.mark.parametrize("kind", [DotWorld, ReplayableDotWorld])
def test_frames_show_what_was_seen_before_each_action(kind: type[DotWorld]) -> None:
    world = kind(image_size=24)
    world.reset(seeds_by_outcome(kind)[True])
    steps = run_expert(world, expert, np.random.default_rng(0))
    assert steps is not None
    stored, objects = steps.datasets(world)
    assert stored["dones"].tolist() == [0] * (len(steps.actions) - 1) + [1]
    for place, frame in zip(stored["obs/place"], stored["obs/side_rgb"]):
        np.testing.assert_array_equal(frame, toy_worlds.draw(place, world.goal, 24))
    moved = np.diff(stored["obs/place"], axis=0)
    np.testing.assert_allclose(moved, 0.1 * stored["executed_actions"][:-1, :2].clip(-1, 1))
    assert np.abs(stored["actions"] - stored["executed_actions"])[:, :2].max() > 0.01
    assert ("states" in stored) == ("obs/object_states" in stored) == bool(objects) == (kind is ReplayableDotWorld)


def test_failures_cost_no_frames() -> None:
    world = ReplayableDotWorld()
    seeds = seeds_by_outcome(ReplayableDotWorld)
    world.reset(seeds[False])
    assert run_expert(world, expert, np.random.default_rng(0)) is None
    world.reset(seeds[True])
    assert run_expert(world, expert, np.random.default_rng(0)) is not None
    assert world.num_frames == 0


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(2), r"takes 3 finite numbers \(push .*lamp .*\), got shape \[2\]"),
        (np.array([0, np.nan, 0]), "got NaN or infinite numbers"),
        (np.array([0, 0, 0.5]), r"number 'lamp' is a command out of 0 and 1, got 0.5"),
    ],
)
def test_an_experts_action_must_fit_the_robot(action: np.ndarray, message: str) -> None:
    world = DotWorld()
    world.reset(0)

    def clumsy(world, rng):  # type: ignore[no-untyped-def]
        yield toy_worlds.ExpertStep(action)

    with pytest.raises(UserError, match=message):
        run_expert(world, clumsy, np.random.default_rng(0))


def test_an_expert_has_no_more_time_than_a_policy() -> None:
    world, calls = DotWorld(), []
    world.reset(0)

    def endless(world, rng):  # type: ignore[no-untyped-def]
        while True:
            calls.append(0)
            yield toy_worlds.ExpertStep(np.zeros(3))

    run_expert(world, endless, np.random.default_rng(0))
    assert len(calls) == world.max_steps


# A whole collection ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demos")
    summaries = collect(RECIPE, [0, 1], 3, out)
    assert [summary.num_demos for summary in summaries] == [3, 3]
    assert sum(summary.num_failed for summary in summaries) > 0
    return out


def test_the_file_declares_its_robot(collected: Path) -> None:
    assert sorted(path.name for path in collected.iterdir()) == ["far_demo.hdf5", "near_demo.hdf5"]
    with h5py.File(collected / "far_demo.hdf5") as file:
        attributes = file["data"].attrs
        assert RobotSpec.from_dict(json.loads(attributes["robot"]), "file") == DOT
        assert json.loads(attributes["env_args"])["env_kwargs"] == {"control_freq": 30.0}
        assert json.loads(attributes["collection"]) == RECIPE.as_dict()
        assert json.loads(attributes["versions"]) == {"dots": "1.0"}
        assert attributes["image_orientation"] == "upright"
        demo = file["data/demo_0"]
        length = demo.attrs["num_samples"]
        assert {key: values.shape for key, values in demo["obs"].items()} == {
            "top_rgb": (length, 16, 16, 3),
            "side_rgb": (length, 16, 16, 3),
            "place": (length, 2),
            "lamp": (length, 1),
            "object_states": (length, 1, 7),
        }
        assert json.loads(demo["obs/object_states"].attrs["names"]) == ["square"]
        world = ReplayableDotWorld()
        world.reset(int(demo.attrs["seed"]))
        np.testing.assert_array_equal(world.state(), demo["states"][0])


def test_the_reader_understands_the_file(collected: Path) -> None:
    with open_reader(collected) as reader:
        assert reader.robot.difference(DOT) is None
        assert {camera.orientation for camera in reader.robot.cameras} == {ImageOrientation.UPRIGHT}
        assert {info.instruction for info in reader.episodes} == {"move the dot a little", "move the dot a lot"}
        arrays = reader.read(0)
    assert arrays.success
    assert arrays.executed_actions is not None
    assert set(arrays.robot_states) == {"place", "lamp"}
    red = np.argwhere(arrays.images["top"][0][..., 0] > 180).mean(0)
    assert red[::-1] / 16 * 2.4 - 1.2 == pytest.approx(arrays.robot_states["place"][0], abs=0.25)


def test_more_workers_write_the_same_and_goes_on(collected: Path, tmp_path: Path) -> None:
    collect(RECIPE, [0], 1, tmp_path)
    collect(RECIPE, [0, 1], 3, tmp_path, num_workers=2)
    for name in ("near_demo.hdf5", "far_demo.hdf5"):
        with h5py.File(collected / name) as first, h5py.File(tmp_path / name) as second:
            assert first["data"].keys() == second["data"].keys()
            for demo in first["data"]:
                for key in ("states", "actions", "executed_actions", "obs/top_rgb"):
                    np.testing.assert_array_equal(first[f"data/{demo}/{key}"], second[f"data/{demo}/{key}"])
    with pytest.raises(UserError, match=r"'near' were collected with another seed; use the same settings, or another"):
        collect(WorldRecipe("toy_worlds:DotSuite", {"size": "small"}, None, seed=2, image_size=16), [0], 3, tmp_path)


def same_files(first: Path, second: Path) -> bool:
    """Whether two HDF5 files hold the same, attributes included."""

    def contents(path: Path) -> dict[str, object]:
        found: dict[str, object] = {}

        def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
            found[name] = item[()].tobytes() if isinstance(item, h5py.Dataset) else None
            found.update({f"{name}@{key}": str(value) for key, value in item.attrs.items()})

        with h5py.File(path) as file:
            file.visititems(note)
        return found

    return contents(first) == contents(second)


def test_processes_of_torchrun_write_the_same(collected: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "statevla"]
    command += ["collect", "--world", "toy_worlds:DotSuite", "--demos", "3", "--seed", "1", "--image-size", "16"]
    environment = {**os.environ, "PYTHONPATH": str(Path(toy_worlds.__file__).parent), "OMP_NUM_THREADS": "1"}
    one, two = tmp_path / "one", tmp_path / "two"
    collect(WorldRecipe("toy_worlds:DotSuite", seed=1, image_size=16), [0, 1], 3, one)
    # An earlier run is picked up.
    collect(WorldRecipe("toy_worlds:DotSuite", seed=1, image_size=16), [0], 1, two)
    command += ["--workers", "1", "--out", str(two)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("failed attempts") == 1  # the table, by the first process alone
    assert sorted(path.name for path in two.iterdir()) == ["far_demo.hdf5", "near_demo.hdf5"]
    for name in ("far_demo.hdf5", "near_demo.hdf5"):
        assert same_files(one / name, two / name)
    assert not same_files(one / "far_demo.hdf5", two / "near_demo.hdf5")


def test_finished_episodes_outlive_a_dying_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    monkeypatch.setenv("TOY_DIES", str(token))
    recipe = WorldRecipe("toy_worlds:DyingWorld", {}, "toy_worlds:expert", image_size=16)
    out = tmp_path / "out"
    collect(recipe, [0], 1, out)
    token.touch()
    with pytest.raises(
        UserError, match=r"the world's process ended \(exit status 7\) in episode \d+ of 'DyingWorld'; finished"
    ):
        collect(recipe, [0], 3, out)
    (summary,) = collect(recipe, [0], 3, out)
    assert summary.num_demos == 3


def test_an_error_in_a_worker_is_one_line_and_tells_where_the_rest_is(tmp_path: Path) -> None:
    recipe = WorldRecipe("toy_worlds:BrokenWorld", {}, "toy_worlds:expert", image_size=16)
    with pytest.raises(
        UserError, match=r"^episode \d+ of 'BrokenWorld' ended in ZeroDivisionError: the table"
    ) as error:
        collect(recipe, [0], 2, tmp_path)
    assert "\n" not in str(error.value)
    (traceback,) = tmp_path.rglob("*.traceback")
    assert str(traceback) in str(error.value)
    assert 'raise ZeroDivisionError("the table has no legs")' in traceback.read_text()
    # Once it is mended, the same command goes on.
    (tmp_path / ".parts" / "BrokenWorld" / "settings.json").unlink()
    (summary,) = collect(WorldRecipe("toy_worlds:DotSuite"), [0], 1, tmp_path)
    assert summary.num_demos == 1


def test_what_is_missing_is_found_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a table"):
        collect(WorldRecipe("toy_worlds:LackingSuite"), [0], 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_an_expert_gets_wrong_is_one_line(tmp_path: Path) -> None:
    recipe = WorldRecipe("toy_worlds:DotWorld", {}, "toy_worlds:shy_expert", image_size=16)
    with pytest.raises(UserError, match=r"expert: robot 'dot' takes 3 finite numbers .*got shape \[2\]"):
        collect(recipe, [0], 1, tmp_path)
    with pytest.raises(UserError, match="brings no expert"):
        collect(WorldRecipe("toy_worlds:DotWorld"), [0], 1, tmp_path)


def test_each_process_opens_its_own_suite() -> None:
    recipe = WorldRecipe("toy_worlds:DotSuite")
    recipe.prepare()
    assert b"DotSuite'" not in pickle.dumps(recipe)
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_a_gymnasium_environment_can_be_collected_in(tmp_path: Path) -> None:
    recipe = WorldRecipe("toy_worlds:DotEnv", {}, "toy_worlds:env_expert")
    collect(recipe, [0], 2, tmp_path)
    with open_reader(tmp_path) as reader:
        assert reader.robot.difference(DotEnv.robot) is None
        assert reader.read(0).images["top"].shape[1:] == (48, 64, 3)


def test_folders_and_numbers_are_checked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        collect(RECIPE, [0], 1, tmp_path / "file" / "out")
    with only_writer_in(tmp_path), pytest.raises(UserError, match="is writing here"):
        collect(RECIPE, [0], 1, tmp_path)
    with h5py.File(tmp_path / "near_demo.hdf5", "w") as file:
        file.create_group("data/demo_0")
    with pytest.raises(UserError, match="expected a file of this collector"):
        collect(RECIPE, [0], 1, tmp_path)
    with pytest.raises(UserError, match="at least one demo, and no fewer workers than 0, got 0 and 1"):
        collect(RECIPE, [0], 0, tmp_path)


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_collects_in_any_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = CollectArgs("toy_worlds:DotSuite", out=tmp_path, tasks="1", demos=2, image_size=16)
    assert collect_command(args) == 0
    assert "far_demo.hdf5" in capsys.readouterr().out
    assert collect_command(CollectArgs("toy_worlds:DotSuite", out=tmp_path, tasks="1", demos=1, image_size=16)) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "more than 1 episodes, kept from an earlier collection: far" in told
    never = CollectArgs("toy_worlds:DotWorld", expert="toy_worlds:idle_expert", out=tmp_path, demos=1, image_size=16)
    assert collect_command(never) == 1
    assert "the expert fails too often on: DotWorld" in capsys.readouterr().out


def test_liberos_flags_are_liberos(tmp_path: Path) -> None:
    values: dict[str, Any] = {"noise": 0.2, "reaches": "start", "reach_tasks": "0", "frame_stride": 4, "dagger": "x"}
    values |= {"replan_steps": 4, "wide": True, "play": True, "exchange": True, "recolor": True, "rearrange": True}
    for_any = {"world", "expert", "out", "tasks", "demos", "workers", "image_size", "format", "seed", "rendering"}
    assert values.keys() | for_any == {field.name for field in fields(CollectArgs)}  # none goes unread in other worlds
    for flag, value in values.items():
        with pytest.raises(UserError, match=f"--{flag}: is for LIBERO's scripted expert alone"):
            collect_command(CollectArgs("toy_worlds:DotSuite", out=tmp_path, **{flag: value}))
