"""Closed-loop motions of the hand: from a wanted pose to OSC_POSE actions, one control step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mujoco
import numpy as np

from statevla.robots import LIBERO
from statevla.robots.libero import Gripper
from statevla.worlds.libero.scene import Scene

DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""Rotation of the grip site when the hand points down and the jaws open along the world's y axis."""
POSITION_GAIN = 18.0
"""Action per metre of error; an action of 1 asks for 5 cm, the controller's lag makes 18 critically damped."""
ROTATION_GAIN = 3.0
MAX_ROTATION_ACTION = 0.5
_LARGE_TURN = 0.8  # rad
_TURNING_REACH_M = 0.52
"""Distance from the base at which the elbow is well bent, whichever way the hand is turned."""
_STILL_M = 6e-4  # fingers that move less than this per control step have met something
_MIN_CLOSING_STEPS = 3
_MAX_CLOSING_STEPS = 20


@dataclass(frozen=True)
class Command:
    """One control step of the expert.

    Attributes:
        action: `[7]`, the clean action.
        free: whether the hand is away from contact, so that execution noise does no harm.
    """

    action: np.ndarray
    free: bool


Motion = Iterator[Command]
"""A skill or a part of one: a generator that yields a command for each control step and looks at the scene between."""


@dataclass(frozen=True)
class Style:
    """How one episode is executed: drawn per episode, so that demonstrations vary.

    Attributes:
        speed: greatest translational action in free motion.
        careful: fraction of `speed` near objects.
        hover_m: extra height when approaching.
        lift_m: extra height when carrying.
    """

    speed: float = 0.9
    careful: float = 0.75
    hover_m: float = 0.04
    lift_m: float = 0.015

    @staticmethod
    def draw(rng: np.random.Generator) -> Style:
        """A random style."""
        return Style(rng.uniform(0.75, 1.0), rng.uniform(0.6, 0.9), rng.uniform(0.03, 0.05), rng.uniform(0.0, 0.03))


def rotation_about_z(angle: float) -> np.ndarray:
    """Rotation matrix `[3, 3]`."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def about_axis(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rotation matrix `[3, 3]` about a unit axis (Rodrigues)."""
    cross = np.array([[0.0, -axis[2], axis[1]], [axis[2], 0.0, -axis[0]], [-axis[1], axis[0], 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross


def facing_down(yaw: float) -> np.ndarray:
    """Rotation of the grip site: hand down, jaw axis at `yaw` from the world's y axis."""
    return rotation_about_z(yaw) @ DOWN


def leaning(rotation: np.ndarray, angle: float) -> np.ndarray:
    """The grip site's rotation with the hand leant about its jaw axis (rad)."""
    return about_axis(rotation[:, 0], angle) @ rotation if angle else rotation


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle `[3]` of a rotation matrix, angle in [0, π]."""
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation).ravel())
    if quaternion[0] < 0:
        quaternion = -quaternion
    sine = np.linalg.norm(quaternion[1:])
    if sine < 1e-9:
        return np.zeros(3)
    return quaternion[1:] / sine * 2.0 * np.arctan2(sine, quaternion[0])


def wrap_half_turn(angle: float) -> float:
    """The equivalent jaw angle in [-π/2, π/2): the jaws are symmetric."""
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)


class Arm:
    """Turns wanted hand poses into commands.

    Args:
        scene: the scene to act in.
        style: this episode's execution style.
        rng: draws small variations within skills.
    """

    def __init__(self, scene: Scene, style: Style, rng: np.random.Generator) -> None:
        self.scene = scene
        self.style = style
        self.rng = rng

    def toward(
        self,
        position: np.ndarray,
        rotation: np.ndarray,
        gripper: Gripper,
        speed: float | None = None,
        free: bool = False,
    ) -> Command:
        """The command of one step toward a pose; the speed limits the length of the translational action."""
        here, facing = self.scene.hand()
        translation = np.clip(POSITION_GAIN * (position - here), -1.0, 1.0)
        limit = self.style.speed if speed is None else speed
        length = float(np.linalg.norm(translation))
        if length > limit:
            translation *= limit / length
        turn = np.clip(ROTATION_GAIN * rotation_vector(rotation @ facing.T), -MAX_ROTATION_ACTION, MAX_ROTATION_ACTION)
        action = np.zeros(LIBERO.action_dim)
        action[:3], action[3:6], action[6] = translation, turn, float(gripper)
        return Command(action, free)

    def distance(self, position: np.ndarray) -> float:
        """From the grip site to a position (m)."""
        return float(np.linalg.norm(position - self.scene.hand()[0]))

    def turn_left(self, rotation: np.ndarray) -> float:
        """Angle between the hand's rotation and another (rad)."""
        return float(np.linalg.norm(rotation_vector(rotation @ self.scene.hand()[1].T)))

    def go(
        self,
        position: np.ndarray,
        rotation: np.ndarray,
        gripper: Gripper,
        speed: float | None = None,
        free: bool = True,
        tolerance: float = 0.02,
        turn_tolerance: float = 0.25,
        max_steps: int = 90,
    ) -> Motion:
        """Move until the pose is reached, or `max_steps` have gone by."""
        for _ in range(max_steps):
            if self.distance(position) < tolerance and self.turn_left(rotation) < turn_tolerance:
                return
            yield self.toward(position, rotation, gripper, speed, free)

    def turn_near_base(self, position: np.ndarray, rotation: np.ndarray, gripper: Gripper) -> Motion:
        """Turn the hand on the way to `position`, where the arm is bent.

        A large turn carries the hand along for some centimetres; further out that straightens the elbow, and a
        straight elbow the controller does not bend again.
        """
        if self.turn_left(rotation) < _LARGE_TURN:
            return
        base = self.scene.base()
        outward = position[:2] - base
        outward *= min(1.0, _TURNING_REACH_M / float(np.linalg.norm(outward)))
        wanted = np.r_[base + outward, max(position[2], min(self.scene.hand()[0][2], position[2] + 0.15))]
        yield from self.go(wanted, rotation, gripper, tolerance=0.05, turn_tolerance=0.4, max_steps=60)

    def close(self, hold: Callable[[], tuple[np.ndarray, np.ndarray]], speed: float = 0.3) -> Motion:
        """Close the fingers at the pose that `hold()` gives, until they stop moving.

        The gripper's command ramps up over eight steps, so that a fixed short wait would let go again.
        """
        before, still = None, 0
        for step in range(_MAX_CLOSING_STEPS):
            yield self.toward(*hold(), Gripper.CLOSE, speed)
            opening = self.scene.jaw_opening()
            resting = before is not None and abs(opening - before) < _STILL_M and step >= _MIN_CLOSING_STEPS
            still = still + 1 if resting else 0
            before = opening
            if still >= 2:
                return

    def open(self, position: np.ndarray, rotation: np.ndarray, num_steps: int = 10) -> Motion:
        """Open the fingers in place."""
        for _ in range(num_steps):
            yield self.toward(position, rotation, Gripper.OPEN, 0.1)
