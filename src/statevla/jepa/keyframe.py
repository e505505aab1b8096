"""z → where the hand will be when the gripper next opens or closes."""

from __future__ import annotations

from torch import Tensor, nn


class KeyframeHead(nn.Linear):
    """A linear reading of the next keyframe, from the hand: z has to hold it ready for use.

    Predicting the next frame asks for what moves; this asks for what the motion is about, from the first frame on.

    Args:
        state_dim: width of z.
    """

    def __init__(self, state_dim: int) -> None:
        super().__init__(state_dim, 3)


def keyframe_loss(predicted: Tensor, offset: Tensor, is_known: Tensor) -> Tensor:
    """Mean squared error, a scalar. Unknown keyframes count as zero: so micro-batches weigh alike.

    Args:
        predicted, offset: `[..., 3]`, in `statevla.data.keyframes.UNIT_M`.
        is_known: bool `[...]`.
    """
    return ((predicted.float() - offset).square().mean(-1) * is_known).mean()
