"""Other colours: of what is drawn alone, other ones in each episode, and gone afterwards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("libero")

from statevla.worlds.libero.episodes import CollectSettings, make_simulation, record_episode, run_episode
from statevla.worlds.libero.recolor import recolored
from statevla.worlds.libero.simulation import Simulation
from statevla.worlds.libero.tasks import find_task

pytestmark = pytest.mark.slow


def colours(simulation: Simulation, name: str) -> bytes:
    model = simulation.model
    root = model.body_rootid[simulation.robosuite_env.obj_body_id[name]]
    geoms = np.flatnonzero(model.body_rootid[model.geom_bodyid] == root)
    materials = model.geom_matid[geoms]
    return bytes(model.mat_rgba[materials[materials >= 0]].tobytes() + model.geom_rgba[geoms].tobytes())


def test_only_the_pictures_of_an_episode_change() -> None:
    plain = CollectSettings("libero_object", seed=1, reaches="start", image_size=32)
    other = replace(plain, recolor=True)
    simulation = make_simulation(find_task("libero_object", 0))
    episode = run_episode(simulation, plain, 0)
    first, second, again = (record_episode(simulation, episode, each, 0) for each in (plain, other, plain))
    for name, values in first.datasets.items():
        np.testing.assert_array_equal(values, again.datasets[name])
        if not name.endswith("_rgb"):
            np.testing.assert_array_equal(values, second.datasets[name])
    agentview = "obs/agentview_rgb"
    assert (first.datasets[agentview] != second.datasets[agentview]).any(-1).mean() > 0.005
    another = record_episode(simulation, episode, other, 1)
    assert (another.datasets[agentview] != second.datasets[agentview]).any()
    simulation.close()


def test_half_of_the_things_but_not_what_is_told_by_its_colour() -> None:
    simulation = make_simulation(find_task("libero_10", 4))
    mugs = [name for name in simulation.object_names if "mug" in name]
    names = [name for name in [*simulation.object_names, *simulation.fixture_names] if name not in mugs]
    before = {name: colours(simulation, name) for name in [*mugs, *names]}
    changed = 0
    for seed in range(40):
        with recolored(simulation, np.random.default_rng(seed)):
            changed += sum(colours(simulation, name) != before[name] for name in names)
            assert all(colours(simulation, name) == before[name] for name in mugs)
    assert len(mugs) == 3
    assert 0.35 < changed / (40 * len(names)) < 0.65
    assert all(colours(simulation, name) == kept for name, kept in before.items())
    simulation.close()
