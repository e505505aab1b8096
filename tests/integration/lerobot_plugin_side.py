"""Runs where LeRobot and the plugin are installed: loads a trained policy as lerobot-eval does, and lets it act.

python lerobot_run.py lerobot_plugin_side.py <pretrained_model> <folder with data/; answers go there>
"""

import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins

NUM_STEPS = 3


def main():
    checkpoint, folder = Path(sys.argv[1]), Path(sys.argv[2])
    register_third_party_plugins()
    config = PreTrainedConfig.from_pretrained(checkpoint)
    policy = get_policy_class(config.type).from_pretrained(checkpoint, config=config)
    before, after = make_pre_post_processors(config, pretrained_path=str(checkpoint))
    dataset = LeRobotDataset("local/tiny", root=folder / "data", video_backend="pyav")
    torch.manual_seed(0)
    keys = {"image": "observation.images.image", "image2": "observation.images.image2"}
    stored = {name: [] for name in (*keys, "state", "noise", "chunks")}
    for step in range(NUM_STEPS):
        sample = dataset[step]
        noise = torch.randn(1, policy.settings.model.action_seq_len, policy.settings.model.action_dim - 1)
        seen = {key: value for key, value in sample.items() if key.startswith("observation.") or key == "task"}
        batch = before(seen)
        chunk = policy.predict_action_chunk(batch, noise=noise)
        stored["chunks"].append(after(chunk)[0].numpy())
        stored["noise"].append(noise[0].numpy())
        stored["state"].append(sample["observation.state"].numpy())
        for name, key in keys.items():
            stored[name].append((sample[key].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
        # The queue gives the same chunk, action by action, and asks no sooner than at its end.
        policy.reset()
        actions = [policy.select_action(batch, noise=noise if i == 0 else None) for i in range(chunk.shape[1])]
        torch.testing.assert_close(torch.stack(actions, dim=1), chunk)
        assert not policy._queue
    np.savez(folder / "answers.npz", task=sample["task"], orientation=config.image_orientation, **stored)
    from lerobot_policy_statevla import export_checkpoint

    export_checkpoint(policy, folder / "exported")


if __name__ == "__main__":
    main()
