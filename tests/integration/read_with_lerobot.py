"""Compares a LeRobotDataset with what it was made from, inside LeRobot's environment; see check_lerobot_reads.py."""

from __future__ import annotations

import sys

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

CAMERAS = {"agentview": "observation.images.image", "eye_in_hand": "observation.images.image2"}
MEAN_DIFFERENCE = 5.0 / 255
"""What the video's compression may change on average; a picture turned the wrong way differs by ten times that."""


def main(root: str, expected_file: str) -> None:
    expected = np.load(expected_file)
    dataset = LeRobotDataset("local/converted", root=root, video_backend="pyav")
    lengths = expected["lengths"]
    assert (dataset.num_episodes, dataset.num_frames) == (len(lengths), lengths.sum()), (dataset, lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    horizon = 8
    chunks = LeRobotDataset(
        "local/converted",
        root=root,
        video_backend="pyav",
        delta_timestamps={"action": [k / dataset.fps for k in range(horizon)]},
    )
    worst = turned = 0.0
    for number, length in enumerate(lengths):
        actions, states = expected[f"{number}/actions"], expected[f"{number}/state"]
        for row, step in enumerate(expected[f"{number}/steps"]):
            item = dataset[int(starts[number] + step)]
            np.testing.assert_array_equal(item["action"].numpy(), actions[step])
            np.testing.assert_array_equal(item["observation.state"].numpy(), states[step])
            assert item["task"] == expected["instructions"][number], item["task"]
            for camera, key in CAMERAS.items():
                frame = item[key].numpy().transpose(1, 2, 0)
                wanted = expected[f"{number}/{camera}"][row].astype(np.float32) / 255
                worst = max(worst, float(np.abs(frame - wanted[:, ::-1]).mean()))
                turned = max(turned, float(np.abs(frame - wanted).mean()))
        chunk = chunks[int(starts[number])]
        np.testing.assert_array_equal(chunk["action"].numpy(), actions[np.minimum(np.arange(horizon), length - 1)])
        assert chunk["action_is_pad"].tolist() == [k >= length for k in range(horizon)]
    assert worst < MEAN_DIFFERENCE < turned, (worst, turned)
    mean = np.concatenate([expected[f"{number}/actions"] for number in range(len(lengths))]).mean(axis=0)
    np.testing.assert_allclose(dataset.meta.stats["action"]["mean"], mean, atol=1e-5)
    assert dataset.meta.features["action"]["names"] == ["x", "y", "z", "rx", "ry", "rz", "gripper"]
    assert dataset.meta.stats[CAMERAS["agentview"]]["mean"].shape == (3, 1, 1)
    print(f"LeRobot reads {len(lengths)} episodes, {dataset.num_frames} frames; mean picture difference <= {worst:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
