"""Collection in LIBERO: file layout, resuming, independence of the workers' number, replay."""

from __future__ import annotations

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

pytest.importorskip("libero")

from statevla.commands.collect import CollectArgs
from statevla.commands.collect import collect as collect_command
from statevla.data import open_reader
from statevla.errors import UserError
from statevla.robots import LIBERO, ImageOrientation
from statevla.worlds.collect import collect
from statevla.worlds.demo_file import SETTINGS_ATTRIBUTE, EpisodeRecord, join_episodes, write_episode
from statevla.worlds.libero.demo_file import HIDDEN_ATTRIBUTE
from statevla.worlds.libero.episodes import CollectSettings
from statevla.worlds.libero.replay import replay_data
from statevla.worlds.libero.tasks import find_task

SETTINGS = CollectSettings("libero_object", seed=1, image_size=32)


def record(index: int) -> EpisodeRecord:
    datasets = {"actions": np.full((3, 7), index, float), "obs/object_states": np.zeros((3, 1, 7))}
    return EpisodeRecord(datasets, {"num_samples": 3, "episode_index": index}, ["milk_1"])


def write_file(folder: Path, settings: dict) -> None:
    """A joined file of one episode, collected with these settings."""
    write_episode(folder / "part.hdf5", record(0))
    attributes = {SETTINGS_ATTRIBUTE: json.dumps(settings)}
    file = folder / f"{find_task('libero_object', 0).name}_demo.hdf5"
    join_episodes(file, attributes, [(folder / "part.hdf5", "episode")], [])


def test_other_settings_are_refused(tmp_path: Path) -> None:
    write_file(tmp_path, SETTINGS.as_dict())
    with pytest.raises(UserError, match="another noise"):
        collect(CollectSettings("libero_object", seed=1, image_size=32, noise=0.3), [0], 1, tmp_path)


def test_files_from_before_a_choice_were_collected_as_is_the_default(tmp_path: Path) -> None:
    early = {key: value for key, value in SETTINGS.as_dict().items() if key not in ("reaches", "reach_tasks")}
    write_file(tmp_path, early)
    (summary,) = collect(SETTINGS, [0], 1, tmp_path)
    assert summary.num_demos == 1
    other = CollectSettings("libero_object", seed=1, image_size=32, rendering="exact")
    with pytest.raises(UserError, match="another rendering"):
        collect(other, [0], 1, tmp_path)


def test_flags_of_reaches_need_reaches(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--reach-tasks.*give --reaches"):
        collect_command(CollectArgs(reach_tasks="0-2", out=tmp_path))
    with pytest.raises(UserError, match="task 10 of suite"):
        collect_command(CollectArgs(reaches="start", reach_tasks="10", out=tmp_path))
    with pytest.raises(UserError, match="expected one of them"):
        collect_command(CollectArgs(reaches="start", play=True, out=tmp_path))


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
    reader = open_reader(collected)
    arrays = reader.read(0)
    assert reader.episodes[0].instruction == "pick up the alphabet soup and place it in the basket"
    assert reader.robot.difference(LIBERO) is None
    assert {camera.orientation for camera in reader.robot.cameras} == {ImageOrientation.FLIPPED_VERTICALLY}
    assert set(arrays.robot_states) == {field.name for field in LIBERO.state}
    assert arrays.success
    assert arrays.executed_actions is not None
    upright = arrays.images["agentview"][0, ::-1].mean(-1)
    assert upright[-4:].mean() > upright[:4].mean() + 20  # bright floor below, dark wall above


@pytest.mark.slow
@pytest.mark.ci
def test_replay_repeats_exactly(collected: Path, tmp_path: Path) -> None:
    results = list(replay_data(collected))
    assert [result.success for result in results] == [True, True]
    assert [result.deviation for result in results] == [0.0, 0.0]
    # Without the complete start, as in LIBERO's own files, it still succeeds; with idle actions it does not.
    (file,) = collected.glob("*.hdf5")
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    with h5py.File(copy, "r+") as handle:
        del handle["data"].attrs[SETTINGS_ATTRIBUTE]
        del handle.attrs["attributes_crc32"]
        for demo in handle["data"].values():
            del demo.attrs[HIDDEN_ATTRIBUTE]
        handle["data/demo_1/executed_actions"][:, :6] = 0
    with pytest.raises(UserError, match="does not say its suite"):
        list(replay_data(copy))
    with pytest.raises(UserError, match="has no task"):
        list(replay_data(copy, "libero_spatial"))
    official_like = list(replay_data(copy, "libero_object"))
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
    command = [sys.executable, "-m", "statevla", "collect", "--suite", "libero_object", "--out", str(tmp_path)]
    command += ["--tasks", "0", "--demos", "2", "--seed", "1", "--image-size", "32"]
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
