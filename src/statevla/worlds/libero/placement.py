"""Wide placement: movable objects anywhere on the reachable table instead of in LIBERO's narrow regions.

The official regions vary positions by about a centimetre, so that a policy can memorise them. Here each object that
stands on the table itself is moved to a random free place; heights and orientations stay those of the official draw.
What the instruction tells by its place stays where LIBERO puts it: the bowl next to the ramekin, where there is another
bowl, and the left of two plates.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from statevla.errors import UserError
from statevla.worlds.libero.scene import Scene
from statevla.worlds.libero.simulation import Simulation

REACH_X_M = (-0.26, 0.16)
REACH_Y_M = (-0.30, 0.30)
"""Where the hand reaches the table in all arenas and the camera sees it, relative to the arena's origin."""
_GAP_M = 0.035
"""Least free space between two objects, seen from above: room for a finger and some error."""
_LARGE_RADIUS_M = 0.10
_LARGE_SHIFT_M = 0.05
"""Containers (the basket) move this far only: they would not fit anywhere else."""
_HIDDEN_BEHIND = (np.zeros(2), np.array([0.06, 0.0]), np.array([0.12, 0.0]))
"""Shifts of a container's outline away from the agentview camera, where it would hide a small object."""
_MAX_DRAWS = 4000


def wide_init_state(simulation: Simulation, seed: int) -> np.ndarray:
    """A state `[1 + nq + nv]` with the movable objects spread over the table; a pure function of task and seed.

    Args:
        simulation: of the task; it is reset.
        seed: draws the fixtures, the arm's posture and the places.

    Raises:
        UserError: no free places were found.
    """
    simulation.reset(seed, settle_steps=0)
    rng = np.random.default_rng([seed, 0x81DE])
    scene = Scene(simulation)
    movable = _free_to_move(simulation)
    footprints = {name: _outline(scene.points(name)) for name in movable}
    rest = _outline(scene.obstacles(ignoring=movable))
    state = simulation.state()
    for _ in range(_MAX_DRAWS):
        shifts = _draw(scene, footprints, rest, rng)
        if shifts is not None:
            for name, shift in shifts.items():
                address = 1 + int(simulation.model.jnt_qposadr[_free_joint(simulation, name)])
                state[address : address + 2] += shift
            return state
    raise UserError(f"task '{simulation.task.name}': no collision-free wide placement found; collect without --wide")


def eccentricity(position: np.ndarray) -> float:
    """How far out on the reachable table a place `[2]` (m) is: 0 in the middle, 1 at the rim."""
    low, high = np.array([REACH_X_M, REACH_Y_M]).T
    return float(np.abs((2 * position - low - high) / (high - low)).max())


def _draw(
    scene: Scene, footprints: dict[str, np.ndarray], rest: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray] | None:
    """One try: the shift `[2]` of each object, largest first, or None where one found no place."""
    taken = [rest] if len(rest) else []
    shifts = {}
    for name in sorted(footprints, key=lambda name: -_radius(footprints[name])):
        outline = footprints[name]
        centre = scene.position(name)[:2]
        for _ in range(40):
            if _radius(outline) > _LARGE_RADIUS_M:
                shift = rng.uniform(-_LARGE_SHIFT_M, _LARGE_SHIFT_M, 2)
            else:
                shift = np.array([rng.uniform(*REACH_X_M), rng.uniform(*REACH_Y_M)]) - centre
            moved = outline + shift
            if all(_distance(moved, other) > _GAP_M for other in taken):
                shifts[name] = shift
                large = _radius(outline) > _LARGE_RADIUS_M
                taken += [moved - offset for offset in _HIDDEN_BEHIND] if large else [moved]
                break
        else:
            return None
    return shifts


def _free_to_move(simulation: Simulation) -> list[str]:
    """Objects on the table or floor (not on a fixture or on another object) that may stand elsewhere as well."""
    problem = simulation.robosuite_env.parsed_problem
    places = {predicate[1]: predicate[2] for predicate in problem["initial_state"] if predicate[0] in ("on", "in")}
    regions = {name: region["target"] for name, region in problem["regions"].items()}
    workspace = simulation.robosuite_env.workspace_name
    on_table = [name for name, place in places.items() if regions.get(place) == workspace]
    kept = set(places.values()) | _told_by_place(simulation.goal, problem["objects"].values())
    if any(regions.get(target) == workspace for target in _targets(simulation.goal)):
        kept |= _targets(simulation.goal)  # a region of the table named after an object, as to the right of the plate
    return [name for name in on_table if name in simulation.object_names and name not in kept]


def _targets(goal: list[list[str]]) -> set[str]:
    return {predicate[2] for predicate in goal if len(predicate) > 2}


def _told_by_place(goal: list[list[str]], kinds: Iterable[list[str]]) -> set[str]:
    """Objects of the goal that others of their kind could be taken for, unless the goal treats them alike."""
    told = set()
    for alike in kinds:
        roles = {
            name: [[word for word in predicate if word != name] for predicate in goal if name in predicate]
            for name in alike
        }
        if any(role != roles[alike[0]] for role in roles.values()):
            told |= {name for name, role in roles.items() if role}
    return told


def _free_joint(simulation: Simulation, name: str) -> int:
    return int(simulation.model.joint(simulation.robosuite_env.objects_dict[name].joints[-1]).id)


def _outline(points: np.ndarray) -> np.ndarray:
    """Points seen from above on a grid of 1 cm, without duplicates: `[P, 2]`."""
    return np.unique(np.round(points[:, :2], 2), axis=0)


def _radius(outline: np.ndarray) -> float:
    return float(np.linalg.norm(outline - outline.mean(0), axis=1).max())


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt(((first[:, None] - second[None]) ** 2).sum(-1).min()))
