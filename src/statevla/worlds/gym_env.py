"""A world as a `gymnasium.Env`; see `statevla.worlds.gym.as_gymnasium`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from statevla.worlds.protocol import EndingWorld, World


class WorldEnv(gymnasium.Env):
    """Any world, one step of it a step here."""

    def __init__(self, world: World, images: bool) -> None:
        self.world, self._images = world, images
        self.robot, self.instruction, self.max_steps = world.robot, world.instruction, world.max_steps
        self.num_steps = 0
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": world.robot.control_freq_hz}
        self.render_mode = "rgb_array"
        low, high = (bound.astype(np.float32) for bound in world.robot.action_bounds)
        self.action_space = gymnasium.spaces.Box(low, high)
        world.reset(0)
        self.observation_space = _space_of(self._look())

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
        """The first camera's frame, uint8 `[H, W, 3]`."""
        return next(iter(self.world.observe().images.values()))

    def close(self) -> None:
        """Free the world."""
        self.world.close()

    def _info(self) -> dict[str, Any]:
        return {"success": self.world.success(), "num_steps": self.num_steps}

    def _look(self) -> dict[str, Any]:
        seen = self.world.observe(render=self._images)
        state = {name: np.array(values, np.float64) for name, values in seen.robot_state.items()}
        return {"images": dict(seen.images), "robot_state": state} if self._images else {"robot_state": state}


def _space_of(value: Any) -> gymnasium.Space[Any]:
    if isinstance(value, Mapping):
        return gymnasium.spaces.Dict({key: _space_of(inner) for key, inner in value.items()})
    if value.dtype == np.uint8:
        return gymnasium.spaces.Box(0, 255, value.shape, np.uint8)
    return gymnasium.spaces.Box(-np.inf, np.inf, value.shape, np.float64)
