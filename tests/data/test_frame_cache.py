"""The frame cache: what it holds, when it is built again, and that interruption does no harm."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from libero_files import smooth_episode, write_official_file
from statevla.config import Config, config_from_dict
from statevla.data import CachedEpisode, FrameCache, open_frame_cache, open_reader, unfinished_cache
from statevla.data.cache import ACTIONS, FRAME_CRCS, write_cache
from statevla.data.episodes import EpisodeArrays
from statevla.data.frame_store import frame_checksum
from statevla.data.libero import LiberoReader
from statevla.errors import UserError
from statevla.robots import LIBERO
from statevla.transforms import resize_frames, to_upright


def config_for(path: Path, cache_dir: Path, image_size: int = 32, codec: str = "raw", **model: object) -> Config:
    tree = {
        "model": {"image_size": image_size, "stem": {"kind": "patch", "patch_size": 8}, **model},
        "data": {"path": str(path), "cache_dir": str(cache_dir), "cache_codec": codec},
    }
    return config_from_dict(tree, "test")


@pytest.fixture
def own_dir(libero_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(libero_dir, tmp_path / "data")


def check_contents(cache: FrameCache, source: Path) -> None:
    """Every frame and number of the cache is the source's."""
    with open_reader(source) as reader:
        for index, (info, episode) in enumerate(zip(reader.episodes, cache.episodes, strict=True)):
            arrays = reader.read(index)
            steps = slice(episode.start, episode.stop)
            frames = cache.frames(torch.arange(episode.start, episode.stop)).numpy()
            for v, camera in enumerate(cache.cameras):
                upright = to_upright(arrays.images[camera], reader.robot.camera(camera).orientation)
                np.testing.assert_array_equal(frames[:, v], resize_frames(upright, cache.image_size))
            np.testing.assert_array_equal(cache.actions[steps], arrays.actions)
            assert set(cache.robot_states) == set(arrays.robot_states)
            for name, values in arrays.robot_states.items():
                np.testing.assert_array_equal(cache.robot_states[name][steps], values)
            seen = reader.robot.policy_state(arrays.robot_states, "test")
            np.testing.assert_array_equal(cache.robot_state[steps], seen)
            assert cache.instructions[episode.instruction] == info.instruction
            assert episode.episode_id == info.episode_id
            assert cache.object_poses is not None
            np.testing.assert_array_equal(cache.object_poses[steps], arrays.object_poses)


def test_holds_the_source_at_the_models_size(libero_dir: Path, tmp_path: Path) -> None:
    cache = open_frame_cache(config_for(libero_dir, tmp_path), progress=False)
    assert cache.num_frames == sum(e.num_steps for e in cache.episodes)
    assert cache.instructions == ["pick up the red block", "push the green block to the left"]
    assert (cache.image_size, cache.frame_size) == (config_for(libero_dir, tmp_path).model.image_size, 64)
    check_contents(cache, libero_dir)


def test_frames_of_two_sizes_have_none_in_common(own_dir: Path, tmp_path: Path) -> None:
    episode = smooth_episode(np.random.default_rng(0), 20, 48, (250, 250, 250))
    write_official_file(own_dir / "smaller_demo.hdf5", "a smaller picture", [episode])
    assert open_frame_cache(config_for(own_dir, tmp_path / "cache"), progress=False).frame_size is None


def test_parallel_build_equals_serial_build(libero_dir: Path, tmp_path: Path) -> None:
    serial = open_frame_cache(config_for(libero_dir, tmp_path / "a"), progress=False, num_processes=1)
    parallel = open_frame_cache(config_for(libero_dir, tmp_path / "b"), progress=False, num_processes=2)
    everything = torch.arange(serial.num_frames)
    assert torch.equal(serial.frames(everything), parallel.frames(everything))
    np.testing.assert_array_equal(serial.actions, parallel.actions)


def test_frames_in_any_order_and_shape(libero_dir: Path, tmp_path: Path) -> None:
    cache = open_frame_cache(config_for(libero_dir, tmp_path), progress=False)
    whole = cache.frames(torch.arange(cache.num_frames))
    indices = torch.tensor([[5, 6, 7], [3, 3, 100], [99, 98, 0]])
    assert torch.equal(cache.frames(indices), whole[indices])
    assert cache.frames(torch.zeros(0, dtype=torch.long)).shape == (0, 2, 32, 32, 3)


