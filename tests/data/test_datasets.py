"""Windows and chunks: which frames and actions belong together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statevla.config import AugmentationConfig, Config, Phase1Config, config_from_dict
from statevla.data import ChunkDataset, FrameCache, TransitionDataset, open_frame_cache, split_episodes
from statevla.data.cache import CachedEpisode
from statevla.data.datasets import START_STEPS
from statevla.errors import UserError
from statevla.transforms import Transform


def make_config(path: Path, cache_dir: Path) -> Config:
    tree = {
        "model": {"image_size": 32, "stem": {"kind": "patch", "patch_size": 8}, "language_dim": 4},
        "data": {"path": str(path), "cache_dir": str(cache_dir)},
    }
    return config_from_dict(tree, "test")


@pytest.fixture(scope="module")
def cache(libero_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FrameCache:
    return open_frame_cache(make_config(libero_dir, tmp_path_factory.mktemp("cache")), progress=False)


@pytest.fixture(scope="module")
def transform(cache: FrameCache) -> Transform:
    config = make_config(Path("."), Path("."))
    augmentation = AugmentationConfig(random_shift_px=3, brightness=0.2, contrast=0.2)
    return Transform(config.model, cache.statistics(range(9)), cache.robot, augmentation)


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return torch.arange(8.0).view(2, 4)


@pytest.mark.parametrize(("skip", "num_frames"), [(1, 2), (3, 4)])
def test_windows_hold_the_right_frames_and_actions(
    cache: FrameCache, transform: Transform, table: torch.Tensor, skip: int, num_frames: int
) -> None:
    episode_ids = [1, 6]
    phase1 = Phase1Config(frame_skip=skip, num_frames=num_frames)
    dataset = TransitionDataset(cache, episode_ids, phase1, transform, table)
    span = skip * (num_frames - 1)
    assert len(dataset) == sum(cache.episodes[i].num_steps - span for i in episode_ids)
    indices = torch.arange(len(dataset))
    batch, names, firsts = dataset.gather(indices), dataset.episode_ids_of(indices), dataset.frame_indices_of(indices)
    states = torch.from_numpy(cache.robot_state)
    item = 0
    for number in episode_ids:
        episode = cache.episodes[number]
        for start in range(episode.start, episode.stop - span):
            assert firsts[item] == start
            assert names[item] == episode.episode_id
            frames = torch.arange(start, start + span + 1, skip)
            assert torch.equal(batch.observation.images[item], transform.images_to_float(cache.frames(frames)))
            assert torch.equal(batch.observation.robot_state[item], transform.normalize_robot_state(states[frames]))
            assert torch.equal(batch.observation.language[item], table[episode.instruction].expand(num_frames, 4))
            between = transform.normalize_actions(torch.from_numpy(cache.executed_actions[start : start + span]))
            assert torch.equal(batch.actions[item], between.view(num_frames - 1, skip * 7))
            item += 1
    assert item == len(dataset)


def test_world_model_takes_executed_and_policy_clean_actions(
    cache: FrameCache, transform: Transform, table: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "executed_actions", cache.actions + 0.25)
    windows = TransitionDataset(cache, [0], Phase1Config(), transform, table).gather(torch.arange(3))
    chunks = ChunkDataset(cache, [0], 1, transform, table).gather(torch.arange(3))
    clean = torch.from_numpy(cache.actions[:3])
    assert torch.equal(windows.actions[:, 0], transform.normalize_actions(clean + 0.25))
    assert torch.equal(chunks.actions[:, 0], transform.normalize_actions(clean))


def test_chunks_rest_at_the_end_of_the_episode(cache: FrameCache, transform: Transform, table: torch.Tensor) -> None:
    horizon = 10
    dataset = ChunkDataset(cache, [4, 2], horizon, transform, table)
    assert len(dataset) == cache.episodes[4].num_steps + cache.episodes[2].num_steps
    batch = dataset.gather(torch.arange(len(dataset)))
    starts = torch.from_numpy(cache.robot_state)[dataset.frame_indices_of(torch.arange(len(dataset)))]
    raw = transform.targets_to_chunks(batch.actions, starts)
    item = 0
    for number in (4, 2):
        episode = cache.episodes[number]
        for start in range(episode.start, episode.stop):
            known = min(horizon, episode.stop - start)
            assert batch.is_pad[item].tolist() == [k >= known for k in range(horizon)]
            np.testing.assert_allclose(raw[item, :known], cache.actions[start : start + known], atol=1e-6)
            np.testing.assert_allclose(raw[item, known:, :6], 0, atol=1e-6)
            assert (raw[item, known:, 6] == float(cache.actions[episode.stop - 1, 6])).all()
            item += 1


def test_chunks_of_precomputed_latents(cache: FrameCache, transform: Transform, table: torch.Tensor) -> None:
    dataset = ChunkDataset(cache, [3, 7], 4, transform, table)
    latents = torch.randn(cache.num_frames, 5)
    indices = torch.tensor([0, len(dataset) - 1, 3])
    batch, plain = dataset.gather_latents(indices, latents), dataset.gather(indices)
    assert batch.observation is None
    assert torch.equal(batch.state, latents[dataset.frame_indices_of(indices)])
    assert torch.equal(batch.actions, plain.actions)
    assert torch.equal(batch.is_pad, plain.is_pad)


def test_augmentation_needs_asking_and_follows_the_generator(
    cache: FrameCache, transform: Transform, table: torch.Tensor
) -> None:
    dataset = ChunkDataset(cache, [0, 1], 4, transform, table)
    indices = torch.arange(6)

    def images(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return dataset.gather(indices, generator, augment=True).observation.images

    plain = dataset.gather(indices).observation.images
    assert torch.equal(plain, dataset.gather(indices, torch.Generator(), augment=False).observation.images)
    assert torch.equal(images(0), images(0))
    assert not torch.equal(images(0), images(1))
    assert not torch.equal(images(0), plain)


def test_a_batch_that_is_kept_is_not_written_over(cache: FrameCache, transform: Transform, table: torch.Tensor) -> None:
    dataset = ChunkDataset(cache, [0, 1], 4, transform, table)
    kept = dataset.gather(torch.arange(4))
    copy = kept.observation.images.clone()
    for start in range(1, 9):
        dataset.gather(torch.arange(start, start + 4))
    assert torch.equal(kept.observation.images, copy)


def test_misfits_are_refused(cache: FrameCache, transform: Transform, table: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"expected one row for each of 2 instructions, got shape \[3, 4\]"):
        ChunkDataset(cache, [0], 4, transform, torch.zeros(3, 4))
    with pytest.raises(UserError, match=r"a window of 9 frames every 5 steps needs 41 steps"):
        TransitionDataset(cache, [0, 1], Phase1Config(frame_skip=5, num_frames=9), transform, table)
    with pytest.raises(UserError, match="no episodes to train on"):
        ChunkDataset(cache, [], 4, transform, table)
    other = config_from_dict({"model": {"image_size": 16}}, "test").model
    with pytest.raises(UserError, match=r"at 32 px, the model takes .* at 16 px"):
        ChunkDataset(cache, [0], 4, Transform(other, cache.statistics([0]), cache.robot), table)


class _Episodes:
    """As much of a cache as the split looks at."""

    def __init__(self, counts: list[int]) -> None:
        self.episodes = [
            CachedEpisode(f"{task}/{i}", f"task{task}", 0, 0, 5) for task, n in enumerate(counts) for i in range(n)
        ]

    def is_whole(self, episode: CachedEpisode) -> bool:
        return True


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.floats(0.05, 1.0), st.integers(0, 1000))
def test_split_covers_every_task_on_both_sides(counts: list[int], share: float, seed: int) -> None:
    cache = _Episodes(counts)
    training, validation = split_episodes(cache, share, seed)
    assert sorted(training + validation) == list(range(sum(counts)))
    assert (training, validation) == split_episodes(cache, share, seed)
    for task, count in enumerate(counts):
        train = sum(cache.episodes[i].task == f"task{task}" for i in training)
        if share == 1.0 or count == 1:
            assert train == count
        else:
            assert 1 <= train <= count - 1
            assert abs(train - share * count) <= 1


def test_split_depends_on_the_seed() -> None:
    cache = _Episodes([20, 20])
    assert split_episodes(cache, 0.5, 0) != split_episodes(cache, 0.5, 1)


def test_fewer_demonstrations_are_nested_and_keep_the_validation_set() -> None:
    cache = _Episodes([10, 20])
    everything, validation = split_episodes(cache, 0.9, 3)
    five, two = (split_episodes(cache, 0.9, 3, limit) for limit in (5, 2))
    assert set(two[0]) < set(five[0]) < set(everything)
    assert five[1] == two[1] == validation
    for training, limit in ((five[0], 5), (two[0], 2)):
        counts = Counter(cache.episodes[i].task for i in training)
        assert counts == {"task0": limit, "task1": limit}
    with pytest.raises(UserError, match=r"demos_per_task 10: task 'task0' has 9 training episodes of 10"):
        split_episodes(cache, 0.9, 3, 10)


def test_windows_at_the_start_are_repeated(cache: FrameCache, transform: Transform, table: torch.Tensor) -> None:
    plain = TransitionDataset(cache, [1, 6], Phase1Config(), transform, table)
    often = TransitionDataset(cache, [1, 6], Phase1Config(), transform, table, start_repeats=3)
    assert len(often) == len(plain) + 3 * 2 * START_STEPS
    frames = often.frame_indices_of(torch.arange(len(often))).tolist()
    shown = Counter(frames)
    starts = {cache.episodes[i].start + step for i in (1, 6) for step in range(START_STEPS)}
    assert {frame for frame, count in shown.items() if count == 4} == starts
    assert set(shown.values()) == {1, 4}
    last = torch.tensor([len(often) - 1])
    assert often.episode_ids_of(last) == [cache.episodes[6].episode_id]
    torch.testing.assert_close(often.gather(last).actions, plain.gather(plain_index(plain, frames[-1])).actions)
    chunks, more = (ChunkDataset(cache, [1, 6], 4, transform, table, start_repeats=n) for n in (0, 3))
    assert len(more) == len(chunks) + 3 * 2 * START_STEPS
    assert set(more.frame_indices_of(torch.arange(len(chunks), len(more))).tolist()) == starts


def plain_index(dataset: TransitionDataset, frame: int) -> torch.Tensor:
    """The item of a data set without repeats that begins at `frame`."""
    return (dataset.frame_indices_of(torch.arange(len(dataset))) == frame).nonzero().flatten()
