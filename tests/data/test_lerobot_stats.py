"""Statistics in LeRobot's format: what is counted, and that sets can be joined by it."""

from __future__ import annotations

import numpy as np
import pytest

from statevla.data.lerobot_stats import RunningStats, picture_stats


@pytest.mark.parametrize(("frames", "looked_at"), [(1, 1), (40, 40), (100, 100), (354, 100), (1000, 177), (2000, 299)])
def test_pictures_are_counted_as_lerobot_counts_them(frames: int, looked_at: int) -> None:
    """The numbers that the documentation of LeRobot's `estimate_num_samples` gives."""
    pictures = np.zeros((frames, 2, 4, 3), np.uint8)
    assert picture_stats(pictures).summary()["count"].tolist() == [looked_at]


def test_joined_means_weigh_frames_and_not_pixels() -> None:
    """A set of large frames and LeRobot's own of as many small ones: the mean lies in the middle."""
    bright = picture_stats(np.full((10, 64, 64, 3), 255, np.uint8)).summary()
    lerobots = {"mean": np.zeros((3, 1, 1)), "count": np.array([10])}
    both = (bright, lerobots)
    joined = sum(stats["mean"] * stats["count"] for stats in both) / sum(stats["count"] for stats in both)
    np.testing.assert_allclose(joined, 0.5)
    running = RunningStats()
    for value, count in ((0, 30), (255, 10)):
        running.add(picture_stats(np.full((count, 8, 8, 3), value, np.uint8)))
    summary = running.summary()
    assert summary["count"].tolist() == [40]
    np.testing.assert_allclose(summary["mean"].ravel(), 0.25)
