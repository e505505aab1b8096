"""Things in other colours: how an episode is drawn, not what happens in it.

Where all cartons of milk look the same, a policy may know them by their exact colours, and is lost where they have
others. Drawn in other colours, things have to be known by their shape and print, or place, too.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from statevla.worlds.libero.simulation import Simulation

SHARE = 0.5
"""Of the things of a scene that are drawn in another colour in an episode."""
_LEAST, _MOST = (0.0, 0.2, 0.6), (1.0, 0.8, 1.3)
"""Hue, saturation, brightness."""
_TOLD_BY_COLOUR = "mug"
"""The white, the red and the yellow and white one keep theirs."""


@contextmanager
def recolored(simulation: Simulation, rng: np.random.Generator) -> Iterator[None]:
    """Objects and fixtures, each with probability `SHARE`, have a colour of their own inside the block.

    Textures are multiplied with it, so that what is black stays black.
    """
    model = simulation.model
    before = model.mat_rgba.copy(), model.geom_rgba.copy()
    try:
        for name in [*simulation.object_names, *simulation.fixture_names]:
            is_chosen = rng.random() < SHARE
            hue, saturation, brightness = rng.uniform(_LEAST, _MOST)
            if is_chosen and _TOLD_BY_COLOUR not in name:
                _paint(simulation, name, brightness * np.array(colorsys.hsv_to_rgb(hue, saturation, 1.0)))
        yield
    finally:
        model.mat_rgba[:], model.geom_rgba[:] = before


def _paint(simulation: Simulation, name: str, colour: np.ndarray) -> None:
    model = simulation.model
    root = model.body_rootid[simulation.robosuite_env.obj_body_id[name]]
    geoms = np.flatnonzero(model.body_rootid[model.geom_bodyid] == root)
    materials = np.unique(model.geom_matid[geoms])
    materials = materials[materials >= 0]
    model.mat_rgba[materials, :3] = np.clip(model.mat_rgba[materials, :3] * colour, 0.0, 1.0)
    bare = geoms[model.geom_matid[geoms] < 0]
    model.geom_rgba[bare, :3] = np.clip(model.geom_rgba[bare, :3] * colour, 0.0, 1.0)
