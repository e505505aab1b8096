"""Demonstrations in LIBERO's official HDF5 layout, written episode by episode and then joined into one file per task.

Source of the layout: LIBERO's `scripts/create_dataset.py`. Frames are upside down as in the official files. Two things
differ, and are declared: an observation is what was seen *when* its action was chosen (`observation_timing`), and the
actions are the expert's clean ones, with what was executed beside them (`executed_actions`). In addition each
episode holds `obs/object_states` and, as attributes, its instruction and what it takes to repeat it exactly. Reaches
have frames at some steps only (`obs/is_seen`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from statevla.data.libero import BEFORE_ACTION, IS_SEEN_KEY, ORIENTATION_ATTRIBUTE, TIMING_ATTRIBUTE
from statevla.errors import UserError
from statevla.types import CONTROL_FREQ_HZ, ImageOrientation
from statevla.worlds.libero.backend import versions
from statevla.worlds.libero.play import PLAY_INSTRUCTION
from statevla.worlds.libero.rendering import CAMERAS
from statevla.worlds.libero.tasks import TaskSpec

FIXTURES_ATTRIBUTE = "fixture_poses"
HIDDEN_ATTRIBUTE = "hidden_state"
INDEX_ATTRIBUTE = "episode_index"
FAILED_ATTRIBUTE = "failed_episodes"
SETTINGS_ATTRIBUTE = "collection"


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode as it is stored.

    Attributes:
        datasets: path in the episode's group → array with a row per step; of frames, a row per step that is seen, if
            there is `obs/is_seen`.
        attributes: attributes of the group.
        object_names: columns of `obs/object_states`.
    """

    datasets: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]
    object_names: Sequence[str]


def write_episode(path: Path, record: EpisodeRecord) -> None:
    """Write one episode to a file of its own, atomically."""
    part = path.with_suffix(".tmp")
    with h5py.File(part, "w") as file:
        group = file.create_group("episode")
        seen = record.datasets.get(f"obs/{IS_SEEN_KEY}")
        for name, values in record.datasets.items():
            if seen is not None and name.endswith("_rgb"):
                # Rows never written take no room, and read as black.
                shape = values.shape[1:]
                frames = group.create_dataset(name, (len(seen), *shape), np.uint8, chunks=(1, *shape))
                for step, frame in zip(np.flatnonzero(seen), values):
                    frames[step] = frame
            else:
                group.create_dataset(name, data=values)  # uncompressed: LZF saves a quarter and slows every reader
        group["obs/object_states"].attrs["names"] = json.dumps(list(record.object_names))
        group["obs/object_states"].attrs["columns"] = "world position xyz (m), quaternion wxyz"
        for name, value in record.attributes.items():
            group.attrs[name] = value
    os.replace(part, path)


def join_episodes(
    path: Path, task: TaskSpec, sources: Sequence[tuple[Path, str]], settings: Mapping[str, Any], failed: Sequence[int]
) -> None:
    """Join episodes into the task's file, atomically.

    Args:
        path: the file to write.
        task: the task.
        sources: file and group of each episode, in order; they become `demo_0`, `demo_1`, …
        settings: how the episodes were collected.
        failed: indices of the episodes that failed and were left out.
    """
    part = path.with_suffix(".tmp")
    with h5py.File(part, "w") as file:
        data = file.create_group("data")
        total = 0
        for number, (source, group) in enumerate(sources):
            with h5py.File(source, "r") as episode:
                episode.copy(group, data, name=f"demo_{number}")
            total += int(data[f"demo_{number}"].attrs["num_samples"])
        for name, value in _file_attributes(task, settings).items():
            data.attrs[name] = value
        data.attrs["num_demos"] = len(sources)
        data.attrs["total"] = total
        data.attrs[FAILED_ATTRIBUTE] = json.dumps(list(failed))
    os.replace(part, path)


def stored_settings(path: Path) -> dict[str, Any]:
    """How the episodes of a file were collected.

    Raises:
        UserError: the file was not written by this collector.
    """
    with h5py.File(path, "r") as file:
        text = file["data"].attrs.get(SETTINGS_ATTRIBUTE) if "data" in file else None
    if text is None:
        raise UserError(f"{path}: expected a file of this collector, found another one; choose another --out folder")
    return dict(json.loads(text))


def stored_episodes(path: Path) -> tuple[dict[int, str], list[int]]:
    """Episode index → group in a joined file, and the indices of failed episodes."""
    with h5py.File(path, "r") as file:
        data = file["data"]
        groups = {int(data[key].attrs[INDEX_ATTRIBUTE]): f"data/{key}" for key in data}
        return groups, list(json.loads(data.attrs[FAILED_ATTRIBUTE]))


def _file_attributes(task: TaskSpec, settings: Mapping[str, Any]) -> dict[str, Any]:
    text = task.bddl_path.read_text()
    problem = text.split("(problem", 1)[1].split(")", 1)[0].strip()
    bddl_file = f"bddl_files/{task.suite}/{task.bddl_path.name}"
    size = settings["image_size"]
    env_kwargs = {
        "robots": ["Panda"],
        "controller": "OSC_POSE",
        "control_freq": int(CONTROL_FREQ_HZ),
        "camera_names": list(CAMERAS.values()),
        "camera_heights": size,
        "camera_widths": size,
        "has_renderer": False,
        "has_offscreen_renderer": True,
        "use_camera_obs": True,
        "ignore_done": True,
        "reward_shaping": True,
    }
    instruction = PLAY_INSTRUCTION if settings["play"] else task.instruction
    problem_info = {
        "problem_name": problem.lower(),
        "domain_name": "robosuite",
        "language_instruction": instruction,
    }
    env_args = {
        "type": 1,
        "env_name": problem,
        "problem_name": problem.lower(),
        "bddl_file": bddl_file,
        "env_kwargs": env_kwargs,
    }
    return {
        "env_name": problem,
        "problem_info": json.dumps(problem_info),
        "env_args": json.dumps(env_args),
        "bddl_file_name": bddl_file,
        "bddl_file_content": text,
        "macros_image_convention": "opengl",
        "tag": "statevla-scripted-expert",
        ORIENTATION_ATTRIBUTE: ImageOrientation.FLIPPED_VERTICALLY.value,
        TIMING_ATTRIBUTE: BEFORE_ACTION,
        SETTINGS_ATTRIBUTE: json.dumps(dict(settings)),
        "versions": json.dumps(versions()),
    }
