"""Demonstrations of an expert in any world, as the collector stores them.

An episode is a pure function of the settings, the task and its number. Frames are most of the cost: where a world's
moments can be shown again, they are drawn after the episode, and not at all if it failed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from statevla.data.libero import (
    BEFORE_ACTION,
    INSTRUCTION_ATTRIBUTE,
    ORIENTATION_ATTRIBUTE,
    ROBOT_ATTRIBUTE,
    TIMING_ATTRIBUTE,
)
from statevla.errors import UserError
from statevla.robots import ImageOrientation, RobotSpec
from statevla.worlds.demo_file import INDEX_ATTRIBUTE, SETTINGS_ATTRIBUTE, EpisodeRecord
from statevla.worlds.experts import Expert, find_expert
from statevla.worlds.protocol import (
    EndingWorld,
    PreparedSuite,
    ReplayableWorld,
    Suite,
    Task,
    World,
    WorldWithObjects,
)
from statevla.worlds.registry import open_suite


@dataclass(frozen=True)
class WorldRecipe:
    """What, beside the task and the index, an episode depends on.

    Attributes:
        world: name of the world, as in `registry.open_suite`.
        options: of the world.
        expert: `module:function`; None for the suite's own.
        seed: base of all random draws.
        image_size: of the frames (pixels).
    """

    world: str
    options: Mapping[str, Any] = field(default_factory=dict)
    expert: str | None = None
    seed: int = 0
    image_size: int = 128

    def __getstate__(self) -> dict[str, Any]:
        return asdict(self)  # each process opens a suite of its own

    @property
    def kind(self) -> str:
        return "demo"

    @property
    def worker_gb(self) -> float:
        return 1.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def defaults(self) -> dict[str, Any]:
        return {}

    @cached_property
    def suite(self) -> Suite:
        return open_suite(self.world, **self.options)

    def prepare(self) -> None:
        if isinstance(self.suite, PreparedSuite):
            self.suite.prepare()
        for task in self.suite.tasks:
            find_expert(self.suite, task, self.expert)

    def tasks(self) -> Sequence[Task]:
        return self.suite.tasks

    def open(self, index: int) -> WorldRecorder:
        return WorldRecorder(self, self.suite, self.suite.tasks[index])

    def file_attributes(self, index: int) -> dict[str, Any]:
        task, robot = self.suite.tasks[index], self.suite.robot
        env_args = {"env_name": self.suite.name, "type": 1, "env_kwargs": {"control_freq": robot.control_freq_hz}}
        return {
            "env_name": self.suite.name,
            "problem_info": json.dumps({"language_instruction": task.instruction}),
            "env_args": json.dumps(env_args),
            "tag": "statevla-expert",
            ROBOT_ATTRIBUTE: json.dumps(_as_recorded(robot).to_dict()),
            ORIENTATION_ATTRIBUTE: ImageOrientation.UPRIGHT.value,
            TIMING_ATTRIBUTE: BEFORE_ACTION,
            SETTINGS_ATTRIBUTE: json.dumps(self.as_dict()),
            "versions": json.dumps(dict(self.suite.versions())),
        }


class WorldRecorder:
    """Runs the expert in the world of one task and records what it does."""

    def __init__(self, recipe: WorldRecipe, suite: Suite, task: Task) -> None:
        self._recipe, self._task = recipe, task
        self._expert = find_expert(suite, task, recipe.expert)
        self._world = suite.make(task, recipe.image_size, suite.robot.camera_names)

    def record(self, index: int) -> EpisodeRecord | None:
        """Episode number `index`, or None where the expert failed."""
        task = self._task
        rng = np.random.default_rng([self._recipe.seed, zlib.crc32(f"{task.suite}/{task.name}".encode()), index])
        seed = int(rng.integers(2**31))
        self._world.reset(seed)
        steps = run_expert(self._world, self._expert, rng)
        if steps is None:
            return None
        datasets, object_names = steps.datasets(self._world)
        attributes = {
            INSTRUCTION_ATTRIBUTE: task.instruction,
            "num_samples": len(steps.actions),
            "seed": seed,
            INDEX_ATTRIBUTE: index,
        }
        return EpisodeRecord(datasets, attributes, object_names)

    def close(self) -> None:
        self._world.close()


@dataclass
class RecordedSteps:
    """What an expert did: a row per control step, each of before its action.

    Attributes:
        actions, executed: `[A]` each, clean and as they were executed.
        fields: state field → `[n]` each.
        images: camera → uint8 `[H, W, 3]` each; empty where `states` can be shown again.
        states: `[n]` each, of a replayable world.
        objects: `[O, 7]` each, of a world that knows its objects.
    """

    actions: list[np.ndarray] = field(default_factory=list)
    executed: list[np.ndarray] = field(default_factory=list)
    fields: dict[str, list[np.ndarray]] = field(default_factory=dict)
    images: dict[str, list[np.ndarray]] = field(default_factory=dict)
    states: list[np.ndarray] = field(default_factory=list)
    objects: list[np.ndarray] = field(default_factory=list)

    def note_moment(self, world: World, replayable: ReplayableWorld | None, furnished: WorldWithObjects | None) -> None:
        """Take down what there is before an action; the world is given once more as what else it is."""
        seen = world.observe(render=replayable is None)
        for name, values in seen.robot_state.items():
            self.fields.setdefault(name, []).append(np.array(values, np.float64))
        for name, image in seen.images.items():
            self.images.setdefault(name, []).append(image)
        if replayable is not None:
            self.states.append(np.array(replayable.state(), np.float64))
        if furnished is not None:
            self.objects.append(np.array(list(furnished.object_poses().values()), np.float64).reshape(-1, 7))

    def note_action(self, clean: np.ndarray, executed: np.ndarray) -> None:
        self.actions.append(clean)
        self.executed.append(executed)

    def datasets(self, world: World) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """What is stored, and the names of the objects; frames of a replayable world are drawn now."""
        if isinstance(world, ReplayableWorld):
            self._draw(world)
        finished = np.zeros(len(self.actions), np.uint8)
        finished[-1] = 1
        stored = {
            "actions": np.stack(self.actions),
            "executed_actions": np.stack(self.executed),
            "rewards": finished,
            "dones": finished,
            **{f"obs/{name}_rgb": np.stack(rows) for name, rows in self.images.items()},
            **{f"obs/{name}": np.stack(rows) for name, rows in self.fields.items()},
        }
        if self.states:
            stored["states"] = np.stack(self.states)
        if self.objects:
            stored["obs/object_states"] = np.stack(self.objects)
        return stored, tuple(world.object_poses()) if isinstance(world, WorldWithObjects) else ()

    def _draw(self, world: ReplayableWorld) -> None:
        for state in self.states:
            world.set_state(state)
            for name, image in world.observe().images.items():
                self.images.setdefault(name, []).append(image)


def run_expert(world: World, expert: Expert, rng: np.random.Generator) -> RecordedSteps | None:
    """Let an expert act in a world that was just reset, until it has finished or the world's `max_steps` are over.

    Returns:
        What it did, or None where the task is not done in the end.

    Raises:
        UserError: an action does not fit the robot.
    """
    steps, robot = RecordedSteps(), world.robot
    # Asked once: what a protocol takes to answer adds up.
    ending = world if isinstance(world, EndingWorld) else None
    replayable = world if isinstance(world, ReplayableWorld) else None
    furnished = world if isinstance(world, WorldWithObjects) else None
    motion = iter(expert(world, rng))
    for _ in range(world.max_steps):
        # The expert looks at the world before it answers, as a policy does.
        step = next(motion, None)
        if step is None:
            break
        clean = _checked(step.action, robot)
        executed = clean if step.executed is None else _checked(step.executed, robot)
        steps.note_moment(world, replayable, furnished)
        steps.note_action(clean, executed)
        world.step(executed)
        if ending is not None and ending.over():
            break
    return steps if steps.actions and world.success() else None


def _checked(action: np.ndarray, robot: RobotSpec) -> np.ndarray:
    found = np.array(action, np.float64)
    if found.shape != (robot.action_dim,) or not np.isfinite(found).all():
        what = "NaN or infinite numbers" if found.shape == (robot.action_dim,) else f"shape {list(found.shape)}"
        raise UserError(
            f"expert: robot '{robot.name}' takes {robot.action_dim} finite numbers ({robot.describe_actions()}), got "
            f"{what}; yield ExpertStep(action) with these"
        )
    names = np.array(robot.action_names)[robot.is_binary]
    for name, value, off, on in zip(names, found[robot.is_binary], *robot.binary_values()):
        if value not in (off, on):
            raise UserError(
                f"expert: number '{name}' is a command out of {off:g} and {on:g}, got {value:g}; send one of these, or "
                "declare its group continuous"
            )
    return found


def _as_recorded(robot: RobotSpec) -> RobotSpec:
    """The robot of the file: frames are stored upright under its cameras' and fields' own names."""
    cameras = tuple(camera.model_copy(update={"key": None}) for camera in robot.cameras)
    state = tuple(each.model_copy(update={"key": None}) for each in robot.state)
    return robot.model_copy(update={"cameras": cameras, "state": state}).with_orientation(ImageOrientation.UPRIGHT)
