"""The SO-101 on a table with a cube: the package's MuJoCo model, with this world's control rate, camera and lamps.

Robot, cube, actuators and collision shapes are those of `lerobot-env-so101` 0.4.0 (Apache-2.0), with its `jaw_pads`
option (box pads on the finger tips; the jaw meshes collide as convex hulls, between which a cube pivots out).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from statevla.errors import UserError
from statevla.worlds.backend import prepare

BACKEND = prepare("so101")

import mujoco as mujoco  # noqa: E402  (the backend has to be chosen first; the other modules take it from here)

try:
    from lerobot_env_so101.pick_env import SO101PickCubeGymEnv
except ImportError as error:  # a broken installation; a missing one was told by `prepare`
    raise UserError(
        f"lerobot_env_so101 cannot be imported ({error}); run: pip install --force-reinstall 'statevla[so101]'"
    ) from None

CONTROL_FREQ_HZ = 30
SUBSTEPS = 17
"""Physics steps per control step: 1.96 ms each (the package's is 2 ms, which does not divide 1/30 s)."""
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
"""Actuators, joints and the numbers of an action, all in this order."""
PAN_AXIS_X = 0.0388
"""Where the shoulder's vertical axis meets the table (m); y is 0."""
CUBE_HALF_M = 0.02
CAMERA = "front"
_CAMERA_POSITION = (0.62, -0.32, 0.58)
_CAMERA_TARGET = (0.25, 0.0, 0.045)
_CAMERA_FOVY_DEG = 34.0
_FLOOR_BRIGHTNESS = 1.7


def load_model() -> mujoco.MjModel:
    """The model, ready to step at 30 Hz and to be seen at 128 pixels.

    The package's camera looks along the arm and sees cubes no farther than 0.31 m from the base. This one keeps its
    name, stands a third nearer and 27° to its right, looks down on the whole workspace, and sees the cube beside the
    hand. Lamps cast no shadows, each of which would cost as much as the rest of the frame; the floor, which MuJoCo then
    lights less, is brightened to nearly what it was.
    """
    package: Any = SO101PickCubeGymEnv(jaw_pads=True, physics_dt=1.0 / (CONTROL_FREQ_HZ * SUBSTEPS))
    model: mujoco.MjModel = package.model
    camera = model.camera(CAMERA).id
    position = np.array(_CAMERA_POSITION)
    model.cam_pos[camera] = position
    model.cam_quat[camera] = _looking_at(position, np.array(_CAMERA_TARGET))
    model.cam_fovy[camera] = _CAMERA_FOVY_DEG
    model.light_castshadow[:] = 0
    texture = model.texture("grid")
    texture.data[:] = np.minimum(texture.data * _FLOOR_BRIGHTNESS, 255)
    return model


def _looking_at(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Quaternion (wxyz) of an upright camera; MuJoCo's cameras look along their negative z axis."""
    backward = (position - target) / np.linalg.norm(position - target)
    right = np.cross([0.0, 0.0, 1.0], backward)
    right /= np.linalg.norm(right)
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, np.stack([right, np.cross(backward, right), backward], axis=1).ravel())
    return quaternion
