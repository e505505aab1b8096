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

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

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
    def _consistent(self) -> Self:
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
    def _consistent(self) -> Self:
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


class Declaration(_Declared):
    """The keys of a robot's declaration; what follows from them is `RobotSpec`'s."""

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
    def _consistent(self) -> Self:
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

    @property
    def policy_fields(self) -> tuple[StateField, ...]:
        """The state fields that the policy sees, in order."""
        return tuple(field for field in self.state if field.policy)

    def find_field(self, name: str) -> StateField | None:
        """The state field of that name."""
        return next((field for field in self.state if field.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """A tree of plain values, for JSON and YAML; what has its default is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @classmethod
    def from_dict(cls, tree: Any, source: str) -> Self:
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
