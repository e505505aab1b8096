"""Runs where LeRobot and the plugin are installed: loads a trained policy as lerobot-eval does, and lets it act.

python lerobot_run.py lerobot_plugin_side.py <pretrained_model> <data set> <answers.npz> <folder of the export>
"""

import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins

from statevla.data.keys import split_key
from statevla.errors import UserError
from statevla.robots import LIBERO_HAND

NUM_STEPS = 3


def main():
    checkpoint, data, answers, exported = map(Path, sys.argv[1:5])
    register_third_party_plugins()
    config = PreTrainedConfig.from_pretrained(checkpoint)
    policy = get_policy_class(config.type).from_pretrained(checkpoint, config=config)
    before, after = make_pre_post_processors(config, pretrained_path=str(checkpoint))
    dataset = LeRobotDataset("local/tiny", root=data, video_backend="pyav")
    torch.manual_seed(0)
    robot = policy.settings.robot
    stored = {"noise": [], "chunks": []}
    for step in range(NUM_STEPS):
        sample = dataset[step]
        noise = torch.randn(1, policy.settings.config.model.action_seq_len, robot.num_continuous)
        seen = {key: value for key, value in sample.items() if key.startswith("observation.") or key == "task"}
        batch = before(seen)
        chunk = policy.predict_action_chunk(batch, noise=noise)
        stored["chunks"].append(after(chunk)[0].numpy())
        stored["noise"].append(noise[0].numpy())
        for field in robot.policy_fields:
            key, part = split_key(field.key)
            stored.setdefault(f"state/{field.name}", []).append(np.atleast_1d(sample[key].numpy())[part])
        for camera in robot.cameras:
            frame = (sample[camera.key].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
            stored.setdefault(f"image/{camera.name}", []).append(frame)
        # The queue gives the same chunk, action by action, and asks no sooner than at its end.
        policy.reset()
        actions = [policy.select_action(batch, noise=noise if i == 0 else None) for i in range(chunk.shape[1])]
        torch.testing.assert_close(torch.stack(actions, dim=1), chunk)
        torch.testing.assert_close(policy.select_action(batch, noise=noise), chunk[:, 0])
    check_unsaid_task(config, checkpoint, before({**seen, "task": ""}), sample["task"], noise, chunk)
    orientations = {f"orientation/{camera.name}": camera.orientation.value for camera in robot.cameras}
    np.savez(answers, task=sample["task"], **orientations, **stored)
    # The plugin is known since `register_third_party_plugins`.
    from lerobot_policy_statevla import export_checkpoint
    from lerobot_policy_statevla.robot import robot_of_dataset

    export_checkpoint(policy, exported)
    if robot.name == "libero":
        # This data set holds the fingers twice; LeRobot's simulator sends only the state.
        hand = robot_of_dataset(data, LIBERO_HAND)
        assert [field.key for field in hand.policy_fields] == [f"observation.state[{n}]" for n in ("0:3", "3:6", "6:8")]


def check_unsaid_task(config, checkpoint, unsaid, task, noise, chunk):
    """Environments that say no task are refused, or told by `--policy.default_task`."""
    config.default_task = task
    told = get_policy_class(config.type).from_pretrained(checkpoint, config=config)
    torch.testing.assert_close(told.predict_action_chunk(unsaid, noise=noise), chunk)
    config.default_task = ""
    untold = get_policy_class(config.type).from_pretrained(checkpoint, config=config)
    try:
        untold.predict_action_chunk(unsaid, noise=noise)
        said = "nothing"
    except UserError as error:
        said = str(error)
    assert "--policy.default_task" in said, said


if __name__ == "__main__":
    main()
