"""Statistics in LeRobot's format, gathered episode by episode: nothing needs the whole data set in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_LEAST_FRAMES, _MOST_FRAMES, _SAMPLED_POWER = 100, 10_000, 0.75
"""Of an episode's frames, LeRobot looks at `frames ** 0.75`, but at 100 or at all, and at most at so many."""


@dataclass(frozen=True)
class EpisodeStats:
    """Values of one episode, `[rows, D]`: of a column, or of pictures' channels (bytes), a row per pixel.

    Attributes:
        num_pictures: how many pictures the rows are of; 0 for a column.
    """

    values: np.ndarray
    num_pictures: int = 0

    def summary(self) -> dict[str, np.ndarray]:
        running = RunningStats()
        running.add(self)
        return running.summary()


@dataclass
class RunningStats:
    """Joins episodes; keeps low-dimensional values, of pictures only each channel's histogram of bytes (exact, too)."""

    _values: list[np.ndarray] = field(default_factory=list)
    _histogram: np.ndarray | None = None
    _num_pictures: int = 0

    def add(self, episode: EpisodeStats) -> None:
        if not episode.num_pictures:
            self._values.append(episode.values)
            return
        counts = np.stack([np.bincount(channel, minlength=256) for channel in episode.values.T])
        self._histogram = counts if self._histogram is None else self._histogram + counts
        self._num_pictures += episode.num_pictures

    def summary(self) -> dict[str, np.ndarray]:
        """min, max, mean, std, count and quantiles; `[D]`, of pictures `[3, 1, 1]` in [0, 1].

        `count` is of rows, or of the pictures that were looked at and not of their pixels: LeRobot weighs data sets and
        episodes that it joins by it.
        """
        if self._histogram is not None:
            return _of_histogram(self._histogram) | {"count": np.array([self._num_pictures])}
        values = np.concatenate(self._values).astype(np.float64)
        summary = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        summary["count"] = np.array([len(values)])
        return summary | {name: np.quantile(values, q, axis=0) for name, q in _QUANTILES.items()}


def table_stats(values: np.ndarray) -> EpisodeStats:
    """Of a column, `[count]` or `[count, D]`."""
    return EpisodeStats(values.reshape(len(values), -1))


def picture_stats(frames: np.ndarray) -> EpisodeStats:
    """Of frames uint8 `[count, H, W, 3]`, as many of them as LeRobot looks at, evenly spread.

    Source: `sample_indices` of LeRobot's datasets/compute_stats.py.
    """
    count = len(frames)
    sampled = max(min(_LEAST_FRAMES, count), min(int(count**_SAMPLED_POWER), _MOST_FRAMES))
    chosen = np.round(np.linspace(0, count - 1, sampled)).astype(int)
    return EpisodeStats(frames[chosen].reshape(-1, 3), sampled)


def _of_histogram(histogram: np.ndarray) -> dict[str, np.ndarray]:
    levels = np.arange(256) / 255.0
    totals = histogram.sum(1, keepdims=True)
    mean = (histogram * levels).sum(1) / totals[:, 0]
    variance = (histogram * (levels - mean[:, None]) ** 2).sum(1) / totals[:, 0]
    cumulative = np.cumsum(histogram, axis=1) / totals

    def quantile(share: float) -> np.ndarray:
        return levels[(cumulative >= share).argmax(axis=1)]

    summary = {"min": quantile(1e-12), "max": quantile(1 - 1e-12), "mean": mean, "std": np.sqrt(variance)}
    summary |= {name: quantile(share) for name, share in _QUANTILES.items()}
    return {name: value.reshape(3, 1, 1) for name, value in summary.items()}
