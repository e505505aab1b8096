"""Which faces a view needs: against a plain rasterizer that moves corners to OpenGL's grid; no simulator is needed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from statevla.worlds.drawing.visible_faces import MeshFaces, View

SIDE, GRID = 48, 256.0
FRONT = View(np.array([0.0, 0.0, 2.0]), np.eye(3), 60.0, SIDE, 0.05)


def model_of(*meshes: tuple[np.ndarray, np.ndarray]) -> SimpleNamespace:
    """What `MeshFaces` reads of a MuJoCo model: vertices `[V, 3]` and faces `[F, 3]` of each mesh."""
    counts = [len(faces) for _, faces in meshes]
    faces = np.concatenate([faces for _, faces in meshes]).astype(np.int32)
    return SimpleNamespace(
        nmesh=len(meshes),
        mesh_faceadr=np.cumsum([0, *counts])[:-1],
        mesh_facenum=np.array(counts),
        mesh_face=faces,
        mesh_facenormal=faces + 1,
        mesh_facetexcoord=faces + 2,
        mesh_vert=np.concatenate([vertices for vertices, _ in meshes]).astype(np.float32),
        mesh_vertadr=np.cumsum([0, *(len(vertices) for vertices, _ in meshes)])[:-1],
    )


def ball(rows: int, columns: int, radius: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """A bumpy ball."""
    up, round_ = np.meshgrid(np.linspace(0, np.pi, rows), np.linspace(0, 2 * np.pi, columns), indexing="ij")
    bumps = radius * (1 + 0.05 * np.sin(9 * up) * np.cos(7 * round_))
    points = bumps[..., None] * np.stack([np.sin(up) * np.cos(round_), np.sin(up) * np.sin(round_), np.cos(up)], -1)
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    return points.reshape(-1, 3), np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)


def shown(model: SimpleNamespace, view: View, positions: np.ndarray) -> set[int]:
    """Numbers of the faces that win a sample, drawn one by one on the grid; no corner may be behind the camera."""
    best, depth = np.full((SIDE, SIDE), -1), np.full((SIDE, SIDE), np.inf)
    hand = np.sign(np.linalg.det(view.axes))
    centres = np.arange(SIDE) + 0.5
    x, y = np.meshgrid(centres, centres)
    for mesh, position in enumerate(positions):
        rows = range(model.mesh_faceadr[mesh], model.mesh_faceadr[mesh] + model.mesh_facenum[mesh])
        for face in rows:
            corners = model.mesh_vert[model.mesh_vertadr[mesh] + model.mesh_face[face]] + position
            seen = (corners - view.position) @ view.axes
            at = view.focal_px * seen[:, :2] / -seen[:, 2:] + view.side / 2
            at = np.round(at * GRID) / GRID
            edges = [(at[i], at[(i + 1) % 3]) for i in range(3)]
            sides = [hand * ((q - p)[0] * (y - p[1]) - (q - p)[1] * (x - p[0])) for p, q in edges]
            inside = np.all([side > 0 for side in sides], axis=0)
            nearer = inside & (-seen[:, 2].mean() < depth)
            best[nearer], depth[nearer] = face, -seen[:, 2].mean()
    return set(best[best >= 0].tolist())


def find(model: SimpleNamespace, view: View, positions: np.ndarray, hides: bool = True) -> tuple[MeshFaces, np.ndarray]:
    faces, meshes = MeshFaces(model), np.arange(model.nmesh)
    rotations = np.tile(np.eye(3), (model.nmesh, 1, 1))
    found, _ = faces.find(view, meshes, positions, rotations, np.full(model.nmesh, hides))
    return faces, found


def needed(model: SimpleNamespace, faces: MeshFaces) -> set[int]:
    """Read back from what is put into a model."""
    into = SimpleNamespace(**{key: np.copy(value) for key, value in vars(model).items()})
    faces.put_into(into, np.arange(model.nmesh))
    numbers = set()
    for mesh in range(model.nmesh):
        start, kept = model.mesh_faceadr[mesh], into.mesh_facenum[mesh]
        rows = into.mesh_face[start : start + kept]
        np.testing.assert_array_equal(into.mesh_facenormal[start : start + kept], rows + 1)
        np.testing.assert_array_equal(into.mesh_facetexcoord[start : start + kept], rows + 2)
        order = {tuple(face): start + i for i, face in enumerate(model.mesh_face[start:][: model.mesh_facenum[mesh]])}
        found = [order[tuple(face)] for face in rows]
        assert found == sorted(found)  # MuJoCo's order: where two are equally near, the later one wins
        numbers |= set(found)
    return numbers


@pytest.mark.parametrize("turn", [0.0, 0.4, 2.0])
@pytest.mark.parametrize("detail", [(7, 9), (60, 90)])
def test_what_wins_a_sample_is_needed_and_most_is_not(detail: tuple[int, int], turn: float) -> None:
    model = model_of(ball(*detail), ball(*detail, radius=0.2))
    rotation = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    view = replace(FRONT, position=rotation @ FRONT.position, axes=rotation)
    positions = np.array([[0.0, 0.1, 0.0], [0.1, -0.1, 0.6]])
    faces, found = find(model, view, positions)
    wins = shown(model, view, positions)
    kept = needed(model, faces)
    assert len(wins) > 30
    assert wins <= kept
    assert found.sum() == len(kept)
    assert len(kept) < (0.7 if detail[0] < 10 else 0.35) * len(model.mesh_face)


def test_in_a_mirror_faces_turn_the_other_way() -> None:
    model = model_of(ball(20, 30))
    mirror = np.diag([1.0, 1.0, -1.0])
    view = replace(FRONT, position=mirror @ FRONT.position, axes=mirror @ FRONT.axes)
    faces, _ = find(model, view, np.zeros((1, 3)))
    kept = needed(model, faces)
    assert shown(model, view, np.zeros((1, 3))) <= kept
    assert kept.isdisjoint(shown(model, FRONT, np.zeros((1, 3))))


def test_what_is_transparent_hides_nothing() -> None:
    model = model_of(ball(20, 30, 0.3), ball(30, 40, 0.5))
    around = np.zeros((2, 3))
    behind, through = find(model, FRONT, around)[1][0], find(model, FRONT, around, hides=False)[1][0]
    assert behind < 0.15 * through  # at the seams of the outer one it is not sure what is hit
    assert through > 200


def test_what_cuts_the_near_plane_is_needed_and_what_is_behind_is_not() -> None:
    triangle = np.array([[-1, 0, 0], [1, 0, 0], [0, 1, 0.0]])
    model = model_of(
        (triangle + np.array([0, 0, 3]), np.array([[0, 1, 2]])),
        (triangle * [1, 1, 0] + [[0, 0, 1], [0, 0, 1], [0, 0, 4]], np.array([[0, 1, 2]])),
    )
    _, found = find(model, FRONT, np.zeros((2, 3)))
    assert found.tolist() == [0, 1]


def test_slivers_and_what_is_clipped_are_told() -> None:
    # Seen from its edge, so little turned away that the grid may turn it to the front; it goes through a sample.
    thin = np.array([[-0.2, 0.01, 0.0], [0.2, 0.01, 0.0], [0.0, 0.01 + 4e-6, 0.0]])
    model = model_of((thin, np.array([[0, 2, 1]])))
    faces = MeshFaces(model)
    at = np.array([[0.0, 0.5 / 60 * 2 - 0.01, 0.0]])
    one, eye = np.zeros(1, np.int64), np.eye(3)[None]
    assert faces.find(FRONT, one, at, eye, np.ones(1, bool))[1].tolist() == [1]
    beyond = at + np.array([0.7, 0.0, 0.0])  # its end is outside of the frame
    assert faces.find(FRONT, one, beyond, eye, np.ones(1, bool))[1].tolist() == [2]
    thick = model_of((thin * [1, 1, 1] + [[0, 0, 0], [0, 0, 0], [0, 0.2, 0]], np.array([[0, 1, 2]])))
    assert MeshFaces(thick).find(FRONT, one, beyond, eye, np.ones(1, bool))[1].tolist() == [0]


def test_meshes_out_of_view() -> None:
    faces = MeshFaces(model_of(ball(8, 8)))
    positions = np.array([[0, 0, 0], [0, 0, 3], [3, 0, 0], [0, -3, 0], [1.2, 0, 0.0]])
    out = faces.are_out_of_view(FRONT, np.zeros(5, np.int64), positions, np.tile(np.eye(3), (5, 1, 1)))
    assert out.tolist() == [False, True, True, True, False]
