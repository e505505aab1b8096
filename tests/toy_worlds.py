"""Small worlds for tests, which worker processes import too: a dot on a table that has to reach a square."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from statevla.errors import UserError
from statevla.robots import ActionGroup, Camera, RobotSpec, StateField
from statevla.types import Observation
from statevla.worlds.experts import ExpertStep
from statevla.worlds.protocol import Task, World

DOT = RobotSpec(
    name="dot",
    control_freq_hz=30.0,
    actions=(
        ActionGroup(name="push", dims=("x", "y"), mode="delta", low=-1.0, high=1.0),
        ActionGroup(name="lamp", dims=("lamp",), kind="binary", values=(0.0, 1.0)),
    ),
    state=(StateField(name="place", dims=("x", "y"), units="m"), StateField(name="lamp", dims=("on",))),
    cameras=(Camera(name="top"), Camera(name="side")),
)
INSTRUCTION = "move the dot onto the square"
MAX_STEPS = 25
STEP_M, REACHED_M = 0.1, 0.12


def draw(dot: np.ndarray, goal: np.ndarray, size: int) -> np.ndarray:
    """A picture uint8 `[size, size, 3]` of both."""
    picture = np.full((size, size, 3), 40, np.uint8)
    for place, colour in ((goal, (60, 160, 60)), (dot, (220, 60, 60))):
        column, row = ((place + 1.2) / 2.4 * size).astype(int)
        picture[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = colour
    return picture


class DotWorld:
    """The protocol, and nothing beside it."""

    robot, instruction, max_steps = DOT, INSTRUCTION, MAX_STEPS

    def __init__(self, image_size: int = 32, cameras: tuple[str, ...] = DOT.camera_names) -> None:
        self.image_size, self.cameras = image_size, cameras
        self.num_frames = 0

    def reset(self, seed: int, options: Mapping[str, Any] | None = None) -> Observation:
        self.dot, self.goal = np.random.default_rng(seed).uniform(-1, 1, (2, 2))
        self.lamp = 0.0
        return self.observe(render=False)

    def step(self, action: np.ndarray) -> None:
        self.dot = np.clip(self.dot + STEP_M * np.clip(action[:2], -1, 1), -1.2, 1.19)
        self.lamp = float(action[2])

    def observe(self, render: bool = True) -> Observation:
        images = {camera: self._frame(self.image_size) for camera in self.cameras} if render else {}
        return Observation(images, {"place": self.dot.copy(), "lamp": np.array([self.lamp])}, self.instruction)

    def success(self) -> bool:
        return bool(np.linalg.norm(self.dot - self.goal) < REACHED_M)

    def close(self) -> None:
        pass

    def _frame(self, size: int) -> np.ndarray:
        self.num_frames += 1
        return draw(self.dot, self.goal, size)


class ReplayableDotWorld(DotWorld):
    """With everything that a world may offer."""

    def state(self) -> np.ndarray:
        return np.array([*self.dot, self.lamp])

    def set_state(self, state: np.ndarray) -> None:
        self.dot, self.lamp = state[:2].copy(), float(state[2])

    def draw(self, camera: str, size: int) -> np.ndarray:
        return self._frame(size)

    def object_poses(self) -> dict[str, np.ndarray]:
        return {"square": np.array([*self.goal, 0, 1, 0, 0, 0])}


class FallingDotWorld(DotWorld):
    """The dot falls off the table at its first step; the episode is then over."""

    def over(self) -> bool:
        return bool(np.abs(self.dot).max() < 2)


class DyingWorld(ReplayableDotWorld):
    """Its process dies at the first step, once per file `$TOY_DIES` that is there."""

    def step(self, action: np.ndarray) -> None:
        token = Path(os.environ["TOY_DIES"])
        if token.is_file():
            token.unlink()
            os._exit(7)
        super().step(action)


class BrokenWorld(ReplayableDotWorld):
    """Raises at the first step."""

    def step(self, action: np.ndarray) -> None:
        raise ZeroDivisionError("the table has no legs")


class DarkWorld(DotWorld):
    """Raises at the first step where the square lies at the left: half the time."""

    def step(self, action: np.ndarray) -> None:
        if self.goal[0] < 0:
            raise RuntimeError(f"the lamp\nis dark at {self.goal[0]:.2f}")
        super().step(action)


class DotSuite:
    """Two tasks, the first with fixed initial states."""

    name, robot = "dots", DOT

    def __init__(self, size: str = "large") -> None:
        self.options = {"size": size}
        self.tasks = (
            Task("dots", 0, "near", "move the dot a little", MAX_STEPS, num_init_states=3),
            Task("dots", 1, "far", "move the dot a lot", MAX_STEPS),
        )

    def make(self, task: Task, image_size: int, cameras: tuple[str, ...]) -> World:
        return ReplayableDotWorld(image_size, tuple(cameras))

    def versions(self) -> dict[str, str]:
        return {"dots": "1.0"}

    def expert(self, task: Task) -> Any:
        return expert


class LackingSuite(DotSuite):
    """What it needs is not there."""

    def prepare(self) -> None:
        raise UserError("needs a table")


class DotEnv(gymnasium.Env):
    """The same as a gymnasium environment that declares what it is; its robot has no lamp."""

    robot = RobotSpec(
        name="dot_env", control_freq_hz=10.0, actions=DOT.actions[:1], state=DOT.state[:1], cameras=DOT.cameras[:1]
    )
    instruction, max_steps = INSTRUCTION, MAX_STEPS
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    observation_space = gymnasium.spaces.Dict(
        {
            "pixels": gymnasium.spaces.Dict({"top": gymnasium.spaces.Box(0, 255, (48, 64, 3), np.uint8)}),
            "agent_pos": gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float64),
        }
    )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.dot, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        return self.look(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.dot = np.clip(self.dot + STEP_M * action, -1.2, 1.19)
        success = bool(np.linalg.norm(self.dot - self.goal) < REACHED_M)
        return self.look(), float(success), success, False, {"success": success}

    def look(self) -> dict[str, Any]:
        picture = np.ascontiguousarray(draw(self.dot, self.goal, 64)[8:56])
        return {"pixels": {"top": picture}, "agent_pos": self.dot.copy()}


def expert(world: Any, rng: np.random.Generator) -> Iterator[ExpertStep]:
    """Straight to the square, with noise; fails where the square lies at the left: half the time."""
    if world.goal[0] < -0.2:
        return
    while not world.success():
        push = np.clip((world.goal - world.dot) / STEP_M, -1, 1)
        yield ExpertStep(np.array([*push, 1.0]), np.array([*(push + 0.1 * rng.standard_normal(2)), 1.0]))


def env_expert(world: Any, rng: np.random.Generator) -> Iterator[ExpertStep]:
    """For `DotEnv`."""
    while not world.success():
        yield ExpertStep(np.clip((world.env.goal - world.env.dot) / STEP_M, -1, 1))


def idle_expert(world: Any, rng: np.random.Generator) -> Iterator[ExpertStep]:
    """Gives up at once."""
    yield from ()


def shy_expert(world: Any, rng: np.random.Generator) -> Iterator[ExpertStep]:
    """Sends too few numbers."""
    yield ExpertStep(np.zeros(2))
