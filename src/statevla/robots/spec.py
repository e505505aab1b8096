"""What follows from a robot's declaration: where each number is, what the policy sees, whether two robots agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from statevla.errors import UserError
from statevla.robots.declaration import Camera, Declaration, ImageOrientation, StateField


class RobotSpec(Declaration):
    """A declared robot: the keys of its `Declaration`, and what follows from them."""

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

    def flat_states(self) -> dict[int, RobotSpec]:
        """Numbers in a flat state → the robot whose state these are: all that the policy sees, or one of the ways
        (`state_ways`) alone. A way with as many numbers as another has to be said by name."""
        every = [self, *(self.with_ways(way) for way in self.state_ways)]
        sizes = [robot.state_dim for robot in every]
        return {robot.state_dim: robot for robot in every if sizes.count(robot.state_dim) == 1}

    def named_state(self, values: np.ndarray, source: str) -> dict[str, np.ndarray]:
        """A flat state, `[..., S]` or, of one way alone, fewer (`flat_states`) → its fields by name.

        Raises:
            UserError: another number of values.
        """
        flat = self.flat_states()
        if values.ndim < 1 or values.shape[-1] not in flat:
            expected = ", or ".join(f"{size} state numbers ({by.describe_state()})" for size, by in flat.items())
            raise UserError(f"{source}: robot '{self.name}' has {expected}, got shape {list(values.shape)}; send these")
        return {name: values[..., part] for name, part in flat[values.shape[-1]].state_slices().items()}

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

    # Comparison -------------------------------------------------------------------------------------------------------

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


def _binary_commands(robot: RobotSpec) -> list[list[float]]:
    return [values.tolist() for values in robot.binary_values()]


def _slices(sizes: list[tuple[str, int]]) -> dict[str, slice]:
    stops = np.cumsum([size for _, size in sizes]).tolist()
    return {name: slice(stop - size, stop) for (name, size), stop in zip(sizes, stops)}


def _unique_names(pairs: list[tuple[str, str]]) -> tuple[str, ...]:
    dims = [dim for _, dim in pairs]
    return tuple(dim if dims.count(dim) == 1 else f"{owner}.{dim}" for owner, dim in pairs)
