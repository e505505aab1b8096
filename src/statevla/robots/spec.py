"""What a robot declares: its actions, its state, its cameras and how often it acts.

Nothing about a robot is guessed from how many numbers it sends. A declaration comes from one of the files beside this
one, from a data set's metadata or from a user's YAML; it is stored in the frame cache and in every checkpoint.

    name: my_arm
    control_freq_hz: 30
    actions:
      - {name: arm, dims: [shoulder, elbow, wrist], mode: absolute, state: arm}
      - {name: gripper, dims: [gripper], kind: binary, values: [0, 1]}
    state:
      - {name: arm, dims: [shoulder, elbow, wrist], units: rad}
      - {name: gripper, dims: [gripper], role: gripper_opening}
    cameras:
      - {name: front}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from statevla.errors import UserError


class ImageOrientation(StrEnum):
    """How a source stores its frames; the policy always sees them upright."""

    UPRIGHT = "upright"
    FLIPPED_VERTICALLY = "flipped_vertically"
    """OpenGL's origin: LIBERO's official HDF5 files and raw robosuite frames."""
    ROTATED_180 = "rotated_180"
    """Both axes flipped."""
    MIRRORED = "mirrored"
    """Left and right exchanged: raw robosuite frames rotated by 180 degrees, as in `lerobot/libero`, openpi's LIBERO
    script and most published VLA data sets (the two vertical flips cancel out)."""


ImageFit = Literal["pad", "crop", "stretch"]
"""How a frame that is not square becomes square: black bars, the middle, or another aspect ratio."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Names become keys and file names: letters, digits, `_`, `.` and `-`."""


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ActionGroup(_Declared):
    """Consecutive numbers of an action that mean the same kind of thing."""

    name: Name
    dims: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of its numbers, in order."""
    kind: Literal["continuous", "binary"] = "continuous"
    """Binary numbers are classified, continuous ones are what the flow generates."""
    mode: Literal["absolute", "delta"] = "absolute"
    """Where to be, or how far to move. Rest is: hold the last target, or zero."""
    values: tuple[float, float] = (-1.0, 1.0)
    """The two commands of a binary group, off and on (a gripper: open and close)."""
    low: float | None = None
    high: float | None = None
    """Bounds of a continuous group, where they are known."""
    state: str | None = None
    """The state field that measures what an absolute group commands, dim by dim: needed for relative actions."""
    role: Literal["gripper"] | None = None
    """A gripper's changes are events, which keyframes lead to."""

    @model_validator(mode="after")
    def _consistent(self) -> ActionGroup:
        _check_different(self.name, self.dims)
        if self.values[0] == self.values[1]:
            raise ValueError(f"values {list(self.values)}: the two commands of a binary group must differ")
        if self.state is not None and (self.kind, self.mode) != ("continuous", "absolute"):
            raise ValueError("state: only a continuous absolute group has a state field that measures it")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low {self.low} must lie below high {self.high}")
        return self


