"""Geometry of the scripted expert, without a simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("libero")

from statevla.worlds.libero.motion import DOWN, facing_down, rotation_about_z, rotation_vector, wrap_half_turn
from statevla.worlds.libero.scene import highest_along

angles = st.floats(-20, 20)


@given(angles)
def test_wrapped_yaw_is_the_same_jaw_axis(angle: float) -> None:
    wrapped = wrap_half_turn(angle)
    assert -np.pi / 2 <= wrapped <= np.pi / 2
    first, second = rotation_about_z(angle)[:2, 1], rotation_about_z(wrapped)[:2, 1]
    assert abs(first @ second) == pytest.approx(1.0)


@given(st.floats(-3.1, 3.1))
def test_rotation_vector_inverts_a_turn(angle: float) -> None:
    np.testing.assert_allclose(rotation_vector(rotation_about_z(angle)), [0, 0, angle], atol=1e-7)


def test_hand_points_down_with_the_jaws_along_y() -> None:
    np.testing.assert_allclose(facing_down(0.0) @ [0, 0, 1], [0, 0, -1])
    np.testing.assert_allclose(facing_down(0.0) @ [1, 0, 0], [0, 1, 0])
    np.testing.assert_allclose(np.linalg.det(DOWN), 1.0)


def test_highest_along_sees_the_corridor_only() -> None:
    points = np.array([[0.5, 0.0, 0.3], [0.5, 0.2, 0.9], [1.0, 0.0, 0.7], [2.0, 0.0, 0.8]])
    start, end = np.zeros(2), np.array([1.0, 0.0])
    assert highest_along(points, start, end, radius=0.1) == 0.7
    assert highest_along(points, start, end, radius=0.1, skip_end=0.05) == 0.3
    assert highest_along(points, start, end, radius=0.3, skip_end=0.05) == 0.9
    assert highest_along(points[:0], start, end, radius=0.1) == -1.0
    assert highest_along(points, start, start, radius=0.1) == -1.0  # a segment of no length
