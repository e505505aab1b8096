"""Training data with pictures out of robosuite's demonstrations, which hold simulator states and actions only.

Every recorded state is shown again in the robosuite that is installed, and drawn. The file that is written has
robomimic's layout (`data/demo_<i>/obs/<key>`) with upright frames, and declares what other files leave to custom: the
robot, the orientation of frames, and that an observation is what was seen when its action was chosen.

    replay_demonstrations("handover", Path("data/handover.hdf5"))
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from statevla.data.hdf5_checks import create_hdf5, seal_attributes, write_array
from statevla.data.hdf5_robot import ORIENTATION_ATTRIBUTE, ROBOT_ATTRIBUTE
from statevla.data.libero import BEFORE_ACTION, TIMING_ATTRIBUTE
from statevla.errors import UserError
from statevla.machine.storage import replacing, writing
from statevla.robots import ImageOrientation
from statevla.worlds.backend import versions
from statevla.worlds.robosuite.demo_file import DemoFile, find_demo_file, open_demo_file

if TYPE_CHECKING:
    from statevla.worlds.robosuite.scene import RecordedScene

INSTRUCTIONS = {
    "Lift": "lift the cube",
    "Stack": "stack the red cube on the green cube",
    "NutAssembly": "put the nuts on their pegs",
    "NutAssemblySquare": "put the square nut on its peg",
    "NutAssemblyRound": "put the round nut on its peg",
    "PickPlace": "put the objects into their bins",
    "PickPlaceCan": "put the can into its bin",
    "Door": "open the door",
    "Wipe": "wipe the dirt off the table",
    "TwoArmLift": "lift the pot with both arms",
    "TwoArmPegInHole": "put the peg into the hole",
    "TwoArmHandover": "pick up the hammer and hand it over to the other arm",
}
"""robosuite's tasks in words; of others the name is taken apart."""


def replay_demonstrations(
    source: str | Path,
    target: Path,
    image_size: int = 128,
    cameras: Sequence[str] | None = None,
    instruction: str | None = None,
    progress: bool = True,
) -> Path:
    """Draw the pictures of a demonstration file, and write both to a new one.

    Args:
        source: the file, or the name of one that robosuite brings along (`PACKAGED_DEMOS`).
        target: the HDF5 file to write; one that exists is replaced at the end.
        image_size: side of the square frames, pixels.
        cameras: names of the model's cameras; by default the scene's and the wrists'.
        instruction: the task in words; by default what `INSTRUCTIONS` has.
        progress: show a progress bar.

    Returns:
        `target`.

    Raises:
        UserError: the file is not such a demonstration, does not fit the robosuite that is installed, or `target`
            cannot be written.
    """
    if image_size < 16:
        raise UserError(f"image_size {image_size}: expected 16 pixels or more; 128 is usual")
    path, target = find_demo_file(source), Path(target)
    if target.exists() and target.samefile(path):
        raise UserError(f"{target}: is the demonstrations' own file; choose another target")
    with open_demo_file(path) as demos:
        # Loads the simulator, which takes seconds: after all that can be found without it.
        from statevla.worlds.robosuite.scene import RecordedScene

        scene = RecordedScene(demos)
        try:
            wanted = scene.default_cameras if cameras is None else tuple(cameras)
            for camera in wanted:
                if camera not in scene.cameras:
                    known = ", ".join(scene.cameras)
                    raise UserError(f"demonstrations {path}: no camera '{camera}'; choose from {known}")
            with (
                writing(target),
                replacing(target) as part,
                create_hdf5(part) as file,
                _progress_bar(progress) as bar,
            ):
                _write_file(file, demos, scene, wanted, image_size, instruction, bar)
        finally:
            scene.close()
    return target


