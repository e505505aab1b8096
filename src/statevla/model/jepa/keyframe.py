"""z → where the robot will be at the next event, such as when the gripper next opens or closes."""

from __future__ import annotations

from torch import Tensor, nn


class KeyframeHead(nn.Linear):
    """A linear reading of the next keyframe: z has to hold it ready for use.

    Predicting the next frame asks for what moves; this asks for what the motion is about, from the first frame on.

    Args:
        state_dim: width of z.
        keyframe_dim: numbers in a keyframe.
    """

    def __init__(self, state_dim: int, keyframe_dim: int) -> None:
        super().__init__(state_dim, keyframe_dim)


def keyframe_loss(predicted: Tensor, offset: Tensor, is_known: Tensor) -> Tensor:
    """Mean squared error, a scalar. Unknown keyframes count as zero: so micro-batches weigh alike.

    Args:
        predicted, offset: `[..., K]`, as `statevla.data.keyframes` has them.
        is_known: bool `[...]`.
    """
    return ((predicted.float() - offset).square().mean(-1) * is_known).mean()