class StateField(_Declared):
    """Consecutive numbers of a robot's state that mean the same kind of thing."""

    name: Name
    dims: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of its numbers, in order."""
    units: str = ""
    role: Literal["hand_position", "gripper_opening"] | None = None
    """`hand_position`: x, y, z of the hand in metres; `gripper_opening`: how far a gripper is open, in any units."""
    policy: bool = True
    """Whether the policy sees it; what it does not see may still serve in training (keyframes, probes)."""
    key: str | None = None
    """The data set's key of this field, or some of the numbers under one (`observation.state[0:3]`); by default it is
    the next part of the data set's one state vector, or carries the field's own name."""

    @model_validator(mode="after")
    def _consistent(self) -> StateField:
        _check_different(self.name, self.dims)
        if self.role == "hand_position" and len(self.dims) != 3:
            raise ValueError(f"role hand_position takes 3 numbers (x, y, z in metres), '{self.name}' has {self.size}")
        return self

    @property
    def size(self) -> int:
        return len(self.dims)


class Camera(_Declared):
    """A camera of the robot."""

    name: Name
    orientation: ImageOrientation = ImageOrientation.UPRIGHT
    """How the data set stores its frames."""
    fit: ImageFit = "pad"
    key: str | None = None
    """The data set's key of this camera; by default it carries the camera's name."""


class RobotSpec(_Declared):
    """A declared robot."""

    name: Name
    control_freq_hz: Annotated[float, Field(gt=0, le=10_000)]
    recorded_freq_hz: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """What the data set says instead, where that is wrong: `lerobot/libero` says 10, and was recorded at 20."""
    actions: Annotated[tuple[ActionGroup, ...], Field(min_length=1)]
    """In the order of the action's numbers."""
    state: tuple[StateField, ...] = ()
    """In the order of the state's numbers."""
    cameras: tuple[Camera, ...] = ()
    state_ways: tuple[tuple[str, ...], ...] = ()
    """Ways of saying the same, of which one is enough for the policy: names of state fields, a list each, such as
    `[[joint_positions], [hand_position, hand_orientation]]`. Training hides some of them at times."""
    assumed: tuple[str, ...] = ()
    """What the declaration did not say and was taken by custom, a sentence each."""

    @model_validator(mode="after")
    def _consistent(self) -> RobotSpec:
        for what, named in (("action group", self.actions), ("state field", self.state), ("camera", self.cameras)):
            names = [each.name for each in named]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"two {what}s are called '{name}'; names must differ")
        self._check_ways()
        for group in self.actions:
            if group.state is None:
                continue
            measured = self.find_field(group.state)
            if measured is None or measured.size != len(group.dims):
                found = "there is none" if measured is None else f"it has {measured.size}"
                raise ValueError(
                    f"action group '{group.name}' names state field '{group.state}' of {len(group.dims)} numbers, "
                    f"{found}; name a field that measures its dims one by one"
                )
        return self

    def _check_ways(self) -> None:
        seen = {field.name for field in self.policy_fields}
        named = [name for way in self.state_ways for name in way]
        measured = {group.state for group in self.actions}
        if len(self.state_ways) == 1 or not all(self.state_ways):
            raise ValueError("state_ways: expected two ways or more, each with a field; or none at all")
        for name in named:
            if name not in seen:
                raise ValueError(f"state_ways: the policy sees no state field '{name}'; name one, or leave it out")
            if named.count(name) > 1:
                raise ValueError(f"state_ways: '{name}' stands twice; a field belongs to one way")
            if name in measured:
                raise ValueError(f"state_ways: '{name}' measures an action group, so it cannot be left out")

    # Actions ----------------------------------------------------------------------------------------------------------

    @property
    def action_dim(self) -> int:
        """Numbers in an action, A."""
        return sum(len(group.dims) for group in self.actions)

    @property
    def action_names(self) -> tuple[str, ...]:
        """One name per number of an action: that of the dim, with its group's where dims repeat."""
        return _unique_names([(group.name, dim) for group in self.actions for dim in group.dims])

    def action_slices(self) -> dict[str, slice]:
        """Group name → where its numbers are in an action."""
        return _slices([(group.name, len(group.dims)) for group in self.actions])

    @property
    def is_binary(self) -> np.ndarray:
        """Bool `[A]`: which numbers of an action are classified."""
        return self._per_action_dim([group.kind == "binary" for group in self.actions]).astype(bool)

    @property
    def is_delta(self) -> np.ndarray:
        """Bool `[A]`: which numbers say how far to move, so that zero is rest."""
        return self._per_action_dim([g.mode == "delta" and g.kind == "continuous" for g in self.actions]).astype(bool)

    @property
    def num_continuous(self) -> int:
        return int((~self.is_binary).sum())

    @property
    def num_binary(self) -> int:
        return int(self.is_binary.sum())

    @property
    def action_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest value of every number, `[A]` each; infinite where none is declared."""
        low = [min(g.values) if g.kind == "binary" else -np.inf if g.low is None else g.low for g in self.actions]
        high = [max(g.values) if g.kind == "binary" else np.inf if g.high is None else g.high for g in self.actions]
        return self._per_action_dim(low), self._per_action_dim(high)

    def binary_values(self) -> tuple[np.ndarray, np.ndarray]:
        """Off and on command of the binary numbers, in order, `[num_binary]` each."""
        off, on = (self._per_action_dim([group.values[side] for group in self.actions]) for side in (0, 1))
        return off[self.is_binary], on[self.is_binary]

    def rest(self, last: np.ndarray) -> np.ndarray:
        """The action that keeps still after `last` `[..., A]`: deltas zero, everything else as it is."""
        return np.where(self.is_delta, 0.0, last).astype(last.dtype)

    def gripper_dims(self) -> list[int]:
        """Which numbers of an action command a gripper."""
        slices = self.action_slices()
        groups = [slices[group.name] for group in self.actions if group.role == "gripper"]
        return [index for part in groups for index in range(part.start, part.stop)]

    def _per_action_dim(self, per_group: list[Any]) -> np.ndarray:
        return np.repeat(np.asarray(per_group, np.float64), [len(group.dims) for group in self.actions])

    # State ------------------------------------------------------------------------------------------------------------

    @property
    def policy_fields(self) -> tuple[StateField, ...]:
        """The state fields that the policy sees, in order."""
        return tuple(field for field in self.state if field.policy)

    @property
    def state_dim(self) -> int:
        """Numbers of the state that the policy sees, S."""
        return sum(field.size for field in self.policy_fields)

    @property
    def state_names(self) -> tuple[str, ...]:
        """One name per number of the state that the policy sees."""
        return _unique_names([(field.name, dim) for field in self.policy_fields for dim in field.dims])

    def state_slices(self) -> dict[str, slice]:
        """Field name → where its numbers are in the state that the policy sees."""
        return _slices([(field.name, field.size) for field in self.policy_fields])

    def find_field(self, name: str) -> StateField | None:
        """The state field of that name."""
        return next((field for field in self.state if field.name == name), None)

    def field_with_role(self, role: str) -> StateField | None:
        """The first state field of that role."""
        return next((field for field in self.state if field.role == role), None)

    def with_ways(self, names: Iterable[str]) -> RobotSpec:
        """The same robot for a sender of the state fields `names`: without the ways that it says nothing of, unless
        it says nothing of any."""
        present = set(names)
        ways = [way for way in self.state_ways if not present.isdisjoint(way)]
        hidden = {name for way in self.state_ways if ways and way not in ways for name in way}
        if not hidden:
            return self
        state = tuple(
            field.model_copy(update={"policy": field.policy and field.name not in hidden}) for field in self.state
        )
        return self.model_copy(update={"state": state, "state_ways": tuple(ways) if len(ways) > 1 else ()})

    def policy_state(
        self, fields: Mapping[str, np.ndarray], source: str, instead: np.ndarray | None = None
    ) -> np.ndarray:
        """Named fields, `[..., n]` each → the state that the policy sees, `[..., S]`.

        Args:
            fields: by name; more than these may be there.
            source: begins messages.
            instead: `[S]`, stands for the ways (`state_ways`) that `fields` says nothing of; None: all are needed.

        Raises:
            UserError: a field is missing or has another size.
        """
        needed = {field.name for field in (self if instead is None else self.with_ways(fields)).policy_fields}
        parts = []
        for field, part in zip(self.policy_fields, self.state_slices().values()):
            if field.name not in needed:
                assert instead is not None
                parts.append(np.asarray(instead)[part])
                continue
            if field.name not in fields:
                raise UserError(
                    f"{source}: no state field '{field.name}', it has {', '.join(sorted(fields)) or 'none'}; robot "
                    f"'{self.name}' declares {self.describe_state()}"
                )
            shape = np.shape(fields[field.name])
            if not shape or shape[-1] != field.size:
                raise UserError(
                    f"{source}: state field '{field.name}' of robot '{self.name}' has {field.size} numbers "
                    f"({', '.join(field.dims)}), got shape {list(shape)}; send these"
                )
            parts.append(np.asarray(fields[field.name]))
        return np.concatenate(parts, axis=-1) if parts else np.zeros(0, np.float32)

    def way_masks(self) -> np.ndarray:
        """What may be seen of the state, float32 `[W, S]` of 0 and 1: all of it, and each of the W - 1 ways alone."""
        masks = np.ones((1 + len(self.state_ways), self.state_dim), np.float32)
        for mask, shown in zip(masks[1:], self.state_ways):
            for name in (name for way in self.state_ways if way != shown for name in way):
                mask[self.state_slices()[name]] = 0.0
        return masks

    def named_state(self, values: np.ndarray, source: str) -> dict[str, np.ndarray]:
        """The flat state that the policy sees, `[..., S]` → its fields by name.

        Raises:
            UserError: another number of values.
        """
        if values.ndim < 1 or values.shape[-1] != self.state_dim:
            raise UserError(
                f"{source}: robot '{self.name}' has {self.state_dim} state numbers ({self.describe_state()}), got "
                f"shape {list(values.shape)}; send these"
            )
        return {name: values[..., part] for name, part in self.state_slices().items()}

    def with_state(self, fields: Iterable[StateField]) -> RobotSpec:
        """The same robot with these state fields; what named one that is not among them names none."""
        state = tuple(fields)
        names = {field.name for field in state}
        seen = {field.name for field in state if field.policy}
        ways = tuple(way for way in self.state_ways if seen.issuperset(way))
        actions = tuple(
            group if group.state in names else group.model_copy(update={"state": None}) for group in self.actions
        )
        return self.model_copy(update={"state": state, "actions": actions, "state_ways": ways if len(ways) > 1 else ()})

    def describe_state(self) -> str:
        """The state that the policy sees, for people: `arm (5), gripper (1)`."""
        return ", ".join(f"{field.name} ({field.size})" for field in self.policy_fields) or "no state"

    def describe_actions(self) -> str:
        """The action groups, for people: `arm (6 continuous, delta), gripper (1 binary)`."""
        parts = []
        for group in self.actions:
            kind = "binary" if group.kind == "binary" else f"continuous, {group.mode}"
            parts.append(f"{group.name} ({len(group.dims)} {kind})")
        return ", ".join(parts)

    @property
    def keyframe_dim(self) -> int:
        """Numbers in a keyframe (`statevla.data.keyframes`): the hand's place if it is declared, else the state's."""
        return 3 if self.field_with_role("hand_position") is not None else self.state_dim

    # Cameras ----------------------------------------------------------------------------------------------------------

    @property
    def camera_names(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self.cameras)

    def camera(self, name: str) -> Camera:
        """The camera of that name.

        Raises:
            UserError: there is none.
        """
        for camera in self.cameras:
            if camera.name == name:
                return camera
        raise UserError(
            f"robot '{self.name}': no camera '{name}', it has {', '.join(self.camera_names) or 'none'}; "
            f"add '- {{name: {name}}}' to its cameras"
        )

    def with_orientation(self, orientation: ImageOrientation) -> RobotSpec:
        """The same robot whose data set stores all frames in this way."""
        cameras = tuple(camera.model_copy(update={"orientation": orientation}) for camera in self.cameras)
        return self.model_copy(update={"cameras": cameras})

    def may_say(self, freq_hz: float) -> bool:
        """Whether a data set of this robot may say this rate; cameras of 29.97 Hz are said to have 30."""
        rates = (self.control_freq_hz, self.recorded_freq_hz or self.control_freq_hz)
        return any(abs(freq_hz - rate) <= 0.01 * rate for rate in rates)

    # Comparison and storage -------------------------------------------------------------------------------------------

    def difference(self, other: RobotSpec, in_data: bool = False) -> str | None:
        """Why a policy of `self` cannot act for `other`, or data of both be mixed; None where it can.

        Names of the robots, cameras that only one has, and what the policy does not see may differ.

        Args:
            in_data: `other` is a data set's: its frames become square as it declares, so that must not differ either.
        """
        pairs = (
            ("action groups", self.describe_actions(), other.describe_actions()),
            ("action dims", list(self.action_names), list(other.action_names)),
            ("binary commands", _binary_commands(self), _binary_commands(other)),
            ("state", self.describe_state(), other.describe_state()),
            ("state ways", self.state_ways, other.state_ways),
            ("state dims", list(self.state_names), list(other.state_names)),
            ("state units", [f.units for f in self.policy_fields], [f.units for f in other.policy_fields]),
            ("control_freq_hz", self.control_freq_hz, other.control_freq_hz),
        )
        for what, here, there in pairs:
            if here != there:
                return f"{what}: {here} against {there}"
        for camera in self.cameras:
            if in_data and camera.name in other.camera_names and camera.fit != other.camera(camera.name).fit:
                return f"fit of camera '{camera.name}': {camera.fit} against {other.camera(camera.name).fit}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """A tree of plain values, for JSON and YAML; what has its default is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @classmethod
    def from_dict(cls, tree: Any, source: str) -> RobotSpec:
        """Inverse of `to_dict`; `source` names the file in errors.

        Raises:
            UserError: malformed; names the key, what was expected and what was found.
        """
        if not isinstance(tree, Mapping):
            raise UserError(
                f"robot {source}: expected a mapping with name, control_freq_hz, actions, state and cameras"
            )
        try:
            return cls.model_validate(dict(tree))
        except ValidationError as error:
            raise UserError(f"robot {source}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'; see docs/robots.md for the keys"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] in ("value_error", "missing"):
        found = "; add it" if problem["type"] == "missing" else ""
    else:
        found = f", got {problem['input']!r}"[:120]
    return f"{key}: {message[0].lower()}{message[1:]}{found}" if key else f"{message}{found}"


def _check_different(owner: str, dims: tuple[str, ...]) -> None:
    for dim in dims:
        if dims.count(dim) > 1:
            raise ValueError(f"dims: two numbers of '{owner}' are called '{dim}'; names must differ")


def _binary_commands(robot: RobotSpec) -> list[list[float]]:
    return [values.tolist() for values in robot.binary_values()]


def _slices(sizes: list[tuple[str, int]]) -> dict[str, slice]:
    stops = np.cumsum([size for _, size in sizes]).tolist()
    return {name: slice(stop - size, stop) for (name, size), stop in zip(sizes, stops)}


def _unique_names(pairs: list[tuple[str, str]]) -> tuple[str, ...]:
    dims = [dim for _, dim in pairs]
    return tuple(dim if dims.count(dim) == 1 else f"{owner}.{dim}" for owner, dim in pairs)
