"""A world as a `gymnasium.Env`; see `statevla.worlds.gym.as_gymnasium`, and `statevla.worlds.gym_ids` for the ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from statevla.errors import UserError
from statevla.robots import RobotSpec
from statevla.worlds.protocol import EndingWorld, Task, World

_RENDER_MODES = ("rgb_array",)


class WorldEnv(gymnasium.Env):
    """Any world, one step of it a step here.

    Args:
        world: the world, or what makes it once it is needed. `AsyncVectorEnv` makes an environment for its spaces and
            then forks, and where OpenGL has drawn before a fork, drawing hangs after it.
        task: instruction and step limit.
        robot: of the world.
        space: of its observations; the world is reset once to see it, where it is not given.
        images: see `as_gymnasium`.
        render_mode: see `as_gymnasium`.

    Raises:
        UserError: there is no such `render_mode`.
    """

    metadata = {"render_modes": list(_RENDER_MODES)}  # noqa: RUF012 # gymnasium's own way

    def __init__(
        self,
        world: World | Callable[[], World],
        task: World | Task,
        robot: RobotSpec,
        space: gymnasium.Space[Any] | None,
        images: bool,
        render_mode: str | None,
    ) -> None:
        if render_mode is not None and render_mode not in _RENDER_MODES:
            raise UserError(f"render_mode: expected {' or '.join(_RENDER_MODES)} or none, got {render_mode!r}")
        self._made: World | None = world if isinstance(world, World) else None
        self._make = world
        self._images = images
        self.robot, self.instruction, self.max_steps = robot, task.instruction, task.max_steps
        self.num_steps = 0
        self.metadata = {"render_modes": list(_RENDER_MODES), "render_fps": robot.control_freq_hz}
        self.render_mode = render_mode
        low, high = (bound.astype(np.float32) for bound in robot.action_bounds)
        self.action_space = gymnasium.spaces.Box(low, high)
        if space is None:
            self.world.reset(0)
            space = space_of(self._look())
        self.observation_space = space

    @property
    def world(self) -> World:
        """The world itself."""
        if self._made is None:
            assert not isinstance(self._make, World)
            self._made = self._make()
        return self._made

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; without a seed, one is drawn from those before."""
        super().reset(seed=seed)
        self.world.reset(int(self.np_random.integers(2**31)) if seed is None else seed, options)
        self.num_steps = 0
        return self._look(), self._info()

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Execute one action `[A]` → observation, reward (1.0 on success), terminated, truncated, info."""
        self.world.step(np.asarray(action))
        self.num_steps += 1
        info = self._info()
        over = isinstance(self.world, EndingWorld) and self.world.over()
        terminated = bool(info["success"] or over)
        truncated = not terminated and self.num_steps >= self.max_steps
        return self._look(), float(info["success"]), terminated, truncated, info

    def render(self) -> Any:
        """The first camera's frame, uint8 `[H, W, 3]`; None without a render mode."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() draws nothing without a render_mode; make it with render_mode='rgb_array'")
            return None
        return next(iter(self.world.observe().images.values()))

    def close(self) -> None:
        """Free the world."""
        if self._made is not None:
            self._made.close()

    def _info(self) -> dict[str, Any]:
        return {"success": self.world.success(), "num_steps": self.num_steps}

    def _look(self) -> dict[str, Any]:
        seen = self.world.observe(render=self._images)
        state = {name: np.array(values, np.float64) for name, values in seen.robot_state.items()}
        return {"images": dict(seen.images), "robot_state": state} if self._images else {"robot_state": state}


def space_of(value: Any) -> gymnasium.Space[Any]:
    """Of observations like this one: mappings of them, uint8 pictures, numbers."""
    if isinstance(value, Mapping):
        return gymnasium.spaces.Dict({key: space_of(inner) for key, inner in value.items()})
    if value.dtype == np.uint8:
        return gymnasium.spaces.Box(0, 255, value.shape, np.uint8)
    return gymnasium.spaces.Box(-np.inf, np.inf, value.shape, np.float64)
