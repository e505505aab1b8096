"""A door on a vertical hinge, with a handle: the microwave's."""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np

from statevla.robots.libero import Gripper
from statevla.worlds.libero.motion import DOWN, Arm, Motion, rotation_about_z
from statevla.worlds.libero.skills.articulated import nearest_to_down

_UP = np.array([0.0, 0.0, 1.0])
_LEAD = 0.25
"""How far ahead of the door the hand aims while pushing (rad)."""
_PULLED = 0.75
"""How far the handle is pulled before the arm is stretched (rad)."""
_STILL_M = 1e-3
_GRIP_BELOW_TOP_M = 0.02


class Door:
    """A hinged door that is closed by pushing and opened by its handle.

    Args:
        arm: the arm.
        fixture: the fixture whose only joint is the hinge.
        done: whether the goal holds.
    """

    def __init__(self, arm: Arm, fixture: str, done: Callable[[], bool]) -> None:
        self.arm, self.scene, self.done = arm, arm.scene, done
        model, data = self.scene.model, self.scene.data
        self.joint = self.scene.joint(fixture)
        self.hinge = data.xanchor[self.joint][:2].copy()
        low, high = model.jnt_range[self.joint]
        self.closing = 1.0 if abs(high) < abs(low) else -1.0  # the sense of rotation that closes it
        geoms = self.scene.body_geoms(int(model.jnt_bodyid[self.joint]))
        boxes = [geom for geom in geoms if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_BOX]
        self.panel = max(boxes, key=lambda geom: float(np.prod(model.geom_size[geom])))
        self.bars = [geom for geom in geoms if geom != self.panel]
        self.top = float(self.scene.geom_points([self.panel])[:, 2].max())

    def _along(self) -> np.ndarray:
        """Unit vector `[2]` from the hinge along the panel, now."""
        along = self.scene.data.geom_xpos[self.panel][:2] - self.hinge
        return along / np.linalg.norm(along)

    def close(self) -> Motion:
        """Reach over the panel from outside with closed fingers and sweep it shut."""
        yield from self._sweep(self.closing)

    def _sweep(self, sense: float) -> Motion:
        """Put the closed fingers beside the panel near its free edge and push it round the hinge in a sense."""
        arm = self.arm
        reach = 1.6 * float(np.linalg.norm(self.scene.data.geom_xpos[self.panel][:2] - self.hinge))
        height = self.top - _GRIP_BELOW_TOP_M

        def beside(angle: float, gap: float) -> np.ndarray:
            """The hand's place beside the panel when the panel is turned by `angle` from now."""
            along = rotation_about_z(angle)[:2, :2] @ self._along()
            behind = -sense * np.array([-along[1], along[0]])
            return np.r_[self.hinge + along * reach + behind * gap, height]

        yield from arm.go(beside(0.0, 0.09) + _UP * 0.12, DOWN, Gripper.CLOSE, tolerance=0.03)
        yield from arm.go(beside(0.0, 0.07), DOWN, Gripper.CLOSE, tolerance=0.02)
        for step in range(120):
            if self.done() and step > 2:
                break
            yield arm.toward(beside(sense * _LEAD, 0.015), DOWN, Gripper.CLOSE, 0.5)
        here = arm.scene.hand()[0]
        yield from arm.go(here + _UP * 0.12, DOWN, Gripper.CLOSE, max_steps=12)

    def open(self) -> Motion:
        """Grip the upright handle from the front, pull it round the hinge, then push the panel on from inside."""
        arm = self.arm
        along = self._along()
        outward3 = np.r_[-self.closing * np.array([-along[1], along[0]]), 0.0]
        across = np.r_[along, 0.0]
        rotation = nearest_to_down(
            [np.stack([s * across, np.cross(-outward3, s * across), -outward3], 1) for s in (1, -1)]
        )
        start_angle = self.scene.joint_position(self.joint)

        def turned() -> np.ndarray:
            """The panel's rotation since the start, as a matrix."""
            return rotation_about_z(self.scene.joint_position(self.joint) - start_angle)

        def grip() -> np.ndarray:
            points = self.scene.geom_points(self.bars)
            outermost = points @ (turned() @ outward3)
            return points[outermost > outermost.max() - 0.012].mean(0)

        yield from arm.go(grip() + outward3 * 0.13 + _UP * 0.03, rotation, Gripper.OPEN, tolerance=0.03)
        for _ in range(60):
            offset = grip() - arm.scene.hand()[0]
            aside = float(np.linalg.norm(offset - outward3 * (offset @ outward3)))
            if arm.distance(grip()) < 0.008:
                break
            yield arm.toward(grip() + outward3 * np.clip((aside - 0.006) * 5, 0.0, 0.1), rotation, Gripper.OPEN, 0.6)
        yield from arm.close(lambda: (grip(), rotation), 0.2)
        before, still = np.zeros(3), 0
        for _ in range(60):
            if self.done() or abs(self.scene.joint_position(self.joint) - start_angle) > _PULLED:
                break
            here = arm.scene.hand()[0]
            still = still + 1 if np.linalg.norm(here - before) < _STILL_M else 0
            before = here
            if still > 5:  # the arm is stretched
                break
            ahead = rotation_about_z(-self.closing * _LEAD)
            hinge = np.r_[self.hinge, 0.0]
            target = hinge + ahead @ (grip() - hinge)
            # The hand follows the handle's turn by half: the round bar slides in the jaws.
            half = rotation_about_z(0.5 * (self.scene.joint_position(self.joint) - start_angle))
            yield arm.toward(target, half @ rotation, Gripper.CLOSE, 0.6)
        facing = arm.scene.hand()[1]
        yield from arm.open(arm.scene.hand()[0], facing)
        away = arm.scene.hand()[0] - facing[:, 2] * 0.12
        yield from arm.go(away, facing, Gripper.OPEN, max_steps=12)
        if not self.done():
            # Up and back to the middle of the workspace, where the arm can turn its hand down: turned on the way, the
            # stretched arm would straighten its elbow, which the controller does not bend again.
            middle = np.r_[self.scene.base() + np.array([0.45, 0.0]), self.top + 0.15]
            yield from arm.go(away + _UP * 0.12, facing, Gripper.CLOSE, max_steps=10)
            yield from arm.go(middle, arm.scene.hand()[1], Gripper.CLOSE, tolerance=0.15, max_steps=30)
            yield from arm.go(middle, DOWN, Gripper.CLOSE, tolerance=0.05, max_steps=60)
            yield from self._sweep(-self.closing)
