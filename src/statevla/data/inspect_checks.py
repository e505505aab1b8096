"""What is likely wrong with the numbers and pictures of episodes, judged by what their robot declares."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from statevla.data.episodes import EpisodeArrays
from statevla.robots import ActionGroup, RobotSpec

_STILL = 1e-3
"""A delta below this moves nothing."""
_BOUND_TOLERANCE = 1e-4
_CONSTANT_STD = 1e-6
_SIGN_LAG_S = 0.2
"""Time after which a gripper's command shows in its opening."""
_SIGN_SHARE = 0.0125
"""Mean motion of a gripper against its command, of its whole range, that makes the command's sign suspicious."""
_COMMAND_PAIRS = ((-1.0, 1.0), (0.0, 1.0))


def action_problems(robot: RobotSpec, actions: np.ndarray) -> Iterator[str]:
    """What is odd about the actions `[T, A]` of one episode, a line each."""
    for group, part in zip(robot.actions, robot.action_slices().values()):
        low, high = (bound[part] for bound in robot.action_bounds)
        values = actions[:, part]
        beyond = ((values < low - _BOUND_TOLERANCE) | (values > high + _BOUND_TOLERANCE)).any(axis=1)
        if group.kind == "continuous" and beyond.any():
            least, most = ("" if bound is None else f"{bound:g}" for bound in (group.low, group.high))
            largest = values.flat[np.abs(values).argmax()]
            yield (
                f"'{group.name}': {int(beyond.sum())} of {len(actions)} actions leave [{least}, {most}] "
                f"(largest {largest:.3g})"
            )
    continuous, delta = actions[:, ~robot.is_binary], actions[:, robot.is_delta]
    if delta.size and not delta.any() and delta.shape[1] == continuous.shape[1]:
        yield "all continuous actions are zero"
    elif len(actions) > 1 and continuous.size and not delta.any() and (continuous == continuous[0]).all():
        yield "the continuous actions never change"


def picture_problems(arrays: EpisodeArrays) -> Iterator[str]:
    """What is odd about the frames of one episode, a line each."""
    for camera, stored in arrays.images.items():
        frames = stored[arrays.seen]
        flat = frames.reshape(len(frames), -1)
        blank = flat.max(axis=1) == flat.min(axis=1)
        if blank.any():
            yield f"camera '{camera}': {int(blank.sum())} of {len(frames)} frames are blank"
        elif len(frames) > 2 and (flat == flat[0]).all():
            yield f"camera '{camera}': all {len(frames)} frames are the same picture"


def count_no_ops(robot: RobotSpec, actions: np.ndarray) -> int:
    """How many actions do nothing: deltas near zero, everything else as in the action before."""
    moves = (np.abs(actions) >= _STILL) & robot.is_delta
    kept = np.zeros(actions.shape, bool)
    kept[1:] = actions[1:] == actions[:-1]
    # Only deltas can say so of the first action.
    kept[0] = bool(robot.is_delta.any())
    return int((~moves & (robot.is_delta | kept)).all(axis=1).sum())


def constant_dims(robot: RobotSpec, actions: np.ndarray) -> tuple[list[str], list[str]]:
    """Names of the action dims that never change: deltas and commands, then absolute targets.

    A joint that holds its place is no wonder; a direction that is never taken, or a command never given, is.
    """
    constant = actions.std(axis=0) < _CONSTANT_STD
    held = constant & ~robot.is_delta & ~robot.is_binary
    return _named(robot, constant & ~held), _named(robot, held)


def _named(robot: RobotSpec, chosen: np.ndarray) -> list[str]:
    return [name for name, is_chosen in zip(robot.action_names, chosen) if is_chosen]


class GripperSigns:
    """Gathers how grippers' openings follow their commands."""

    def __init__(self, robot: RobotSpec) -> None:
        slices = robot.action_slices()
        grippers = [group for group in robot.actions if group.role == "gripper"]
        openings = [field for field in robot.state if field.role == "gripper_opening"]
        # Which opening is whose is told by their order. Of a continuous command nobody said which end is closed.
        paired = zip(grippers, openings) if len(grippers) == len(openings) else ()
        self._pairs = [(g, slices[g.name].start, f) for g, f in paired if g.kind == "binary" and len(g.dims) == 1]
        self._lag = max(1, round(_SIGN_LAG_S * robot.control_freq_hz))
        self._wrong: dict[str, list[np.ndarray]] = {group.name: [] for group, _, _ in self._pairs}
        self._ends: dict[str, list[float]] = {group.name: [] for group, _, _ in self._pairs}

    def add(self, arrays: EpisodeArrays) -> None:
        """Note an episode's switches of command, and what the opening then did."""
        for group, dim, field in self._pairs:
            if field.name not in arrays.robot_states:
                continue
            opening = np.abs(arrays.robot_states[field.name]).sum(axis=1)
            closes = arrays.actions[:, dim] > np.mean(group.values)
            if group.values[0] > group.values[1]:
                closes = ~closes
            switches = 1 + np.flatnonzero(closes[1:] != closes[:-1])
            change = opening[np.minimum(switches + self._lag, len(opening) - 1)] - opening[switches - 1]
            self._wrong[group.name].append(np.where(closes[switches], change, -change))
            self._ends[group.name] += [float(opening.min()), float(opening.max())]

    def problems(self) -> Iterator[str]:
        """Grippers that open where they should close, a line each."""
        for group, _, field in self._pairs:
            wrong = np.concatenate([*self._wrong[group.name], np.zeros(0)])
            ends = self._ends[group.name]
            if len(wrong) and wrong.mean() > _SIGN_SHARE * (max(ends) - min(ends)) > 0:
                yield (
                    f"'{field.name}' moves {wrong.mean():.3g} {field.units} the wrong way where the command of "
                    f"'{group.name}' switches: its sign seems inverted (expected {group.values[0]:g} open, "
                    f"{group.values[1]:g} close)"
                )


def binary_hints(robot: RobotSpec, actions: np.ndarray) -> list[str]:
    """Lines of YAML that would declare binary what is continuous and has two values only, over `actions` `[N, A]`."""
    hints = []
    for group, part in zip(robot.actions, robot.action_slices().values()):
        if group.kind == "binary":
            continue
        pairs = [_command_pair(values) for values in actions[:, part].T]
        start = 0
        for stop in range(1, len(pairs) + 1):
            if stop < len(pairs) and pairs[stop] == pairs[start]:
                continue
            if (pair := pairs[start]) is not None:
                hints.append(_hint(group, group.dims[start:stop], pair))
            start = stop
    return hints


def _command_pair(values: np.ndarray) -> tuple[float, float] | None:
    found = np.unique(values)
    return next((pair for pair in _COMMAND_PAIRS if np.array_equal(found, pair)), None)


def _hint(group: ActionGroup, dims: Sequence[str], pair: tuple[float, float]) -> str:
    own = re.sub(r"[^A-Za-z0-9_.-]+", "_", dims[0]).strip("_.-") if len(dims) == 1 else f"{group.name}_commands"
    name = group.name if len(dims) == len(group.dims) else own or f"{group.name}_command"
    role = ", role: gripper" if group.role else ""
    listed = ", ".join(dims)
    return f"- {{name: {name}, dims: [{listed}], kind: binary, values: [{pair[0]:g}, {pair[1]:g}]{role}}}"
