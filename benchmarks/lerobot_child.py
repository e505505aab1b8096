"""Runs in LeRobot's environment: how far a policy's first actions are from those of episodes that it never saw.

    python tests/integration/lerobot_run.py benchmarks/lerobot_child.py POLICY DATA EPISODES ANSWERS

Asks for a chunk at every fifth frame and compares its first eight actions, as far as the episode goes.
"""

import json
import sys

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins

EVERY, FIRST = 5, 8


def main():
    folder, data, episodes, answers = sys.argv[1:5]
    register_third_party_plugins()
    torch.manual_seed(0)
    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config)
    policy.eval()
    before, after = make_pre_post_processors(config, pretrained_path=folder)
    dataset = LeRobotDataset("local/held_out", root=data, episodes=json.loads(episodes), video_backend="pyav")
    actions = np.stack([np.asarray(row) for row in dataset.hf_dataset["action"]])
    episode = np.array([int(number) for number in dataset.hf_dataset["episode_index"]])
    still, errors, stays = [], [], []
    for index in range(0, len(dataset), EVERY):
        sample = dataset[index]
        seen = {key: value for key, value in sample.items() if key.startswith("observation.") or key == "task"}
        with torch.no_grad():
            chunk = after(policy.predict_action_chunk(before(seen)))[0].numpy()
        ahead = actions[index : index + FIRST][episode[index : index + FIRST] == episode[index]]
        errors.append(np.abs(chunk[: len(ahead)] - ahead).mean(axis=0))
        stays.append(np.abs(np.asarray(sample["observation.state"])[: actions.shape[1]] - ahead).mean(axis=0))
        still.append(np.abs(actions.mean(axis=0) - ahead).mean(axis=0))
    spread = actions.std(axis=0)
    found = {
        "held_out_queries": len(errors),
        "held_out_error": float((np.mean(errors, axis=0) / spread).mean()),
        "held_out_error_of_the_mean": float((np.mean(still, axis=0) / spread).mean()),
        "held_out_error_of_the_present_state": float((np.mean(stays, axis=0) / spread).mean()),
    }
    with open(answers, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
