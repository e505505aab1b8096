"""Declared robots: what an action, a state and a camera are. One short file per known robot; copy one for yours."""

from statevla.robots.aloha import ALOHA
from statevla.robots.declaration import ActionGroup, Camera, ImageFit, ImageOrientation, StateField
from statevla.robots.droid import DROID
from statevla.robots.libero import LIBERO, LIBERO_EITHER, LIBERO_HAND, LIBERO_HUB, LIBERO_OPENPI
from statevla.robots.registry import KNOWN_ROBOTS, ROBOT_TYPES, load_robot, save_robot
from statevla.robots.spec import RobotSpec

__all__ = [
    "ALOHA",
    "DROID",
    "KNOWN_ROBOTS",
    "LIBERO",
    "LIBERO_EITHER",
    "LIBERO_HAND",
    "LIBERO_HUB",
    "LIBERO_OPENPI",
    "ROBOT_TYPES",
    "ActionGroup",
    "Camera",
    "ImageFit",
    "ImageOrientation",
    "RobotSpec",
    "StateField",
    "load_robot",
    "save_robot",
]
