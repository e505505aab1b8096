"""What joins a backdrop and what ends it; how it comes behind what moves."""

from __future__ import annotations

import numpy as np

from statevla.worlds.drawing.backdrop import Backdrop, drawn_before

FACES = np.array([100, 100, 100])


def poses(*moved: float) -> np.ndarray:
    return np.array(moved, np.float32)[:, None] * np.ones(12, np.float32)


def test_what_stands_still_joins_and_what_moves_ends_it() -> None:
    backdrop = Backdrop()
    backdrop.look(poses(0, 0, 0), "here", FACES)
    assert backdrop.is_fixed is None
    backdrop.look(poses(0, 0, 1), "here", FACES)
    assert backdrop.is_fixed is not None
    assert backdrop.is_fixed.tolist() == [True, True, False]
    backdrop.picture = np.zeros((2, 2, 3), np.uint8)
    backdrop.look(poses(0, 0, 2), "here", FACES)
    assert backdrop.picture is not None  # nothing has changed
    backdrop.look(poses(0, 5, 2), "here", FACES)  # one of its parts moves: the rest is drawn anew
    assert backdrop.is_fixed.tolist() == [True, False, True]
    assert backdrop.picture is None


def test_what_comes_to_rest_joins_later() -> None:
    backdrop, joined = Backdrop(), []
    for number in range(14):
        backdrop.look(poses(0, 0, min(number, 2)), "here", FACES)
        joined.append(backdrop.is_fixed is not None and bool(backdrop.is_fixed[2]))
    assert joined == [False] * 11 + [True] * 3


def test_other_surroundings_end_it() -> None:
    backdrop = Backdrop()
    for camera in ("here", "here", "there"):
        backdrop.look(poses(0, 0, 0), camera, FACES)
    assert backdrop.is_fixed is None


def test_few_faces_are_not_worth_it() -> None:
    backdrop = Backdrop()
    for number in range(3):
        backdrop.look(poses(0, number, number), "here", np.array([10, 500, 500]))
    assert backdrop.is_fixed is None


def test_the_nearer_one_shows_and_a_tie_is_told() -> None:
    picture, moving = np.full((2, 2, 3), 10, np.uint8), np.full((2, 2, 3), 20, np.uint8)
    depth = np.array([[0.5, 0.5], [0.0, 0.2]], np.float32)
    before = np.array([[0.6, 0.4], [0.0, 0.0]], np.float32)
    assert drawn_before(picture, depth, moving, before)
    assert moving[..., 0].tolist() == [[20, 10], [10, 10]]
    assert not drawn_before(picture, depth, moving, depth)
