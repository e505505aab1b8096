"""The observations of openpi's example clients: which key is which camera and which numbers of the state.

Keys and layouts are those of Physical-Intelligence/openpi, examples/libero/main.py, examples/droid/main.py,
examples/aloha_real/env.py and examples/aloha_sim/env.py. What else a request holds is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from statevla.robots import ALOHA, DROID, LIBERO_HAND, ActionGroup, RobotSpec, StateField

PROMPT = "prompt"


@dataclass(frozen=True)
class RequestFormat:
    """The vocabulary of a client.

    Attributes:
        name: for messages.
        images: key → the names that its camera goes by in declarations; `a/b` is key `b` of the mapping `a`, unless
            the request itself has a key `a/b`.
        state: keys that together hold the flat state, in order → how many numbers each has.
        robots: what the numbers of its state, and of the actions that it expects, are; several are several ways of
            saying the same.
        orientation: the way up of its pictures, one of `ImageOrientation`.
        is_channels_first: whether its pictures are [3, H, W].
    """

    name: str
    images: Mapping[str, tuple[str, ...]]
    state: Mapping[str, int]
    robots: tuple[RobotSpec, ...]
    orientation: str = "upright"
    is_channels_first: bool = False

    @property
    def keys(self) -> list[str]:
        """As an error names them."""
        return [*self.images, *self.state, PROMPT]

    def is_spoken(self, keys: Iterable[str]) -> bool:
        """Whether a request with these keys, of inner mappings too, is one of this vocabulary."""
        present = set(keys)
        return present >= self.state.keys() and not present.isdisjoint(self.images)

    def cameras(self, robot: RobotSpec) -> dict[str, str]:
        """Key → the camera of the policy's robot that it holds, as far as there is one."""
        own = robot.camera_names
        named = {key: next((name for name in names if name in own), None) for key, names in self.images.items()}
        return {key: name for key, name in named.items() if name is not None}

    def robot_like(self, robot: RobotSpec) -> RobotSpec | None:
        """Its own robot in the words of the policy's; None where the policy's is another."""
        return next((own for own in self.robots if _misfit(own, robot) is None), None)

    def misfit(self, robot: RobotSpec) -> str | None:
        """What a policy of `robot` would misunderstand, as `expected ..., got ...`; None where all means the same."""
        return None if self.robot_like(robot) else _misfit(self.robots[0], robot)


def flattened(message: Mapping[str, object]) -> dict[str, object]:
    """A request with what its mappings hold beside them: `{"images": {"top": …}}` has `images/top` too."""
    inner = {
        f"{key}/{name}": value
        for key, part in message.items()
        if isinstance(part, Mapping)
        for name, value in part.items()
    }
    return {**inner, **message}


def _misfit(own: RobotSpec, robot: RobotSpec) -> str | None:
    robot = robot.with_ways(field.name for field in own.policy_fields)
    sent = {field.name: field for field in own.policy_fields}
    if not all(_is_alike(field, sent.get(field.name)) for field in robot.policy_fields):
        return f"expected state {_describe_fields(robot)}, got {_describe_fields(own)}"
    if robot.action_names != own.action_names or (robot.is_delta != own.is_delta).any():
        return f"expected a client that takes {robot.describe_actions()}, got one for {own.describe_actions()}"
    for which, here, there in zip(("lowest", "highest"), robot.action_bounds, own.action_bounds):
        known = np.isfinite(here) & np.isfinite(there) & (here != there)
        if known.any():
            i = int(known.argmax())
            return f"expected a client whose {which} '{robot.action_names[i]}' is {here[i]:g}, got one for {there[i]:g}"
    return None


def _is_alike(field: StateField, other: StateField | None) -> bool:
    """Whether two fields of one name hold the same; units count where both declare them."""
    if other is None or field.dims != other.dims:
        return False
    return not field.units or not other.units or field.units == other.units


def _describe_fields(robot: RobotSpec) -> str:
    parts = [f"{field.name} ({field.size}{', ' * bool(field.units)}{field.units})" for field in robot.policy_fields]
    return ", ".join(parts) or "none"


def _as_lerobot_names_it(robot: RobotSpec) -> RobotSpec:
    """ALOHA as its data sets on the hub say it: one group of actions and one field, `left_waist` and so on."""
    sides = [group.name.partition("_")[0] for group in robot.actions for _ in group.dims]
    dims = [dim for group in robot.actions for dim in group.dims]
    names = tuple(f"{side}_{dim}" for side, dim in zip(sides, dims))
    return robot.model_copy(
        update={
            "actions": (ActionGroup(name="action", dims=names, state="state"),),
            "state": (StateField(name="state", dims=names),),
        }
    )


OPENPI_LIBERO = RequestFormat(
    name="openpi's LIBERO keys",
    images={"observation/image": ("agentview",), "observation/wrist_image": ("eye_in_hand",)},
    state={"observation/state": 8},
    robots=(LIBERO_HAND,),
    orientation="mirrored",
)
OPENPI_DROID = RequestFormat(
    name="openpi's DROID keys",
    images={
        "observation/exterior_image_1_left": ("exterior_image_1_left", "exterior_1_left"),
        "observation/exterior_image_2_left": ("exterior_image_2_left", "exterior_2_left"),
        "observation/wrist_image_left": ("wrist_image_left", "wrist_left"),
    },
    state={"observation/joint_position": 7, "observation/gripper_position": 1},
    robots=(DROID,),
)
OPENPI_ALOHA = RequestFormat(
    name="openpi's ALOHA keys",
    images={
        # The simulated one has a single camera, which its data call `top`.
        "images/cam_high": ("cam_high", "top"),
        "images/cam_low": ("cam_low",),
        "images/cam_left_wrist": ("cam_left_wrist",),
        "images/cam_right_wrist": ("cam_right_wrist",),
    },
    state={"state": 14},
    robots=(ALOHA, _as_lerobot_names_it(ALOHA)),
    is_channels_first=True,
)
FORMATS = (OPENPI_LIBERO, OPENPI_DROID, OPENPI_ALOHA)
