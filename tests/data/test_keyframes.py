"""Where the robot will be at the next event: a gripper's change, a pause, the end."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from statevla.data import TransitionDataset, open_frame_cache
from statevla.data.keyframes import UNIT_M, next_keyframes
from statevla.robots import KNOWN_ROBOTS, LIBERO, ActionGroup, RobotSpec, StateField
from statevla.transforms import Transform

RAW = SimpleNamespace(normalize_robot_state=lambda states: states)
"""A transform that leaves states as they are."""
PUSHER = RobotSpec(
    name="pusher",
    control_freq_hz=10,
    actions=(ActionGroup(name="target", dims=("x", "y")),),
    state=(StateField(name="place", dims=("x", "y")),),
)


def recorded(robot: RobotSpec, states: list[np.ndarray], actions: list[np.ndarray], success: bool | None = None):
    """A cache's arrays; the hand is at x = frame number (m) where the robot declares one."""
    starts = np.cumsum([0, *map(len, states)])
    episodes = [SimpleNamespace(start=a, stop=b, success=success) for a, b in pairwise(starts)]
    hand = np.zeros((starts[-1], 3), np.float32)
    hand[:, 0] = np.arange(starts[-1])
    whole = np.concatenate(states).astype(np.float32)
    return SimpleNamespace(
        robot=robot,
        episodes=episodes,
        actions=np.concatenate(actions).astype(np.float32),
        robot_state=whole,
        robot_states={"hand_position": hand},
    )


def libero(commands: list[list[int]]):
    actions = [np.tile([[0.0] * 6 + [1.0]], (len(own), 1)) * np.array(own)[:, None] for own in commands]
    return recorded(LIBERO, [np.zeros((len(own), 9)) for own in commands], actions)


def test_offsets_lead_to_the_next_change_in_the_same_episode() -> None:
    offsets, known = next_keyframes(libero([[-1, -1, 1, 1, -1, -1], [1, 1], [1, -1]]), RAW)
    np.testing.assert_allclose(offsets[:, 0] * UNIT_M, [2, 1, 0, 1, 0, 0, 0, 0, 1, 0], atol=1e-6)
    assert known.tolist() == [True] * 5 + [False] * 3 + [True] * 2
    assert not offsets[:, 1:].any()


def test_the_event_after_the_next_is_known_where_there_is_one() -> None:
    offsets, known = next_keyframes(libero([[-1, -1, 1, 1, -1, -1], [1, 1], [1, -1]]), RAW, ahead=2)
    np.testing.assert_allclose(offsets[:, 0] * UNIT_M, [4, 3, 2, 0, 0, 0, 0, 0, 0, 0], atol=1e-6)
    assert known.tolist() == [True] * 3 + [False] * 7


@pytest.mark.parametrize(("success", "last_known"), [(None, True), (True, True), (False, False)])
def test_joints_lead_to_the_state_at_a_continuous_grippers_change_then_to_the_end(
    success: bool | None, last_known: bool
) -> None:
    robot = KNOWN_ROBOTS["so101"]
    # Half of the range is 0.5; 0.45 and 0.55 lie within the hysteresis and are no event.
    jaw = np.array([0.0, 0.45, 0.55, 0.45, 0.9, 1.0, 0.55, 0.45, 0.9])
    states = np.arange(9)[:, None] * np.ones(6)
    actions = np.zeros((9, 6))
    actions[:, 5] = jaw
    keyframes, known = next_keyframes(recorded(robot, [states], [actions], success), RAW)
    assert keyframes.shape == (9, 6)
    assert known.tolist() == [True] * 5 + [last_known] * 4
    assert keyframes[:, 0].tolist() == [4.0] * 5 + [8.0 * last_known] * 4


def test_without_a_gripper_pauses_are_events() -> None:
    moving, still = np.linspace(0, 1, 11)[:, None], np.ones((6, 1))
    path = np.concatenate([moving, still, 1 + moving[1:], 2 * np.ones((2, 1))])
    states = np.concatenate([path, np.zeros_like(path)], axis=1)
    keyframes, known = next_keyframes(recorded(PUSHER, [states], [states]), RAW)
    assert known.all()
    # It comes to rest at 1.0 for 0.6 s; 0.2 s at the end are no pause, but the end is an event.
    assert keyframes[:11, 0] == pytest.approx(1.0)
    assert keyframes[11:, 0] == pytest.approx(2.0)


def test_a_robot_that_never_moves_has_no_pause_but_an_end() -> None:
    states = np.zeros((5, 2))
    keyframes, known = next_keyframes(recorded(PUSHER, [states, states[:1]], [states, states[:1]]), RAW)
    assert known.all()
    assert not keyframes.any()


def test_windows_hold_the_keyframes_of_their_frames(tiny_config) -> None:
    weighted = tiny_config.training.phase1.model_copy(
        update={"loss": tiny_config.training.phase1.loss.model_copy(update={"keyframe_weight": 1.0})}
    )
    cache = open_frame_cache(tiny_config, progress=False)
    transform = Transform(tiny_config.model, cache.statistics(range(len(cache.episodes))), cache.robot)
    table = torch.zeros(len(cache.instructions), tiny_config.model.language_dim)
    offsets, known = next_keyframes(cache, transform)
    assert 0 < known.sum() < len(known)
    indices = torch.arange(6)
    for labelled in (True, False):
        dataset = TransitionDataset(cache, [0, 3], weighted, transform, table, labelled)
        batch = dataset.gather(indices)
        frames = dataset.frame_indices_of(indices)
        assert batch.keyframe is not None
        assert batch.keyframe_is_known is not None
        torch.testing.assert_close(batch.keyframe[:, 0], torch.from_numpy(offsets)[frames])
        assert batch.keyframe_is_known[:, 0].tolist() == [bool(known[f]) and labelled for f in frames.tolist()]
    plain = TransitionDataset(cache, [0, 3], tiny_config.training.phase1, transform, table)
    assert plain.gather(indices).keyframe is None
