"""Data sets: readers per format, the frame cache, training samples, writers, inspection."""

from statevla.data.build_cache import open_frame_cache
from statevla.data.cache import CachedEpisode, FrameCache
from statevla.data.datasets import ChunkDataset, TransitionDataset, partial_episodes, split_episodes
from statevla.data.episodes import EpisodeArrays, EpisodeInfo, EpisodeReader
from statevla.data.formats import open_reader
from statevla.data.joined import JoinedSamples
from statevla.data.loading import BatchSampler, Prefetcher
from statevla.data.statistics import FieldStatistics, Statistics, compute_statistics

__all__ = [
    "BatchSampler",
    "CachedEpisode",
    "ChunkDataset",
    "EpisodeArrays",
    "EpisodeInfo",
    "EpisodeReader",
    "FieldStatistics",
    "FrameCache",
    "JoinedSamples",
    "Prefetcher",
    "Statistics",
    "TransitionDataset",
    "compute_statistics",
    "open_frame_cache",
    "open_reader",
    "partial_episodes",
    "split_episodes",
]
