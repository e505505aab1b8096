"""A small data set of a robot that is not LIBERO's, in an HDF5 file that declares it, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from statevla.config import Config, config_from_dict
from statevla.robots import ActionGroup, Camera, RobotSpec, StateField

BENCH = RobotSpec(
    name="bench",
    control_freq_hz=10,
    actions=(
        ActionGroup(name="arm", dims=("pan", "lift"), state="arm"),
        ActionGroup(name="valve", dims=("valve",), kind="binary", values=(0, 1), role="gripper"),
        ActionGroup(name="base", dims=("turn",), mode="delta", low=-1, high=1),
    ),
    state=(
        StateField(name="arm", dims=("pan", "lift"), units="rad"),
        StateField(name="base", dims=("angle",), units="rad"),
    ),
    cameras=(Camera(name="side", fit="crop"),),
)
"""Absolute joints, a binary command 0 or 1 in the middle, a delta; no hand position, no gripper to measure."""
HEIGHT, WIDTH = 48, 64


def bench_episode(rng: np.random.Generator, num_steps: int) -> dict[str, np.ndarray]:
    """Joints that reach their targets within a step; a square in the picture shows where they are."""
    time = np.linspace(0, 2 * np.pi, num_steps + 1)[:, None]
    arm = 0.8 * np.sin(rng.uniform(0.5, 1.5, (1, 2)) * time + rng.uniform(0, 2 * np.pi, (1, 2)))
    turn = 0.5 * np.sin(time[:-1] + rng.uniform(0, 2 * np.pi))
    valve = (np.abs(time[:-1] - np.pi) < 1).astype(np.float64)
    side = np.full((num_steps, HEIGHT, WIDTH, 3), 40, np.uint8)
    for step, (pan, lift) in enumerate(arm[:-1]):
        row, column = int(HEIGHT / 2 + 18 * lift), int(WIDTH / 2 + 18 * pan)
        side[step, row - 4 : row + 4, column - 4 : column + 4] = (220, 180, 40)
    angle = np.concatenate([np.zeros((1, 1)), np.cumsum(0.1 * turn[:-1], axis=0)])
    return {"actions": np.concatenate([arm[1:], valve, turn], axis=1), "arm": arm[:-1], "base": angle, "side_rgb": side}


def write_bench_file(path: Path, num_episodes: int = 6, robot: RobotSpec | None = BENCH) -> Path:
    """Episodes of 20 to 30 steps; `robot` is what the file declares, if anything."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "turn the handle"})
        data.attrs["image_orientation"] = "upright"
        if robot is not None:
            data.attrs["robot"] = json.dumps(robot.to_dict())
        for number in range(num_episodes):
            episode = bench_episode(rng, int(rng.integers(20, 31)))
            demo = data.create_group(f"demo_{number}")
            demo["actions"] = episode.pop("actions")
            for key, values in episode.items():
                demo[f"obs/{key}"] = values
    return path


def bench_config(folder: Path, robot: RobotSpec = BENCH, **data: object) -> Config:
    """A small model for a file of `robot` in `folder`, as that declares it; `data` are further keys of that section."""
    write_bench_file(folder / "data" / "turn_demo.hdf5", robot=robot)
    np.savez(folder / "language.npz", **{"turn the handle": np.ones(4, np.float32)})
    model = {"action_dim": "auto", "robot_state_dim": "auto", "cameras": "auto", "action_seq_len": 5}
    tree = {
        "model": {**model, "image_size": 32, "language_dim": 4, "stem": {"kind": "patch", "patch_size": 8}},
        "language": {"encoder": str(folder / "language.npz")},
        "data": {"path": str(folder / "data"), "cache_dir": str(folder / "cache"), **data},
    }
    return config_from_dict(tree, "test")
