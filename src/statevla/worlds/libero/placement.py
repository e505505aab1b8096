"""Wide placement: movable objects anywhere on the reachable table instead of in LIBERO's narrow regions.

The official regions vary positions by about a centimetre, so that a policy can memorise them. Here each object that
stands on the table itself is moved to a random free place; heights and orientations stay those of the official draw.
What the instruction tells by its place stays where LIBERO puts it: the bowl next to the ramekin, where there is another
bowl, and the left of two plates. Rearranged, fixtures (cabinet, stove, rack) stand elsewhere too, with what is on them.
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
_TALL_M = 0.12
"""What is higher hides small objects too."""
_MAX_DRAWS, _MAX_ARRANGEMENTS = 4000, 200
_FINE_PER_M, _COARSE_PER_M = 100.0, 50.0
"""Grids of outlines: of objects, and of fixtures, which are large."""
_FIXTURE_X_M, _FIXTURE_Y_M = (-0.42, 0.08), (-0.34, 0.34)
"""Where LIBERO's tables have room for a fixture, near the edges too: the middle of its outline."""


def wide_init_state(simulation: Simulation, seed: int, rearrange: bool = False) -> np.ndarray:
    """A state `[1 + nq + nv]` with the movable objects spread over the table; a pure function of the arguments.

    Args:
        simulation: of the task; it is reset.
        seed: draws the fixtures, the arm's posture and the places.
        rearrange: let the fixtures of `simulation` stand elsewhere; its next reset puts them back.

    Raises:
        UserError: no free places were found.
    """
    simulation.reset(seed, settle_steps=0)
    rng = np.random.default_rng([seed, 0x81DE])
    movable = _free_to_move(simulation)
    num_arrangements = _MAX_ARRANGEMENTS if rearrange else 1
    for _ in range(num_arrangements):
        if rearrange:
            _rearrange(simulation, movable, rng)
        state = _spread(simulation, movable, rng, _MAX_DRAWS // num_arrangements, rearrange)
        if state is not None:
            return state
    raise UserError(f"task '{simulation.task.name}': no collision-free wide placement found; collect without --wide")


def _spread(
    simulation: Simulation, movable: list[str], rng: np.random.Generator, max_draws: int, hides: bool
) -> np.ndarray | None:
    """The present state with the movable objects elsewhere, none of them behind what is tall if `hides`;
    None where no places were found."""
    scene = Scene(simulation)
    footprints = {name: _outline(scene.points(name)) for name in movable}
    obstacles = scene.obstacles(ignoring=movable)
    rest = _outline(obstacles)
    if hides and len(obstacles):
        tall = _outline(obstacles[obstacles[:, 2] > obstacles[:, 2].min() + _TALL_M], _COARSE_PER_M)
        rest = np.concatenate([rest, *(tall - offset for offset in _HIDDEN_BEHIND)])
    state = simulation.state()
    for _ in range(max_draws):
        shifts = _draw(scene, footprints, rest, rng)
        if shifts is not None:
            for name, shift in shifts.items():
                address = 1 + int(simulation.model.jnt_qposadr[_free_joint(simulation, name)])
                state[address : address + 2] += shift
            return state
    return None


def eccentricity(position: np.ndarray) -> float:
    """How far out on the reachable table a place `[2]` (m) is: 0 in the middle, 1 at the rim."""
    low, high = np.array([REACH_X_M, REACH_Y_M]).T
    return float(np.abs((2 * position - low - high) / (high - low)).max())


def _rearrange(simulation: Simulation, movable: list[str], rng: np.random.Generator) -> None:
    """Put the fixtures that stand on the table elsewhere on it, with what stands on them; they keep their orientation.

    Raises:
        UserError: no free places were found.
    """
    riders = _fixtures_on_table(simulation)
    carried = [name for names in riders.values() for name in names]
    scene = Scene(simulation)
    kept = _outline(scene.obstacles(ignoring=[*movable, *riders, *carried]), _COARSE_PER_M)
    outlines = {name: _outline(scene.points(name), _COARSE_PER_M) for name in riders}
    poses, state = simulation.fixture_poses(), simulation.state()
    for _ in range(_MAX_DRAWS):
        shifts, taken = {}, [kept] if len(kept) else []
        for name in rng.permutation(list(riders)):
            middle = (outlines[name].min(0) + outlines[name].max(0)) / 2
            shifts[name] = np.array([rng.uniform(*_FIXTURE_X_M), rng.uniform(*_FIXTURE_Y_M)]) - middle
            moved = outlines[name] + shifts[name]
            in_reach = all(_is_in_reach(front + shifts[name]) for front in scene.drawer_fronts(name))
            if not in_reach or not all(_is_clear(moved, other) for other in taken):
                break
            taken.append(moved)
        else:
            new_poses, new_state = poses.copy(), state.copy()
            for name, shift in shifts.items():
                new_poses[simulation.fixture_names.index(name), :2] += shift
                for rider in riders[name]:
                    address = 1 + int(simulation.model.jnt_qposadr[_free_joint(simulation, rider)])
                    new_state[address : address + 2] += shift
            simulation.set_fixture_poses(new_poses)
            simulation.set_state(new_state)
            if not scene.touches_robot(riders):
                return
    raise UserError(f"task '{simulation.task.name}': no free places for its fixtures; collect without --rearrange")


def _fixtures_on_table(simulation: Simulation) -> dict[str, list[str]]:
    """Fixtures that may stand elsewhere, with all objects that stand on them or in them.

    None where the goal is a place of the table that is told by a fixture, as the front of the stove.
    """
    problem, workspace = simulation.robosuite_env.parsed_problem, simulation.robosuite_env.workspace_name
    regions = {name: region["target"] for name, region in problem["regions"].items()}
    if any(regions.get(target) == workspace for target in _targets(simulation.goal)):
        return {}
    places = {predicate[1]: predicate[2] for predicate in problem["initial_state"] if predicate[0] in ("on", "in")}
    below = {name: regions.get(place, place) for name, place in places.items()}
    riders: dict[str, list[str]] = {
        name: [] for name in simulation.fixture_names if below.get(name) == workspace and name != workspace
    }
    for name in simulation.object_names:
        base = below.get(name)
        while base in below and base not in riders:
            base = below[base]
        if base in riders:
            riders[base].append(name)
    return riders


def _is_in_reach(place: np.ndarray) -> bool:
    return bool(REACH_X_M[0] < place[0] < REACH_X_M[1] and REACH_Y_M[0] < place[1] < REACH_Y_M[1])


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
            if all(_is_clear(moved, other) for other in taken):
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


def _outline(points: np.ndarray, per_m: float = _FINE_PER_M) -> np.ndarray:
    """Points seen from above on a grid, without duplicates: `[P, 2]`."""
    return np.unique(np.round(points[:, :2] * per_m) / per_m, axis=0)


def _radius(outline: np.ndarray) -> float:
    return float(np.linalg.norm(outline - outline.mean(0), axis=1).max())


def _is_clear(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two outlines keep the least gap. Points that are too far from the other's bounding box are not compared:
    nearly all, in the outline of everything that stands on the table."""
    low, high = first.min(0) - _GAP_M, first.max(0) + _GAP_M
    near = second[((second >= low) & (second <= high)).all(1)]
    return not len(near) or bool(((first[:, None] - near[None]) ** 2).sum(-1).min() > _GAP_M**2)
