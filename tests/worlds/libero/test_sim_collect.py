"""Collection: file layout, resuming, independence of the workers' number, replay."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("libero")

from statevla.data.libero import LiberoReader
from statevla.errors import UserError
from statevla.types import ImageOrientation, RobotStateLayout
from statevla.worlds.collect import TaskProgress, collect
from statevla.worlds.libero.cli import CollectArgs
from statevla.worlds.libero.cli import collect as collect_command
from statevla.worlds.libero.demo_file import (
    HIDDEN_ATTRIBUTE,
    SETTINGS_ATTRIBUTE,
    EpisodeRecord,
    join_episodes,
    write_episode,
)
from statevla.worlds.libero.episodes import CollectSettings
from statevla.worlds.libero.replay import replay_data
from statevla.worlds.libero.tasks import find_task

SETTINGS = CollectSettings("libero_object", seed=1, image_size=32)


@given(st.lists(st.booleans(), min_size=60, max_size=60), st.integers(1, 8), st.integers(1, 5), st.randoms())
def test_kept_episodes_do_not_depend_on_the_workers(successes: list[bool], wanted: int, workers: int, random) -> None:  # type: ignore[no-untyped-def]
    """Whatever order workers finish in, the first successes by index are kept."""
    outcome = [*successes, *[True] * 100]
    job = TaskProgress(find_task("libero_object", 0), wanted, Path("file"), Path("parts"))
    while True:
        while len(job.running) < workers and (index := job.next_index()) is not None:
            job.running.add(index)
        if not job.running:
            break
        finished = random.choice(sorted(job.running))
        job.running.discard(finished)
        if outcome[finished]:
            job.kept[finished] = (Path("part"), "episode")
        else:
            job.failed.add(finished)
    assert job.complete
    if not job.hopeless:
        assert job.first() == [index for index, good in enumerate(outcome) if good][:wanted]


def test_hopeless_task_ends() -> None:
    job = TaskProgress(find_task("libero_object", 0), 2, Path("file"), Path("parts"))
    count = 0
    while (index := job.next_index()) is not None:
        job.failed.add(index)
        count += 1
    assert job.hopeless
    assert job.complete
    assert count == 17


def record(index: int) -> EpisodeRecord:
    datasets = {"actions": np.full((3, 7), index, float), "obs/object_states": np.zeros((3, 1, 7))}
    return EpisodeRecord(datasets, {"num_samples": 3, "episode_index": index}, ["milk_1"])


def test_interrupted_run_is_picked_up_from_its_parts(tmp_path: Path) -> None:
    task = find_task("libero_object", 0)
    parts, file = tmp_path / "parts", tmp_path / "file.hdf5"
    parts.mkdir()
    for index in (0, 2, 5):
        write_episode(parts / f"episode_{index:05d}.hdf5", record(index))
    (parts / "episode_00001.failed").touch()
    (parts / "episode_00007.tmp").write_bytes(b"half an episode")
    job = TaskProgress(task, 3, file, parts)
    job.scan()
    assert job.next_index() is None
    job.join(SETTINGS)
    assert not parts.exists()
    with h5py.File(file) as handle:
        assert [handle[f"data/demo_{i}/actions"][0, 0] for i in range(3)] == [0, 2, 5]
        assert handle["data"].attrs["num_demos"] == 3
        assert handle["data"].attrs["total"] == 9
        assert json.loads(handle["data"].attrs["failed_episodes"]) == [1]
    # More demonstrations later: the joined file's episodes count, the others are still missing.
    again = TaskProgress(task, 5, file, parts)
    again.scan()
    assert sorted(again.kept) == [0, 2, 5]
    assert again.next_index() == 3


def test_more_than_asked_for_is_kept_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, part = find_task("libero_object", 0), tmp_path / "part.hdf5"
    write_episode(part, record(0))
    file = tmp_path / f"{task.name}_demo.hdf5"
    settings = CollectSettings("libero_object")
    join_episodes(file, task, [(part, "episode")] * 3, settings.as_dict(), [])
    with h5py.File(file, "r+") as written:
        for number in range(3):
            written[f"data/demo_{number}"].attrs["episode_index"] = number
    args = CollectArgs(suite="libero_object", tasks="0", demos=2, out=tmp_path, workers=1)
    assert collect_command(args) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"more than 2 episodes, kept from an earlier collection: {task.name}" in told
    with h5py.File(file) as kept:
        assert len(kept["data"]) == 3


def test_other_settings_are_refused(tmp_path: Path) -> None:
    task = find_task("libero_object", 0)
    write_episode(tmp_path / "part.hdf5", record(0))
    file = tmp_path / f"{task.name}_demo.hdf5"
    join_episodes(file, task, [(tmp_path / "part.hdf5", "episode")], SETTINGS.as_dict(), [])
    with pytest.raises(UserError, match="another noise"):
        collect(CollectSettings("libero_object", seed=1, image_size=32, noise=0.3), [0], 1, tmp_path)


def test_flags_of_reaches_need_reaches(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--reach-tasks.*give --reaches"):
        collect_command(CollectArgs(reach_tasks="0-2", out=tmp_path))
    with pytest.raises(UserError, match="task 10 of suite"):
        collect_command(CollectArgs(reaches="start", reach_tasks="10", out=tmp_path))
    with pytest.raises(UserError, match="expected one of them"):
        collect_command(CollectArgs(reaches="start", play=True, out=tmp_path))


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / f"{find_task('libero_object', 0).name}_demo.hdf5", "w") as file:
        file.create_group("data/demo_0")
    with pytest.raises(UserError, match="expected a file of this collector"):
        collect(SETTINGS, [0], 1, tmp_path)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        collect(SETTINGS, [0], 1, tmp_path / "file" / "out")


def test_second_collector_is_refused(tmp_path: Path) -> None:
    with (tmp_path / ".collecting").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another collection is writing there"):
            collect(SETTINGS, [0], 1, tmp_path)


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demos")
    (summary,) = collect(SETTINGS, [0], 2, out, num_workers=1)
    assert summary.num_demos == 2
    return out


@pytest.mark.slow
@pytest.mark.ci
def test_file_has_liberos_layout(collected: Path) -> None:
    (file,) = collected.glob("*.hdf5")
    assert file.name == "pick_up_the_alphabet_soup_and_place_it_in_the_basket_demo.hdf5"
    assert not (collected / ".parts").exists()
    with h5py.File(file) as handle:
        demo = handle["data/demo_0"]
        length = int(demo.attrs["num_samples"])
        shapes = {key: demo[f"obs/{key}"].shape for key in demo["obs"]}
        assert shapes == {
            "agentview_rgb": (length, 32, 32, 3),
            "eye_in_hand_rgb": (length, 32, 32, 3),
            "ee_ori": (length, 3),
            "ee_pos": (length, 3),
            "ee_states": (length, 6),
            "gripper_states": (length, 2),
            "joint_states": (length, 7),
            "object_states": (length, 7, 7),
        }
        states = demo["states"][()]
        np.testing.assert_array_equal(demo["obs/joint_states"][()], states[:, 1:8])
        np.testing.assert_array_equal(demo["obs/gripper_states"][()], states[:, 8:10])
        np.testing.assert_array_equal(demo.attrs["init_state"], states[0])
        assert list(demo["dones"][-2:]) == [0, 1]
        assert set(demo["actions"][:, 6]) == {-1.0, 1.0}
        total = sum(len(handle[f"data/demo_{i}/actions"]) for i in range(2))
        assert handle["data"].attrs["total"] == total
        # The soup can ends up in the basket, at the right.
        names = json.loads(demo["obs/object_states"].attrs["names"])
        soup = demo["obs/object_states"][:, names.index("alphabet_soup_1"), :3]
        basket = demo["obs/object_states"][-1, names.index("basket_1"), :3]
        assert np.linalg.norm(soup[0, :2] - basket[:2]) > 0.2
        assert np.linalg.norm(soup[-1, :2] - basket[:2]) < 0.1


@pytest.mark.slow
def test_reader_understands_the_file(collected: Path) -> None:
    reader = LiberoReader(collected)
    arrays = reader.read(0)
    assert reader.episodes[0].instruction == "pick up the alphabet soup and place it in the basket"
    assert reader.orientation is ImageOrientation.FLIPPED_VERTICALLY
    assert set(arrays.robot_states) == {RobotStateLayout.JOINT_GRIPPER, RobotStateLayout.EE_GRIPPER}
    assert arrays.success
    assert arrays.executed_actions is not None
    upright = arrays.images["agentview"][0, ::-1].mean(-1)
    assert upright[-4:].mean() > upright[:4].mean() + 20  # bright floor below, dark wall above


@pytest.mark.slow
@pytest.mark.ci
def test_replay_repeats_exactly(collected: Path, tmp_path: Path) -> None:
    results = replay_data(collected)
    assert [result.success for result in results] == [True, True]
    assert [result.deviation for result in results] == [0.0, 0.0]
    # Without the complete start, as in LIBERO's own files, it still succeeds; with idle actions it does not.
    (file,) = collected.glob("*.hdf5")
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    with h5py.File(copy, "r+") as handle:
        del handle["data"].attrs[SETTINGS_ATTRIBUTE]
        for demo in handle["data"].values():
            del demo.attrs[HIDDEN_ATTRIBUTE]
        handle["data/demo_1/executed_actions"][:, :6] = 0
    with pytest.raises(UserError, match="does not say its suite"):
        replay_data(copy)
    with pytest.raises(UserError, match="has no task"):
        replay_data(copy, "libero_spatial")
    official_like = replay_data(copy, "libero_object")
    assert [result.success for result in official_like] == [True, False]
    assert official_like[0].deviation < 0.05 < official_like[1].deviation


@pytest.mark.slow
def test_two_workers_write_the_same_episodes(collected: Path, tmp_path: Path) -> None:
    collect(SETTINGS, [0], 2, tmp_path, num_workers=2)
    (one,), (two,) = collected.glob("*.hdf5"), tmp_path.glob("*.hdf5")
    with h5py.File(one) as first, h5py.File(two) as second:
        assert first["data"].keys() == second["data"].keys()
        for name in ("demo_0", "demo_1"):
            for key in ("states", "actions", "executed_actions", "obs/agentview_rgb", "obs/ee_states"):
                np.testing.assert_array_equal(first[f"data/{name}/{key}"], second[f"data/{name}/{key}"])


@pytest.mark.slow
def test_killed_collection_goes_on(collected: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "statevla.worlds.libero.cli", "collect", "--out", str(tmp_path), "--tasks", "0"]
    command += ["--demos", "2", "--seed", "1", "--image-size", "32"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    parts = tmp_path / ".parts" / find_task("libero_object", 0).name
    deadline = time.monotonic() + 300
    while not (parts / "episode_00000.hdf5").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("*.hdf5"))
    written = (parts / "episode_00000.hdf5").stat().st_mtime_ns
    part = tmp_path / "kept.hdf5"
    os.link(parts / "episode_00000.hdf5", part)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert part.stat().st_mtime_ns == written  # the finished episode was not made again
    part.unlink()
    (one,), (two,) = collected.glob("*.hdf5"), tmp_path.glob("*.hdf5")
    with h5py.File(one) as first, h5py.File(two) as second:
        for name in ("demo_0", "demo_1"):
            np.testing.assert_array_equal(first[f"data/{name}/states"], second[f"data/{name}/states"])
