"""Replay recorded actions from recorded states: data that fails here cannot teach a policy to succeed.

Files of this package's collector repeat bit for bit: they hold the complete state at the start. Official LIBERO files
hold positions and velocities, and the poses of fixtures inside `model_file`; they repeat up to the controller's memory.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from statevla.data.libero import list_files, open_hdf5
from statevla.errors import UserError
from statevla.worlds.demo_file import SETTINGS_ATTRIBUTE, stored_settings
from statevla.worlds.libero.demo_file import FIXTURES_ATTRIBUTE, GOAL_ATTRIBUTE, HIDDEN_ATTRIBUTE
from statevla.worlds.libero.simulation import Simulation, Snapshot
from statevla.worlds.libero.tasks import TaskSpec, suite_tasks

_CHECK_EVERY = 4


@dataclass(frozen=True)
class ReplayResult:
    """One replayed episode.

    Attributes:
        file: the file's name.
        demo: the episode's group.
        success: whether the episode's goal held at some time.
        deviation: largest difference of any joint angle or object coordinate from the recorded states (rad or m).
    """

    file: str
    demo: str
    success: bool
    deviation: float


def replay_data(path: Path, suite: str | None = None, max_demos: int | None = None) -> Iterator[ReplayResult]:
    """Replay the episodes of a LIBERO HDF5 file or of a folder of them, one by one.

    Args:
        path: file or folder.
        suite: the suite of the tasks; by default what the file says.
        max_demos: episodes per file.

    Raises:
        UserError: there is no file, its task is not in the suite, or it cannot be replayed.
    """
    if not path.exists():
        raise UserError(f"data {path}: expected an HDF5 file or a folder of them, found nothing; check the path")
    for file in list_files(path):
        with open_hdf5(file) as handle:
            data = handle["data"]
            simulation = Simulation(task_of_file(file, data, suite))
            demos = sorted(data, key=lambda key: int("".join(filter(str.isdigit, key)) or 0))
            for key in demos[:max_demos]:
                yield _replay_demo(simulation, file.name, data[key])
            simulation.close()


def task_of_file(file: Path, data: h5py.Group, suite: str | None) -> TaskSpec:
    """The task that a LIBERO HDF5 file was recorded on; `suite` where the file does not say it.

    Raises:
        UserError: neither says the suite, or it has no such task.
    """
    if suite is None:
        if SETTINGS_ATTRIBUTE not in data.attrs:
            raise UserError(f"data {file}: does not say its suite; pass --suite, such as --suite libero_object")
        suite = str(stored_settings(file)["suite"])
    name = re.sub(r"_(demo|play|reach|exchange|correction)$", "", file.stem)
    found = next((task for task in suite_tasks(suite) if task.name == name), None)
    if found is None:
        raise UserError(f"data {file}: suite '{suite}' has no task '{name}'; pass the --suite that it belongs to")
    return found


def _replay_demo(simulation: Simulation, file: str, demo: h5py.Group) -> ReplayResult:
    actions = np.asarray(demo["executed_actions" if "executed_actions" in demo else "actions"], dtype=np.float64)
    states = np.asarray(demo["states"], dtype=np.float64)
    start_episode(simulation, demo, states)
    simulation.pursue(json.loads(demo.attrs.get(GOAL_ATTRIBUTE, "null")) or simulation.task.goal)
    success, deviation = False, 0.0
    for step, action in enumerate(actions):
        deviation = max(deviation, _deviation(simulation, states[step]))
        simulation.step(action)
        if step % _CHECK_EVERY == 0 or step == len(actions) - 1:
            success = success or simulation.success()
    return ReplayResult(file, str(demo.name).rsplit("/", 1)[-1], success, deviation)


def start_episode(simulation: Simulation, demo: h5py.Group, states: np.ndarray) -> None:
    """Put the simulation where the episode began; `states` `[T, 1 + nq + nv]` are the recorded ones."""
    first = np.asarray(demo.attrs.get("init_state", states[0]), dtype=np.float64)
    if HIDDEN_ATTRIBUTE in demo.attrs:
        simulation.reset(0, settle_steps=0)
        fixtures = np.asarray(demo.attrs[FIXTURES_ATTRIBUTE], dtype=np.float64).reshape(-1, 7)
        simulation.restore(Snapshot(first, np.asarray(demo.attrs[HIDDEN_ATTRIBUTE]), fixtures))
        return
    simulation.reset(0, states[0], settle_steps=0)
    text = demo.attrs.get("model_file")
    snapshot = simulation.snapshot()
    fixtures = snapshot.fixtures if text is None else fixture_poses_of_xml(str(text), simulation)
    simulation.restore(Snapshot(states[0], snapshot.hidden, fixtures))


def fixture_poses_of_xml(text: str, simulation: Simulation) -> np.ndarray:
    """Poses `[F, 7]` (xyz, quaternion wxyz) of a task's fixtures in a MuJoCo XML model.

    Fixtures that the XML does not have keep the pose that they have now.
    """
    poses = simulation.fixture_poses()
    bodies: dict[str, Any] = {body.get("name", ""): body for body in ElementTree.fromstring(text).iter("body")}
    for row, name in enumerate(simulation.fixture_names):
        body = bodies.get(simulation.model.body(simulation.robosuite_env.obj_body_id[name]).name)
        if body is not None:
            position, quaternion = body.get("pos", "0 0 0"), body.get("quat", "1 0 0 0")
            poses[row] = np.array((position + " " + quaternion).split(), dtype=np.float64)
    return poses


def _deviation(simulation: Simulation, state: np.ndarray) -> float:
    size = 1 + simulation.model.nq
    return float(np.abs(simulation.data.qpos - state[1:size]).max())
