"""z → where the robot will be at the next event, such as when the gripper next opens or closes."""

from __future__ import annotations

from torch import nn


class KeyframeHead(nn.Linear):
    """A linear reading of the next keyframe: z has to hold it ready for use.

    Predicting the next frame asks for what moves; this asks for what the motion is about, from the first frame on.

    Args:
        state_dim: width of z.
        keyframe_dim: numbers in a keyframe.
    """

    def __init__(self, state_dim: int, keyframe_dim: int) -> None:
        super().__init__(state_dim, keyframe_dim)