def test_is_reused_and_rebuilt_when_something_changes(own_dir: Path, tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    first = open_frame_cache(config_for(own_dir, cache_dir), progress=False).folder
    made = (first / "frames.bin").stat().st_mtime_ns
    again = open_frame_cache(config_for(own_dir, cache_dir), progress=False).folder
    assert again == first
    assert (again / "frames.bin").stat().st_mtime_ns == made
    assert open_frame_cache(config_for(own_dir, cache_dir, 16), progress=False).folder != first
    one_camera = config_for(own_dir, cache_dir, cameras=["agentview"])
    assert open_frame_cache(one_camera, progress=False).folder != first
    rng = np.random.default_rng(3)
    write_official_file(next(own_dir.iterdir()), "changed", [smooth_episode(rng, 21, 64, (1, 2, 3))])
    changed = open_frame_cache(config_for(own_dir, cache_dir), progress=False)
    assert changed.folder != first
    check_contents(changed, own_dir)


def test_an_interrupted_build_goes_on(own_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(own_dir, tmp_path / "cache")
    original, read = LiberoReader.read, []

    def stop_after_four(self: LiberoReader, index: int, *arguments: object) -> EpisodeArrays:
        if len(read) == 4:
            raise KeyboardInterrupt
        read.append(index)
        return original(self, index, *arguments)

    monkeypatch.setattr(LiberoReader, "read", stop_after_four)
    with pytest.raises(KeyboardInterrupt):
        open_frame_cache(config, progress=False, num_processes=1)
    assert not [p for p in (tmp_path / "cache").iterdir() if not p.name.startswith(".")]

    def count(self: LiberoReader, index: int, *arguments: object) -> EpisodeArrays:
        read.append(index)
        return original(self, index, *arguments)

    monkeypatch.setattr(LiberoReader, "read", count)
    cache = open_frame_cache(config, progress=False, num_processes=1)
    assert sorted(read) == list(range(9))  # none twice
    monkeypatch.undo()
    check_contents(cache, own_dir)
    assert not list(cache.folder.glob("episode_*"))


def test_damaged_caches_are_told_apart(libero_dir: Path, tmp_path: Path) -> None:
    folder = open_frame_cache(config_for(libero_dir, tmp_path), progress=False).folder
    with open(folder / "frames.bin", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match="1000 bytes, expected"):
        FrameCache(folder)
    (folder / "actions.npy").write_bytes(b"no")
    with pytest.raises(UserError, match=r"actions.npy: damaged, it is not"):
        FrameCache(folder)
    (folder / "cache.json").write_text('{"version": 0}')
    with pytest.raises(UserError, match="version 0"):
        FrameCache(folder)


def test_input_errors(libero_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no camera 'front', robot 'libero' has agentview, eye_in_hand"):
        open_frame_cache(config_for(libero_dir, tmp_path, cameras=["front"]), progress=False)
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*set data.cache_dir"):
        open_frame_cache(config_for(libero_dir, blocker / "cache"), progress=False)


def test_no_room_on_the_disk(libero_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(unfinished_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"needs 0.0 GB, 0.0 GB are free; make room"):
        open_frame_cache(config_for(libero_dir, tmp_path), progress=False)


def test_executed_actions_and_objects_of_different_number(tmp_path: Path) -> None:
    import h5py

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        write_official_file(tmp_path / f"{name}_demo.hdf5", name, [smooth_episode(rng, 8, 16, (9, 9, 9))])
    with h5py.File(tmp_path / "b_demo.hdf5", "a") as file:
        demo = file["data/demo_0"]
        demo["executed_actions"] = demo["actions"][()] * 0.5
        wide = np.tile(demo["obs/object_states"][()], (1, 2))
        del demo["obs/object_states"]
        demo["obs/object_states"] = wide
    cache = open_frame_cache(config_for(tmp_path, tmp_path / "cache", 16), progress=False)
    np.testing.assert_array_equal(cache.executed_actions[:8], cache.actions[:8])
    np.testing.assert_allclose(cache.executed_actions[8:], cache.actions[8:] * 0.5)
    assert cache.object_poses is not None
    assert np.isnan(cache.object_poses[:8, 7:]).all()
    assert np.isfinite(cache.object_poses[8:]).all()


def test_reading_keeps_no_frames_in_memory(tmp_path: Path) -> None:
    """Reading 400 MB through may not add more than a few batches to what the process holds."""
    size, steps = 128, 4096
    frame_bytes = size * size * 3 * 2
    crcs = []
    with open(tmp_path / "frames.bin", "wb") as file:
        for _ in range(steps):
            frame = os.urandom(frame_bytes)
            file.write(frame)
            crcs.append(frame_checksum(frame))
    arrays = {ACTIONS: np.zeros((steps, 7), np.float32), FRAME_CRCS: np.array(crcs, np.uint32)}
    robot = LIBERO.model_copy(update={"state": ()})
    write_cache(tmp_path, [CachedEpisode("e", "t", 0, 0, steps)], ["t"], robot, size, None, arrays)
    cache = FrameCache(tmp_path)
    cache.frames(torch.arange(32))
    before = psutil.Process().memory_info().rss
    for start in range(0, steps, 32):
        cache.frames(torch.arange(start, start + 32))
    assert psutil.Process().memory_info().rss - before < 40 * 2**20
