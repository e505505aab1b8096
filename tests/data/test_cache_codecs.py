"""Compressed frames in a cache: the same pictures, or nearly; what is trained on raw ones does not change."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from test_frame_cache import check_contents, config_for

from libero_files import smooth_episode, write_official_file
from statevla.config import Config
from statevla.data import BatchSampler, ChunkDataset, FrameCache, Prefetcher, open_frame_cache
from statevla.errors import UserError
from statevla.transforms import Transform

pytest.importorskip("av")
pytest.importorskip("PIL")


def open_cache(path: Path, folder: Path, codec: str) -> FrameCache:
    return open_frame_cache(config_for(path, folder, codec=codec), progress=False)


def all_frames(cache: FrameCache) -> np.ndarray:
    return cache.frames(torch.arange(cache.num_frames)).numpy()


def size_of(cache: FrameCache) -> int:
    return (cache.folder / "frames.bin").stat().st_size


def test_qoi_holds_the_same_pictures_in_less_room(libero_dir: Path, tmp_path: Path) -> None:
    raw, qoi = open_cache(libero_dir, tmp_path, "raw"), open_cache(libero_dir, tmp_path, "qoi")
    assert raw.folder != qoi.folder
    check_contents(qoi, libero_dir)
    assert size_of(qoi) < 0.8 * size_of(raw)


def test_jpeg_holds_nearly_the_same_pictures(libero_dir: Path, tmp_path: Path) -> None:
    raw, jpeg = open_cache(libero_dir, tmp_path, "raw"), open_cache(libero_dir, tmp_path, "jpeg")
    difference = all_frames(raw).astype(float) - all_frames(jpeg)
    assert 0 < np.abs(difference).mean() < 2
    assert size_of(jpeg) < 0.5 * size_of(raw)
    np.testing.assert_array_equal(jpeg.actions, raw.actions)


@pytest.mark.parametrize("codec", ["qoi", "jpeg"])
def test_frames_in_any_order_and_shape(libero_dir: Path, tmp_path: Path, codec: str) -> None:
    cache = open_cache(libero_dir, tmp_path, codec)
    whole = torch.from_numpy(all_frames(cache))
    indices = torch.tensor([[5, 6, 7], [3, 3, 100], [99, 98, 0]])
    assert torch.equal(cache.frames(indices), whole[indices])
    assert cache.frames(torch.zeros(0, dtype=torch.long)).shape == (0, 2, 32, 32, 3)


@pytest.mark.parametrize("codec", ["raw", "qoi", "jpeg"])
def test_frames_that_nobody_saw_are_black(tmp_path: Path, codec: str) -> None:
    episode = smooth_episode(np.random.default_rng(0), 10, 32, (250, 250, 250))
    write_official_file(tmp_path / "reach_demo.hdf5", "reach", [episode])
    seen = np.arange(10) % 4 == 0
    with h5py.File(tmp_path / "reach_demo.hdf5", "a") as file:
        file["data/demo_0/obs/is_seen"] = seen
    cache = open_cache(tmp_path, tmp_path / "cache", codec)
    assert [frame.any() for frame in all_frames(cache)] == seen.tolist()


@pytest.mark.parametrize("codec", ["qoi", "jpeg"])
def test_threads_decode_what_one_would(libero_dir: Path, tmp_path: Path, codec: str) -> None:
    """Batches of prefetching threads, from the lossless codec the raw cache's to the last bit."""

    def batches(its_codec: str, num_workers: int) -> list[torch.Tensor]:
        config: Config = config_for(libero_dir, tmp_path, codec=its_codec)
        cache = open_frame_cache(config, progress=False)
        episodes = range(len(cache.episodes))
        transform = Transform(config.model, cache.statistics(episodes), cache.robot, config.data.augmentation)
        chunks = ChunkDataset(cache, episodes, 4, transform, torch.zeros(2, config.model.language_dim))
        with Prefetcher(chunks, BatchSampler(len(chunks), 16, seed=0), num_workers=num_workers) as loader:
            return [next(loader)[0].observation.images.clone() for _ in range(12)]

    expected = batches("raw" if codec == "qoi" else codec, 0)
    assert all(torch.equal(one, other) for one, other in zip(batches(codec, 4), expected))


def test_a_missing_package_is_named(libero_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statevla.machine.extras.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"data.cache_codec qoi: needs packages .*\(av, PIL\); pip install 'statevla\[v"
    ):
        open_cache(libero_dir, tmp_path, "qoi")
    assert not list(tmp_path.iterdir())
