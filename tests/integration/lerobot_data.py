"""The data sets of `lerobot_check.py`: LIBERO's robot, which the data set declares, and an arm, which YAML does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lerobot_files import undeclare
from libero_files import TASKS, smooth_episode, write_official_file
from statevla.data.convert import convert
from statevla.data.episodes import EpisodeArrays, EpisodeInfo
from statevla.data.lerobot_checksums import CHECKSUMS_PATH
from statevla.data.write_lerobot import write_lerobot
from statevla.robots import RobotSpec, load_robot

INSTRUCTION = "wave"
ARM = """
name: arm
control_freq_hz: 10
actions:
  - {name: suction, dims: [valve], kind: binary, values: [0, 1]}
  - {name: arm, dims: [j1, j2, j3, j4, j5, j6], state: joints}
state:
  - {name: joints, dims: [j1, j2, j3, j4, j5, j6], units: rad}
  - {name: force, dims: [z], units: N, key: observation.states.force}
cameras:
  - {name: front, fit: crop}
"""
"""A binary command 0 or 1 before six absolute joints; a feature of one number; frames that are not square."""


def write_libero_data(folder: Path) -> None:
    """Two tasks of small pictures as LIBERO files, converted to a LeRobotDataset v3, `libero`."""
    rng = np.random.default_rng(0)
    (folder / "hdf5").mkdir()
    for (task, color), count in zip(TASKS.items(), (3, 2)):
        episodes = [smooth_episode(rng, int(rng.integers(20, 31)), 64, color) for _ in range(count)]
        write_official_file(folder / "hdf5" / f"{task}_demo.hdf5", task.replace("_", " "), episodes)
    convert(folder / "hdf5", folder / "libero", "lerobot")


def write_arm_data(folder: Path) -> None:
    """`arm`, a LeRobotDataset v3 that declares nothing, and `arm.yaml`, which does."""
    (folder / "arm.yaml").write_text(ARM)
    robot = load_robot(folder / "arm.yaml")
    joints, force = robot.state
    # Without its key the writer puts the force beside the state, where the declaration finds it.
    beside = force.model_copy(update={"key": None, "policy": False})
    rng = np.random.default_rng(1)
    written = robot.model_copy(update={"state": (joints, beside)})
    write_lerobot(folder / "arm", written, [_arm_episode(rng, folder, number) for number in range(5)])
    undeclare(folder / "arm")
    (folder / "arm" / CHECKSUMS_PATH).unlink()  # a data set that others wrote has none


def relative_targets(robot: RobotSpec, episodes: list[EpisodeArrays], horizon: int) -> np.ndarray:
    """All steps of all chunks of `ARM`, joints relative to those at the start of their chunk, `[rows, 7]`."""
    rows = []
    for arrays in episodes:
        for start in range(len(arrays.actions)):
            chunk = arrays.actions[start : start + horizon].astype(np.float64)
            chunk[:, 1:] -= arrays.robot_states["joints"][start]
            rows.append(chunk)
    return np.concatenate(rows)


def _arm_episode(rng: np.random.Generator, folder: Path, number: int) -> tuple[EpisodeInfo, EpisodeArrays]:
    """Joints that swing around 1 rad; actions are where they should be a step later."""
    count = int(rng.integers(20, 31))
    time = np.linspace(0, 2 * np.pi, count + 1)[:, None]
    joints = 1 + 0.5 * np.sin(time * rng.uniform(0.5, 1.5, (1, 6)) + rng.uniform(0, 2 * np.pi, (1, 6)))
    suction = (time[:-1] > np.pi).astype(float)
    frames = np.full((count, 48, 64, 3), 60, np.uint8)
    for step, angle in enumerate(joints[:-1, 0]):
        column = int(np.clip(32 * angle, 4, 59))
        frames[step, 20:28, column - 4 : column + 4] = (220, 40, 30)
    states = {"joints": joints[:-1].astype(np.float32), "force": suction.astype(np.float32) * 9}
    actions = np.concatenate([suction, joints[1:]], axis=1).astype(np.float32)
    info = EpisodeInfo(f"episode_{number}", "wave", INSTRUCTION, count, 10.0, folder / "arm")
    return info, EpisodeArrays(images={"front": frames}, robot_states=states, actions=actions)
