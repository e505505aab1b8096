"""Where the hand will be when the gripper next opens or closes, and who may ask."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from statevla.data import TransitionDataset, open_frame_cache
from statevla.data.keyframes import UNIT_M, next_keyframe_offsets
from statevla.errors import UserError
from statevla.transforms import Transform
from statevla.types import RobotStateLayout


def recorded(commands: list[list[int]], layout: RobotStateLayout = RobotStateLayout.EE_GRIPPER):
    """A cache's arrays: episodes of gripper commands, the hand at x = frame number (m)."""
    count = sum(map(len, commands))
    starts = np.cumsum([0, *map(len, commands)])
    episodes = [SimpleNamespace(start=a, stop=b) for a, b in pairwise(starts)]
    states = np.zeros((count, layout.dim), np.float32)
    states[:, 0] = np.arange(count)
    actions = np.zeros((count, 7), np.float32)
    actions[:, -1] = np.concatenate(commands)
    return SimpleNamespace(episodes=episodes, actions=actions, robot_states={layout: states}, folder="cache")


def test_offsets_lead_to_the_next_change_in_the_same_episode() -> None:
    offsets, known = next_keyframe_offsets(recorded([[-1, -1, 1, 1, -1, -1], [1, 1], [1, -1]]))
    np.testing.assert_allclose(offsets[:, 0] * UNIT_M, [2, 1, 0, 1, 0, 0, 0, 0, 1, 0], atol=1e-6)
    assert known.tolist() == [True] * 5 + [False] * 3 + [True] * 2
    assert not offsets[:, 1:].any()


def test_a_data_set_without_the_hands_place_is_refused() -> None:
    with pytest.raises(UserError, match=r"keyframe_weight: cache has no robot states 'ee_gripper'.*set it to 0"):
        next_keyframe_offsets(recorded([[-1, 1]], RobotStateLayout.JOINT_GRIPPER))


def test_windows_hold_the_keyframes_of_their_frames(tiny_config) -> None:
    weighted = tiny_config.training.phase1.model_copy(
        update={"loss": tiny_config.training.phase1.loss.model_copy(update={"keyframe_weight": 1.0})}
    )
    cache = open_frame_cache(tiny_config, progress=False)
    transform = Transform(tiny_config.model, cache.statistics(range(len(cache.episodes))))
    table = torch.zeros(len(cache.instructions), tiny_config.model.language_dim)
    offsets, known = next_keyframe_offsets(cache)
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
