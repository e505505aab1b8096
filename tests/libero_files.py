"""Small data sets in LIBERO's official layout, for tests and checks."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from statevla.config import Config, config_from_dict

TASKS = {"pick_up_the_red_block": (220, 40, 30), "push_the_green_block_to_the_left": (30, 200, 60)}


def smooth_episode(rng: np.random.Generator, num_steps: int, size: int, color: tuple[int, int, int]) -> dict:
    """A block that follows smooth random actions; both pictures (upright) show where it is."""
    time = np.linspace(0, 2 * np.pi, num_steps)[:, None]
    phase, freq = rng.uniform(0, 2 * np.pi, (1, 6)), rng.uniform(0.5, 1.5, (1, 6))
    actions = np.concatenate([0.6 * np.sin(freq * time + phase), np.where(time > np.pi, 1.0, -1.0)], axis=1)
    position = rng.uniform(-0.1, 0.1, (1, 3)) + 0.02 * np.concatenate(
        [np.zeros((1, 3)), np.cumsum(actions[:-1, :3], axis=0)]
    )
    finger = np.where(time > np.pi, 0.01, 0.04)
    rows, columns = np.mgrid[0:size, 0:size]
    images = np.empty((2, num_steps, size, size, 3), np.uint8)
    images[..., 0], images[..., 1] = (rows * 160 // size).astype(np.uint8), (columns * 160 // size).astype(np.uint8)
    images[..., 2] = 90
    for step in range(num_steps):
        for camera, (x, y) in enumerate([position[step, :2], position[step, 1:]]):
            centre = np.clip((0.5 + np.array([y, x])) * size, 4, size - 5).astype(int)
            images[camera, step, centre[0] - 4 : centre[0] + 4, centre[1] - 4 : centre[1] + 4] = color
    joints = np.concatenate([position, -position, position[:, :1] * 2], axis=1)
    return {
        "actions": actions,
        "joint_states": joints,
        "gripper_states": np.concatenate([finger, -finger], axis=1),
        "ee_states": np.concatenate([position, 0.5 * position], axis=1),
        "object_states": np.concatenate([position + 0.05, np.tile([1.0, 0, 0, 0], (num_steps, 1))], axis=1),
        "images": images,
    }


def write_official_file(
    path: Path,
    instruction: str,
    episodes: list[dict],
    declare: dict | None = None,
    after_action: bool = False,
    cameras: tuple[str, str] = ("agentview", "eye_in_hand"),
) -> None:
    """Write episodes of `smooth_episode` as LIBERO does: frames upside down, nothing declared about it.

    With `after_action` every observation is the one that its action led to, as in LIBERO's own files.
    """
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": instruction})
        data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
        data.attrs["bddl_file_name"] = f"{path.stem.removesuffix('_demo')}.bddl"
        data.attrs["num_demos"] = len(episodes)
        data.attrs.update(declare or {})
        for number, episode in enumerate(episodes):
            count = len(episode["actions"]) - (1 if after_action else 0)
            demo, seen = data.create_group(f"demo_{number}"), slice(1, None) if after_action else slice(None)
            demo.attrs["num_samples"] = count
            demo["actions"] = episode["actions"][:count]
            qpos = np.concatenate([episode["joint_states"], episode["gripper_states"]], axis=1)[:count]
            demo["states"] = np.concatenate([np.arange(count)[:, None] / 20.0, qpos, np.zeros((count, 9))], axis=1)
            demo["dones"] = demo["rewards"] = (np.arange(count) == count - 1).astype(np.uint8)
            obs = demo.create_group("obs")
            for camera, images in zip(cameras, episode["images"]):
                obs[f"{camera}_rgb"] = images[seen, ::-1]
            for key in ("joint_states", "gripper_states", "ee_states", "object_states"):
                obs[key] = episode[key][seen]
            obs["ee_pos"], obs["ee_ori"] = episode["ee_states"][seen, :3], episode["ee_states"][seen, 3:]
            obs["object_states"].attrs["names"] = json.dumps(["block_1"])


def make_libero_dir(folder: Path) -> Path:
    """Write two tasks in LIBERO's official HDF5 layout: 5 and 4 episodes of 20 to 30 steps, 64 px."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for (task, color), num_episodes in zip(TASKS.items(), (5, 4)):
        episodes = [smooth_episode(rng, int(rng.integers(20, 31)), 64, color) for _ in range(num_episodes)]
        write_official_file(folder / f"{task}_demo.hdf5", task.replace("_", " "), episodes)
    return folder


def make_tiny_config(data: Path, folder: Path) -> Config:
    """A model that trains in seconds on the data set of `make_libero_dir`, in float32.

    Its instruction embeddings, cache and runs lie in `folder`.
    """
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    embeddings = {task.replace("_", " "): rng.normal(size=16).astype(np.float32) for task in TASKS}
    np.savez(folder / "language.npz", **embeddings)
    phase = {"max_steps": 8, "batch_size": 8, "warmup_steps": 2, "learning_rate": 1e-3}
    tree = {
        "model": {
            "embed_dim": 16,
            "encoder_depth": 1,
            "state_dim": 16,
            "action_seq_len": 4,
            "image_size": 32,
            "language_dim": 16,
            "stem": {"kind": "conv", "channels": [8, 16], "strides": [4, 4]},
            "mamba": {"d_state": 4},
            "policy": {"depth": 1, "d_state": 4, "mlp_hidden_dim": 0},
        },
        "language": {"encoder": str(folder / "language.npz")},
        "data": {"path": str(data), "cache_dir": str(folder / "cache"), "train_split": 0.7},
        "training": {
            "phase1": {**phase, "temporal_predictor_hidden_dim": 32},
            "phase2": phase,
            "bc": phase,
            "precision": "fp32",
            "validate_every_steps": 4,
            "checkpoint_every_steps": 4,
            "log_every_steps": 1,
        },
        "output_dir": str(folder / "runs"),
        "device": "cpu",
        "num_threads": 1,
    }
    return config_from_dict(tree, "tiny")
