"""Runs where LeRobot and the plugin are installed: a checkpoint of either side answers alike on the other.

python lerobot_run.py lerobot_both_ways.py <checkpoint of StateVLA's> <policy of LeRobot's> [instruction]
"""

import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins

from statevla.acting.policy import load_policy
from statevla.data.keys import split_key
from statevla.transforms import to_upright
from statevla.types import Observation


def main():
    register_third_party_plugins()
    from lerobot_policy_statevla.own_checkpoints import as_policy, is_own_checkpoint

    own, theirs = map(Path, sys.argv[1:3])
    instruction = sys.argv[3] if len(sys.argv) > 3 else INSTRUCTION
    # Their way: the path that `--policy.path` stands for, its configuration, weights and processors.
    compare(as_policy(own) if is_own_checkpoint(own) else own, own, instruction)
    # Our way: the folder that lerobot-train wrote.
    compare(theirs, theirs, instruction)


def loaded(folder):
    """A policy of LeRobot's and its processors, as lerobot-eval makes them."""
    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config)
    return policy, *make_pre_post_processors(config, pretrained_path=str(folder))


def compare(folder, checkpoint, instruction):
    policy, before, after = loaded(folder)
    acting = load_policy(checkpoint, device=policy.config.device)
    robot, rng = policy.settings.robot, np.random.default_rng(0)
    assert robot.difference(acting.robot) is None
    for episode in range(2):
        if episode:
            policy.reset()
        acting.reset(episode)
        images = {camera.name: rng.integers(0, 256, (48, 48, 3), np.uint8) for camera in robot.cameras}
        state = rng.normal(size=robot.state_dim).astype(np.float32)
        sizes = {key: feature.shape[0] for key, feature in policy.config.input_features.items()}
        sent = {"task": instruction} | features(robot, state, sizes)
        for camera in robot.cameras:
            sent[camera.key] = torch.from_numpy(images[camera.name]).permute(2, 0, 1) / 255
        upright = {camera.name: to_upright(images[camera.name], camera.orientation) for camera in robot.cameras}
        seen = Observation(upright, robot.named_state(state, "test"), instruction)
        for _ in range(2 * acting.horizon):  # over the end of a chunk
            action = after(policy.select_action(before(dict(sent))))[0].numpy()
            np.testing.assert_array_equal(action, acting.act(seen))


def features(robot, state, sizes):
    """The state `[S]` by LeRobot's features, of these sizes."""
    parts = {field.name: split_key(field.key) for field in robot.policy_fields}
    sent = {key: torch.zeros(sizes[key]) for key, _ in parts.values()}
    for name, values in robot.named_state(state, "test").items():
        key, part = parts[name]
        sent[key][part] = torch.from_numpy(values)
    return sent


INSTRUCTION = "pick up the red block"

if __name__ == "__main__":
    main()
