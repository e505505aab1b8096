"""Gymnasium environments as worlds, and worlds as gymnasium environments.

A gymnasium environment says little of what its numbers mean. To be a world it declares, as attributes:

- `robot`: a `RobotSpec`, the name of a known robot, or the mapping that a YAML file would hold (docs/robots.md);
- `instruction`: the task in words;
- `max_steps`, unless it was registered with `max_episode_steps`;
- `success_from = "termination"` where being terminated with a positive reward is success. Otherwise the info of `step`
  says it: `info["success"]` or `info["is_success"]`.

Its observation is a mapping. Pictures (uint8 `[H, W, 3]`) and state fields are found in it by the `key` that the robot
declares for them, else by their names; inner mappings count (`pixels.top`, or `top` alone where no other has that
name). State fields that declare no key may instead be one array, `state` or `agent_pos`, in the declared order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from statevla.errors import UserError
from statevla.robots import Camera, ImageOrientation, RobotSpec, StateField, load_robot
from statevla.types import Observation
from statevla.worlds.protocol import World

# Workers do without PyTorch: what brings it along is imported where it is needed.
_FLAT_STATES = ("state", "agent_pos")
_SUCCESS_KEYS = ("success", "is_success")
_MISSING = object()


class GymWorld:
    """A gymnasium environment behind the protocol of worlds.

    Args:
        env: the environment, see above.
        name: begins messages.
        cameras: whose frames `observe` gives; all of the robot's by default.

    Raises:
        UserError: the environment lacks a declaration; the message says what to add.
    """

    def __init__(self, env: Any, name: str, cameras: Sequence[str] | None = None) -> None:
        self.env, self._name = env, name
        self.robot = _declared_robot(env, name)
        self.instruction = _declared_text(env, "instruction", name)
        self.max_steps = _declared_max_steps(env, name)
        self._success_from = _attribute(env, "success_from", "info")
        if self._success_from not in ("info", "termination"):
            raise UserError(f"world '{name}': success_from: expected info or termination, got {self._success_from!r}")
        names = self.robot.camera_names if cameras is None else tuple(cameras)
        self._cameras = tuple(self.robot.camera(camera) for camera in names)
        space = getattr(env.action_space, "shape", None)
        if space != (self.robot.action_dim,):
            raise UserError(
                f"world '{name}': robot '{self.robot.name}' declares {self.robot.action_dim} action numbers "
                f"({self.robot.describe_actions()}), action_space has shape {space}; let them agree"
            )
        self._success = self._over = False
        self._observation: Mapping[str, Any] = {}

    def reset(self, seed: int, options: Mapping[str, Any] | None = None) -> Observation:
        """Begin an episode; the environment draws it from `seed`."""
        seen, info = self.env.reset(seed=seed, options=dict(options) if options else None)
        self._take(seen)
        self._success, self._over = any(bool(info.get(key, False)) for key in _SUCCESS_KEYS), False
        return self.observe(render=False)

    def step(self, action: np.ndarray) -> None:
        """Execute one action `[A]`, in the type of the environment's action space."""
        seen, reward, terminated, truncated, info = self.env.step(np.asarray(action, self.env.action_space.dtype))
        self._take(seen)
        self._over = bool(terminated or truncated)
        self._success = self._succeeded(float(reward), bool(terminated), info)

    def observe(self, render: bool = True) -> Observation:
        """What the last `reset` or `step` gave; the environment has drawn its pictures already."""
        images = {camera.name: self._picture(camera) for camera in self._cameras} if render else {}
        return Observation(images, self._state(), self.instruction)

    def success(self) -> bool:
        """Whether the last step said that the task is done."""
        return self._success

    def over(self) -> bool:
        """Whether the environment has ended the episode."""
        return self._over

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _take(self, seen: Any) -> None:
        if not isinstance(seen, Mapping):
            raise UserError(
                f"world '{self._name}': expected observations as a mapping with pictures and state, got "
                f"{type(seen).__name__}; return a dict, such as {{'front': picture, 'state': numbers}}"
            )
        self._observation = dict(_flat(seen))

    def _succeeded(self, reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:
        if self._success_from == "termination":
            return terminated and reward > 0
        for key in _SUCCESS_KEYS:
            if key in info:
                return bool(info[key])
        raise UserError(
            f"world '{self._name}': the info of step has no 'success' or 'is_success', it has "
            f"{', '.join(map(str, info)) or 'nothing'}; add info['success'], or the attribute "
            "success_from = 'termination' if terminated with a positive reward is success"
        )

    def _picture(self, camera: Camera) -> np.ndarray:
        found = self._find(camera.key or camera.name)
        if found is None:
            raise UserError(
                f"world '{self._name}': no picture of camera '{camera.name}' in the observation, it has "
                f"{self._names()}; name it so, or declare its key: {{name: {camera.name}, key: …}}"
            )
        picture = np.asarray(found)
        if camera.orientation is not ImageOrientation.UPRIGHT:
            from statevla.transforms import to_upright

            picture = to_upright(picture, camera.orientation)
        return np.ascontiguousarray(picture)

    def _state(self) -> dict[str, np.ndarray]:
        found = {field.name: self._find(field.key or field.name) for field in self.robot.state}
        missing = [field for field in self.robot.state if found[field.name] is None]
        if missing:
            found |= self._split_flat_state(missing)
        return {field.name: self._checked(found[field.name], field) for field in self.robot.state}

    def _split_flat_state(self, fields: Sequence[StateField]) -> dict[str, Any]:
        """The fields that the observation does not name, out of its one array, in the declared order."""
        keyless = [field for field in self.robot.state if field.key is None]
        flat = [key for key in _FLAT_STATES if key in self._observation]
        if list(fields) != keyless or len(flat) != 1:
            raise UserError(
                f"world '{self._name}': no state field '{fields[0].name}' in the observation, it has {self._names()}; "
                f"name it so, declare its key: {{name: {fields[0].name}, key: …}}, or give all fields as one 'state'"
            )
        values = np.asarray(self._observation[flat[0]]).reshape(-1)
        size = sum(field.size for field in fields)
        if len(values) != size:
            declared = ", ".join(f"{field.name} ({field.size})" for field in fields)
            raise UserError(
                f"world '{self._name}': robot '{self.robot.name}' declares {size} state numbers ({declared}), "
                f"'{flat[0]}' has {len(values)}; let them agree"
            )
        parts = np.split(values, np.cumsum([field.size for field in fields])[:-1])
        return {field.name: part for field, part in zip(fields, parts)}

    def _checked(self, found: Any, field: StateField) -> np.ndarray:
        values = np.asarray(found).reshape(-1)
        if len(values) != field.size:
            raise UserError(
                f"world '{self._name}': state field '{field.name}' of robot '{self.robot.name}' has {field.size} "
                f"numbers ({', '.join(field.dims)}), the observation has {len(values)}; let them agree"
            )
        return values

    def _find(self, key: str) -> Any:
        """What the observation holds under a key or, alone in that, under a last part of one; `[0:3]` takes numbers."""
        name, part = _split(key)
        found = self._observation.get(name, _MISSING)
        if found is _MISSING:
            inner = [full for full in self._observation if full.endswith(f".{name}")]
            if len(inner) != 1:
                return None
            found = self._observation[inner[0]]
        return found if part == slice(None) else np.asarray(found).reshape(-1)[part]

    def _names(self) -> str:
        return ", ".join(f"{key} {list(np.shape(value))}" for key, value in self._observation.items()) or "nothing"


def as_gymnasium(world: World, images: bool = True, render_mode: str | None = "rgb_array") -> Any:
    """Any world as a `gymnasium.Env`.

    Observations are `{"images": {camera: uint8 [H, W, 3]}, "robot_state": {field: float64 [n]}}`; the reward is 1 for
    success, which terminates; `max_steps` truncates; info has `success` and `num_steps`. It declares what `GymWorld`
    asks for.

    Args:
        world: the world; its attributes are reached by `.world`. It is reset once, for the size of its frames.
        images: without them frames are drawn by `render` and `world.observe` alone: drawing may be most of the cost.
        render_mode: "rgb_array", or none.

    Raises:
        UserError: there is no such render mode.
    """
    from statevla.worlds.gym_env import WorldEnv

    return WorldEnv(world, world, world.robot, None, images, render_mode)


def _split(key: str) -> tuple[str, slice]:
    if "[" not in key:
        return key, slice(None)
    from statevla.data.keys import split_key

    return split_key(key)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Inner mappings with dots: `{"pixels": {"top": …}}` → `pixels.top`."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _attribute(env: Any, name: str, default: Any = None) -> Any:
    """An attribute of an environment, whatever wrappers lie around it; None counts as missing."""
    while env is not None:
        found = getattr(env, name) if name in vars(env) or hasattr(type(env), name) else None
        if found is not None:
            return found
        env = vars(env).get("env")
    return default


def _declared_robot(env: Any, name: str) -> RobotSpec:
    robot = _attribute(env, "robot")
    if isinstance(robot, RobotSpec):
        return robot
    if isinstance(robot, str):
        return load_robot(robot)
    if isinstance(robot, Mapping):
        return RobotSpec.from_dict(robot, f"of world '{name}'")
    raise UserError(
        f"world '{name}': the environment does not say what its actions, state and cameras are; give it an attribute "
        "'robot': a RobotSpec, the name of a known robot or a mapping (docs/robots.md)"
    )


def _declared_text(env: Any, attribute: str, name: str) -> str:
    text = _attribute(env, attribute)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"world '{name}': expected the task in words as attribute '{attribute}', got {text!r}; add it")
    return text


def _declared_max_steps(env: Any, name: str) -> int:
    spec = getattr(env, "spec", None)
    found = _attribute(env, "max_steps", getattr(spec, "max_episode_steps", None))
    if isinstance(found, (int, np.integer)) and found >= 1:
        return int(found)
    raise UserError(
        f"world '{name}': expected a number of control steps as attribute 'max_steps' (or max_episode_steps of its "
        f"registration), got {found!r}; add it"
    )
