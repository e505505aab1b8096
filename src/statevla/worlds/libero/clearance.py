"""What the open hand and the arm behind it would meet at a grasp.

Facts of the Panda's hand, measured on its collision shapes: it is 20 cm wide along the jaw axis and its underside is
3 cm above the grip site; the finger tips reach 9.5 mm below the site; the jaws open 7.7 cm.
"""

from __future__ import annotations

import numpy as np

from statevla.worlds.libero.motion import rotation_about_z
from statevla.worlds.libero.scene import Scene

MAX_OPENING_M = 0.077
FINGER_TIP_M = 0.0095
"""How far the finger tips reach below the grip site."""
HAND_UNDERSIDE_M = 0.030
HAND_HALF_M = (0.104, 0.034)  # along and across the jaw axis
FOREARM_ABOVE_M = 0.145
"""How far above the grip site the end of the forearm is."""
IN_THE_WAY = 0.3
"""A penalty from which on something is in the way."""
_FOREARM_BEHIND_M, _FOREARM_LEFT_M = (0.035, 0.145), 0.135
_HAND_WIDEST_M = 0.07
"""Height above the grip site of the middle of the hand, whose shift counts where it leans: it moves straight up."""
_FINGER_HALF_WIDTH_M = 0.0105
_FINGER_INNER_M = 0.0375
_MARGIN_M = 0.006


def forearm_hits(scene: Scene, spot: np.ndarray, height: float, shift: np.ndarray, obstacles: np.ndarray) -> float:
    """Penalty for what the lower end of the forearm would meet, which hangs beside the hand, to the robot's left.

    A hand that leans takes it along, by `shift` `[2]`.
    """
    outward = (spot - scene.base()) / np.linalg.norm(spot - scene.base())
    offset = obstacles[:, :2] - spot - shift
    ahead, left = offset @ outward, offset @ np.array([-outward[1], outward[0]])
    hits = (ahead > -_FOREARM_BEHIND_M[1]) & (ahead < -_FOREARM_BEHIND_M[0]) & (left > 0.0) & (left < _FOREARM_LEFT_M)
    hits &= obstacles[:, 2] > height + FOREARM_ABOVE_M
    return IN_THE_WAY + 5.0 * float(_FOREARM_LEFT_M - left[hits].min()) if hits.any() else 0.0


def axes_of(yaw: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors `[2]` along and across the jaw axis."""
    rotation = rotation_about_z(yaw)
    return rotation[:2, 1], rotation[:2, 0]


def near(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Points that a hand over `centre` could meet."""
    return points[np.linalg.norm(points[:, :2] - centre, axis=1) < 0.25]


def hand_hits(
    centre: np.ndarray, height: float, along: np.ndarray, across: np.ndarray, obstacles: np.ndarray, lean: float = 0.0
) -> float:
    """Penalty for neighbours in the spaces that the hand and the open fingers fill.

    What only touches the outside of a finger costs less than what would come between the fingers.
    """
    if not len(obstacles):
        return 0.0
    offset = obstacles[:, :2] - centre
    u, v, z = np.abs(offset @ along), np.abs(offset @ across), obstacles[:, 2]
    aside = beside_hand(offset @ across, lean)
    reaches_to = np.inf if lean else height + 0.05  # the fingers go up and down beside what overhangs
    underside = height + HAND_UNDERSIDE_M - _MARGIN_M
    tips = height - FINGER_TIP_M - _MARGIN_M
    hand = (z > underside) & (z < height + 0.25) & (u < HAND_HALF_M[0] + _MARGIN_M)
    hand &= aside < HAND_HALF_M[1] + _MARGIN_M
    outside = _finger_outside(z - height) + _MARGIN_M
    fingers = (z > tips) & (z < reaches_to) & (u < outside) & (v < _FINGER_HALF_WIDTH_M + _MARGIN_M)
    penalty = 0.0
    if hand.any():
        overlap = z[hand].max() - underside
        penalty += 25 * min(overlap, _MARGIN_M)  # near is not yet in the way
        penalty += 0.3 + 10 * (overlap - _MARGIN_M) if overlap > _MARGIN_M else 0.0
    if fingers.any():
        penalty += 0.3 + 5 * (z[fingers].max() - tips) + 10 * (outside[fingers] - u[fingers]).max()
    return penalty


def beside_hand(across: np.ndarray, lean: float) -> np.ndarray:
    """Distance from the middle plane of the hand, of points at `across` from the grip site across the jaw axis."""
    shifts = np.sort(np.tan(lean) * np.array([HAND_UNDERSIDE_M, _HAND_WIDEST_M]))
    return np.abs(across - np.clip(across, *shifts))


def _finger_outside(above: np.ndarray) -> np.ndarray:
    """Distance from the jaws' middle to the outside of an open finger, at heights above the grip site: a wedge."""
    return 0.053 + 0.011 * np.clip((above + 0.0056) / 0.0318, 0.0, 1.0)


def own_hits(centre: np.ndarray, height: float, along: np.ndarray, across: np.ndarray, points: np.ndarray) -> float:
    """Penalty for the object's own points under the hand or under the fingers' outer halves."""
    offset = points[:, :2] - centre
    u, v, z = np.abs(offset @ along), np.abs(offset @ across), points[:, 2]
    hand = (z > height + HAND_UNDERSIDE_M + 0.001) & (u < HAND_HALF_M[0]) & (v < HAND_HALF_M[1])
    fingers = (z > height - FINGER_TIP_M) & (u > _FINGER_INNER_M) & (u < 0.066) & (v < _FINGER_HALF_WIDTH_M)
    return 0.3 * float(hand.any()) + 0.4 * float(fingers.any())
