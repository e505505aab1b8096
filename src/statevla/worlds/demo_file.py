"""Demonstrations in LIBERO's HDF5 layout, whatever the robot: written episode by episode, then joined into one file.

Source of the layout: LIBERO's `scripts/create_dataset.py`; `data/demo_<i>` holds `actions`, `obs/<camera>_rgb` and
`obs/<state field>`. Two things differ from LIBERO's own files, and are declared: an observation is what was seen *when*
its action was chosen (`observation_timing`), and the actions are the expert's clean ones, with what was executed
beside them (`executed_actions`). An episode may have frames at some steps only (`obs/is_seen`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from statevla.data.hdf5_checks import check_attributes, create_hdf5, seal_attributes, write_array
from statevla.data.libero import IS_SEEN_KEY, readable
from statevla.errors import UserError
from statevla.machine.storage import replacing, writing

INDEX_ATTRIBUTE = "episode_index"
FAILED_ATTRIBUTE = "failed_episodes"
SETTINGS_ATTRIBUTE = "collection"
_OBJECTS = "obs/object_states"


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode as it is stored.

    Attributes:
        datasets: path in the episode's group → array with a row per step; of frames, a row per step that is seen, if
            there is `obs/is_seen`.
        attributes: attributes of the group.
        object_names: columns of `obs/object_states`, if there is such a dataset.
    """

    datasets: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]
    object_names: Sequence[str] = ()


def write_episode(path: Path, record: EpisodeRecord) -> None:
    """Write one episode to a file of its own, whole or not at all.

    Raises:
        UserError: the disk does not take it.
    """
    with writing(path), replacing(path) as part, create_hdf5(part) as file:
        group = file.create_group("episode")
        seen = record.datasets.get(f"obs/{IS_SEEN_KEY}")
        for name, values in record.datasets.items():
            if seen is not None and name.endswith("_rgb"):
                # Rows never written take no room, and read as black.
                shape = values.shape[1:]
                whole = (len(seen), *shape)
                frames = group.create_dataset(name, whole, np.uint8, chunks=(1, *shape), fletcher32=True)
                for step, frame in zip(np.flatnonzero(seen), values):
                    frames[step] = frame
            else:
                write_array(group, name, values)  # uncompressed: LZF saves a quarter and slows every reader
        if _OBJECTS in record.datasets:
            group[_OBJECTS].attrs["names"] = json.dumps(list(record.object_names))
            group[_OBJECTS].attrs["columns"] = "world position xyz (m), quaternion wxyz"
        for name, value in record.attributes.items():
            group.attrs[name] = value
        seal_attributes(file)


def join_episodes(
    path: Path, attributes: Mapping[str, Any], sources: Sequence[tuple[Path, str]], failed: Sequence[int]
) -> None:
    """Join episodes into a task's file, whole or not at all.

    Args:
        path: the file to write.
        attributes: of the file's `data` group.
        sources: file and group of each episode, in order; they become `demo_0`, `demo_1`, …
        failed: indices of the episodes that failed and were left out.

    Raises:
        UserError: the disk does not take it, or an episode is damaged.
    """
    with writing(path), replacing(path) as part, create_hdf5(part) as file:
        data = file.create_group("data")
        total = 0
        checked: set[Path] = set()
        for number, (source, group) in enumerate(sources):
            with h5py.File(source, "r") as episode:
                if source not in checked:
                    with readable(f"data {source}"):
                        check_attributes(episode, source)
                    checked.add(source)
                episode.copy(group, data, name=f"demo_{number}")
            total += int(data[f"demo_{number}"].attrs["num_samples"])
        for name, value in attributes.items():
            data.attrs[name] = value
        data.attrs["num_demos"] = len(sources)
        data.attrs["total"] = total
        data.attrs[FAILED_ATTRIBUTE] = json.dumps(list(failed))
        seal_attributes(file)


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
