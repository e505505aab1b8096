"""Where the hand goes next: its place when the gripper next opens or closes, from what any demonstration records.

Keyframes found in the actions are the targets of C2F-ARM (James & Davison 2022, arXiv 2105.14829, section 4) and PerAct
(Shridhar et al. 2022, arXiv 2209.05451), which act on them; here they are something to predict.
"""

from __future__ import annotations

import numpy as np

from statevla.data.cache import FrameCache
from statevla.errors import UserError
from statevla.types import RobotStateLayout

UNIT_M = 0.1
"""Length of offset 1.0: of the order of a reach, so that the loss is of the order of the others."""


def next_keyframe_offsets(cache: FrameCache) -> tuple[np.ndarray, np.ndarray]:
    """From the hand at every frame to the hand at the episode's next change of the gripper command.

    Returns:
        float32 `[num_frames, 3]` (`UNIT_M`; 0 where not known), and bool `[num_frames]`: whether a change follows.

    Raises:
        UserError: the data set does not say where the hand is.
    """
    states = cache.robot_states.get(RobotStateLayout.EE_GRIPPER)
    if states is None:
        raise UserError(
            f"training.phase1.loss.keyframe_weight: {cache.folder} has no robot states "
            f"'{RobotStateLayout.EE_GRIPPER.value}', which say where the hand is; set it to 0"
        )
    hand = states[:, :3]
    offsets, known = np.zeros_like(hand), np.zeros(len(hand), bool)
    for episode in cache.episodes:
        closes = cache.actions[episode.start : episode.stop, -1] > 0
        changes = episode.start + 1 + np.flatnonzero(closes[1:] != closes[:-1])
        frames = np.arange(episode.start, episode.stop)
        following = np.searchsorted(changes, frames)  # the change that a frame itself is at counts
        has_next = following < len(changes)
        frames, following = frames[has_next], following[has_next]
        offsets[frames] = (hand[changes[following]] - hand[frames]) / UNIT_M
        known[frames] = True
    return offsets, known
