"""Statistics in LeRobot's format, gathered episode by episode: nothing needs the whole data set in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_SAMPLED_FRAMES = 32
"""Frames per episode that picture statistics look at."""


@dataclass(frozen=True)
class EpisodeStats:
    """Values of one episode, `[count, D]`, and whether they are pictures' channels (bytes)."""

    values: np.ndarray
    is_picture: bool

    def summary(self) -> dict[str, np.ndarray]:
        running = RunningStats()
        running.add(self)
        return running.summary()


@dataclass
class RunningStats:
    """Joins episodes; keeps low-dimensional values, of pictures only each channel's histogram of bytes (exact, too)."""

    _values: list[np.ndarray] = field(default_factory=list)
    _histogram: np.ndarray | None = None

    def add(self, episode: EpisodeStats) -> None:
        if not episode.is_picture:
            self._values.append(episode.values)
            return
        counts = np.stack([np.bincount(channel, minlength=256) for channel in episode.values.T])
        self._histogram = counts if self._histogram is None else self._histogram + counts

    def summary(self) -> dict[str, np.ndarray]:
        """min, max, mean, std, count and quantiles; `[D]`, of pictures `[3, 1, 1]` in [0, 1]."""
        if self._histogram is not None:
            return _of_histogram(self._histogram)
        values = np.concatenate(self._values).astype(np.float64)
        summary = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        summary["count"] = np.array([len(values)])
        return summary | {name: np.quantile(values, q, axis=0) for name, q in _QUANTILES.items()}


def table_stats(values: np.ndarray) -> EpisodeStats:
    """Of a column, `[count]` or `[count, D]`."""
    return EpisodeStats(values.reshape(len(values), -1), is_picture=False)


def picture_stats(frames: np.ndarray) -> EpisodeStats:
    """Of frames uint8 `[count, H, W, 3]`, a few of them, evenly spread."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, _SAMPLED_FRAMES).astype(int))
    return EpisodeStats(frames[chosen].reshape(-1, 3), is_picture=True)


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
    return {name: value.reshape(3, 1, 1) for name, value in summary.items()} | {"count": totals[0]}