def _write_file(
    file: h5py.File,
    demos: DemoFile,
    scene: RecordedScene,
    cameras: Sequence[str],
    image_size: int,
    instruction: str | None,
    bar: Progress,
) -> None:
    from statevla.worlds.robosuite.declared import declare_robot

    data = file.create_group("data")
    episodes = [demos.read(key) for key in demos.episodes]
    actions = [scene.actions(episode) for episode in episodes]
    # Before minutes of drawing: it may find that the robot is driven otherwise.
    freq_hz, source = demos.env_kwargs["control_freq"], f"demonstrations {demos.path}"
    robot = declare_robot(scene.env, np.concatenate(actions), freq_hz, cameras, source)
    total, successes = sum(len(episode.states) for episode in episodes), 0
    task = bar.add_task(f"{demos.env_name}, {image_size} px", total=total)
    for number, episode in enumerate(episodes):
        scene.load(episode)
        group = data.create_group(f"demo_{number}")
        group.attrs["source_demo"] = episode.key
        group.attrs["num_samples"] = len(episode.states)
        group.attrs["model_file"] = scene.model_xml()
        write_array(group, "actions", actions[number])
        write_array(group, "states", episode.states)
        successes += _write_observations(group, scene, episode.states, cameras, image_size, lambda: bar.advance(task))
    data.attrs.update(_attributes(demos, cameras, image_size, instruction))
    data.attrs[ROBOT_ATTRIBUTE] = json.dumps(robot.to_dict())
    data.attrs["num_demos"], data.attrs["num_successes"], data.attrs["total"] = len(episodes), successes, total
    seal_attributes(file)


def _attributes(demos: DemoFile, cameras: Sequence[str], image_size: int, instruction: str | None) -> dict[str, str]:
    words = instruction or INSTRUCTIONS.get(demos.env_name) or _in_words(demos.env_name)
    drawn = {"camera_names": list(cameras), "camera_heights": image_size, "camera_widths": image_size}
    env_args = {"type": 1, "env_name": demos.env_name, "env_kwargs": {**demos.env_kwargs, **drawn}}
    return {
        "env_name": demos.env_name,
        "env_args": json.dumps(env_args),
        "problem_info": json.dumps({"language_instruction": words}),
        ORIENTATION_ATTRIBUTE: ImageOrientation.UPRIGHT.value,
        TIMING_ATTRIBUTE: BEFORE_ACTION,
        "tag": "statevla-robosuite-replay",
        "versions": json.dumps(versions("sim")),
    }


def _write_observations(
    group: h5py.Group,
    scene: RecordedScene,
    states: np.ndarray,
    cameras: Sequence[str],
    image_size: int,
    advance: Callable[[], None],
) -> bool:
    """Show `states` `[T, n]` in order and write what is seen; whether the last one is a success."""
    picture = (image_size, image_size, 3)
    frames = {
        camera: group.create_dataset(
            f"obs/{camera}_rgb", (len(states), *picture), np.uint8, chunks=(1, *picture), fletcher32=True
        )
        for camera in cameras
    }
    robot_states: list[dict[str, np.ndarray]] = []
    solved = np.zeros(len(states), np.uint8)
    deviation = 0.0
    for step, state in enumerate(states):
        deviation = max(deviation, scene.show(state))
        for camera, dataset in frames.items():
            dataset[step] = scene.render(camera, image_size)
        robot_states.append(scene.robot_state())
        solved[step] = scene.success()
        advance()
    for key in robot_states[0]:
        write_array(group, f"obs/{key}", np.stack([row[key] for row in robot_states]))
    # What an action led to is the next state; what the last one led to was not recorded.
    for key in ("rewards", "dones"):
        write_array(group, key, np.append(solved[1:], solved[-1]))
    group.attrs["largest_deviation_m"] = deviation
    return bool(solved[-1])


def _in_words(env_name: str) -> str:
    """`TwoArmLift` → `two arm lift`."""
    return " ".join(re.findall(r"[A-Z][a-z]*|[a-z]+|\d+", env_name)).lower()


def _progress_bar(shown: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("states"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, disable=not shown, transient=True)
