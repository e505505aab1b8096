"""Runs where LeRobot and the plugin are installed: its batches are those of StateVLA's own trainer.

python lerobot_run.py lerobot_batches.py <data set> <configuration> <overrides>...
"""

import sys
from pathlib import Path

import torch
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.factory import make_dataset
from lerobot.policies.factory import make_policy
from lerobot_policy_statevla import StateVLAConfig, make_statevla_pre_post_processors

from statevla.config import load_config
from statevla.training.setup import prepare

PIXELS = 3 / 127.5
"""Bytes by which two decoders of one video may differ."""
NUM_FRAMES = 60


def main():
    data, config_file, *overrides = sys.argv[1:]
    own = load_config(config_file, [*overrides, f"data.path={data}", "data.train_split=1.0"])
    check(Path(data), own, config_file, overrides, "1")
    check(Path(data), own, config_file, overrides, "bc")


def check(data, own, config_file, overrides, phase):
    policy_config = StateVLAConfig(
        phase=phase, config_file=config_file, overrides=overrides, device="cpu", push_to_hub=False
    )
    dataset_config = DatasetConfig(repo_id=f"local/{data.name}", root=str(data), video_backend="pyav")
    dataset = make_dataset(TrainPipelineConfig(dataset=dataset_config, policy=policy_config))
    policy = make_policy(policy_config, ds_meta=dataset.meta)
    setup = prepare(own, phase)
    before, _ = make_statevla_pre_post_processors(policy_config)
    # Statistics of both are of all episodes, LeRobot's in float32 by way of its own file.
    for field in ("actions", "robot_state"):
        mine, theirs = (getattr(each, field) for each in (setup.statistics, policy.settings.statistics))
        torch.testing.assert_close(torch.tensor(theirs.mean), torch.tensor(mine.mean), atol=1e-5, rtol=1e-5)
    rows = {int(frame): row for row, frame in enumerate(setup.train.frame_indices_of(torch.arange(len(setup.train))))}
    compared = 0
    for index in range(min(len(dataset), NUM_FRAMES)):
        if index not in rows:  # a window that would end beyond its episode
            continue
        batch = before(torch.utils.data.default_collate([dataset[index]]))
        read = policy._batches.windows if phase == "1" else policy._batches.chunks
        theirs, mine = read(batch), setup.train.gather(torch.tensor([rows[index]]))
        for name, expected in vars(mine).items():
            if name != "observation" and expected is not None:
                same(name, getattr(theirs, name), expected)
        for name, expected in vars(mine.observation).items():
            same(name, getattr(theirs.observation, name), expected)
        compared += 1
    assert compared > 30, compared
    if phase == "1":
        assert mine.keyframe is not None
        assert policy._batches.recorded is not None


def same(name, found, expected):
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    if name == "images":
        assert (found - expected).abs().max() <= PIXELS, (found - expected).abs().max()
    elif found.dtype == torch.bool or name == "language":
        assert torch.equal(found, expected), name
    else:
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


if __name__ == "__main__":
    main()
