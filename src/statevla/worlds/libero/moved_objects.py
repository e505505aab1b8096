"""Pictures of recorded moments with the target object moved: what a world model should be surprised by.

The state of the moment is put back exactly (fixtures, arm, objects) and drawn twice: as it was, and with the object
that the instruction names shifted over the table. Nothing else differs between the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import mujoco
import numpy as np
import torch
from torch import Tensor

from statevla.config import expand_path
from statevla.data.libero import BEFORE_ACTION, TIMING_ATTRIBUTE, open_hdf5
from statevla.diagnostics.object_surprise import Exchanged
from statevla.diagnostics.probes import target_object, thin
from statevla.diagnostics.sequences import Subject, encode_frames, episode_of
from statevla.types import Rendering
from statevla.worlds.demo_file import SETTINGS_ATTRIBUTE
from statevla.worlds.libero.demo_file import FIXTURES_ATTRIBUTE, HIDDEN_ATTRIBUTE
from statevla.worlds.libero.replay import start_episode, task_of_file
from statevla.worlds.libero.simulation import Simulation

SHIFT_M = 0.12
"""How far the object is moved: twice the width of a can."""
NUM_DIRECTIONS = 16
MAX_FILES, MAX_MOMENTS = 3, 96
"""Making a scene takes some seconds, two frames some hundredths."""


def move_target_objects(subject: Subject, frames: Tensor) -> Exchanged | None:
    """Draw the moments of some of these frames, int64 `[M]`, again, as they were and with the object moved.

    Returns:
        None where the data set is none of this package's collector (it alone records whole states).
    """
    cache, root = subject.cache, expand_path(subject.config.data.path)
    wanted = frames.numpy()
    owner = episode_of(cache, wanted)
    places = [_place(root, cache.episodes[index].episode_id) for index in owner]
    files = [file for file in sorted({file for file, _ in places}) if _is_collected(file)]
    files = [files[i] for i in thin(range(len(files)), MAX_FILES)]
    rows = [row for row, (file, _) in enumerate(places) if file in files]
    rows = [rows[i] for i in thin(range(len(rows)), MAX_MOMENTS)]
    pictures: dict[str, list[np.ndarray]] = {"unmoved": [], "moved": []}
    kept: list[int] = []
    for file in files:
        with open_hdf5(file) as handle:
            simulation = Simulation(task_of_file(file, handle["data"], None), rendering=_rendering(handle["data"]))
            size, shown = _image_size(handle["data"]), ""
            for row in (row for row in rows if places[row][0] == file):
                episode = cache.episodes[owner[row]]
                column = target_object(episode, cache.instructions[episode.instruction])
                if column is None:
                    continue
                demo = handle["data"][places[row][1]]
                states = np.asarray(demo["states"], dtype=np.float64)
                if demo.name != shown:  # puts the fixtures where they stood
                    start_episode(simulation, demo, states)
                    shown = demo.name
                simulation.set_state(states[int(wanted[row]) - episode.start])
                pictures["unmoved"].append(_draw(simulation, subject, size))
                _shift(simulation, episode.object_names[column])
                pictures["moved"].append(_draw(simulation, subject, size))
                kept.append(row)
            simulation.close()
    if not kept:
        return None
    stacked = {kind: torch.from_numpy(np.stack(drawn)) for kind, drawn in pictures.items()}
    z = {kind: encode_frames(subject, frames[kept], use_target=True, pictures=own) for kind, own in stacked.items()}
    recorded = cache.frames(wanted[kept]).float()
    drawn_again = float((recorded - stacked["unmoved"].float()).abs().mean())
    details = {"shift_m": SHIFT_M, "pixel_difference_of_unmoved": drawn_again}
    return Exchanged(torch.tensor(kept), z, "simulator", details)


def _place(root: Path, episode_id: str) -> tuple[Path, str]:
    """File and group of an episode, from how the reader of LIBERO's files names it."""
    name, _, key = episode_id.rpartition("/")
    return (root if root.is_file() else root / name), key


def _is_collected(file: Path) -> bool:
    if not file.is_file() or not h5py.is_hdf5(file):
        return False
    with open_hdf5(file) as handle:
        attributes = handle["data"].attrs
        demo = next(iter(handle["data"].values()))
        whole = HIDDEN_ATTRIBUTE in demo.attrs and FIXTURES_ATTRIBUTE in demo.attrs
        return whole and SETTINGS_ATTRIBUTE in attributes and attributes.get(TIMING_ATTRIBUTE) == BEFORE_ACTION


def _rendering(data: h5py.Group) -> Rendering:
    # Files from before there was a choice were drawn exactly.
    return "fast" if json.loads(data.attrs[SETTINGS_ATTRIBUTE]).get("rendering") == "fast" else "exact"


def _image_size(data: h5py.Group) -> int:
    return int(json.loads(data.attrs[SETTINGS_ATTRIBUTE])["image_size"])


def _draw(simulation: Simulation, subject: Subject, size: int) -> np.ndarray:
    """The model's cameras, uint8 `[V, P, P, 3]`, resized as in the frame cache."""
    frames = [simulation.render(camera, size) for camera in subject.config.model.cameras]
    return np.stack([subject.transform.frame_to_model_size(frame) for frame in frames])


def _shift(simulation: Simulation, name: str) -> None:
    joint = object_joint(simulation, name)
    address = int(simulation.model.jnt_qposadr[joint])
    simulation.data.qpos[address : address + 2] += free_shift(simulation, name, SHIFT_M)
    mujoco.mj_forward(simulation.model, simulation.data)


def free_shift(simulation: Simulation, name: str, distance_m: float) -> np.ndarray:
    """The horizontal shift `[2]` (m) of an object that takes it farthest from the other objects and the hand."""
    poses = dict(zip(simulation.object_names, simulation.object_states()[:, :2]))
    others = [place for other, place in poses.items() if other != name] + [simulation.ee_position()[:2]]
    angles = np.arange(NUM_DIRECTIONS) * (2 * np.pi / NUM_DIRECTIONS)
    shifts = distance_m * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    free = [_nearest(poses[name] + shift, others) for shift in shifts]
    return shifts[int(np.argmax(free))]


def object_joint(simulation: Simulation, name: str) -> int:
    """Number of the free joint of a movable object."""
    return int(simulation.model.joint(simulation.robosuite_env.objects_dict[name].joints[-1]).id)


def _nearest(place: np.ndarray, others: Sequence[np.ndarray]) -> float:
    return min(float(np.linalg.norm(place - other)) for other in others)
