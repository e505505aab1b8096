"""The scripted expert: a task's goal as a sequence of skills on the simulator's privileged state."""

from __future__ import annotations

import numpy as np

from statevla.robots import LIBERO
from statevla.worlds.libero.motion import Arm, Command, Motion, Style
from statevla.worlds.libero.overhang import way_in
from statevla.worlds.libero.scene import Scene
from statevla.worlds.libero.simulation import Simulation
from statevla.worlds.libero.skills.articulated import Drawer, Knob
from statevla.worlds.libero.skills.door import Door
from statevla.worlds.libero.skills.insert import Insert, opening_of
from statevla.worlds.libero.skills.pick_place import Destination, PickPlace
from statevla.worlds.libero.skills.push import Push, is_dish

_ORDER = {"open": 0, "turnon": 1, "turnoff": 1, "in": 2, "on": 2, "close": 4}
MAX_ROUNDS = 3
"""How often the goals are gone through: what does not hold afterwards is tried again from where things are then."""
_SLOT_SPACING_M = 0.10
"""Between the centres of objects that share a region."""
_INSIDE_M = 0.03
"""How far into a compartment an object's origin goes that is put there through its opening."""
_TALL_M = 0.11
"""What is higher goes into a basket first: on top of something else it leans over the rim, which is not "in"."""
_WALL_CLEARANCE_M = 0.01
_SNUG_M = 0.03
"""An object with less free space than this around it is aimed with care."""


class Expert:
    """Solves one episode; iterate over `commands()` and step the simulation with each.

    Args:
        simulation: the scene, just reset.
        rng: draws this episode's style and scatter.
        style: execution style; drawn from `rng` by default.
    """

    def __init__(self, simulation: Simulation, rng: np.random.Generator, style: Style | None = None) -> None:
        self.simulation = simulation
        self.scene = Scene(simulation)
        self.arm = Arm(self.scene, style or Style.draw(rng), rng)
        self.goals = plan_goals(simulation)

    def commands(self) -> Motion:
        """One command per control step until the expert has nothing left to do.

        The simulation has to be stepped between one command and the next.
        """
        for _ in range(MAX_ROUNDS):
            for goal in self.goals:
                motion = skill_for(self.arm, goal)
                if motion is not None:
                    yield from motion
            if self.simulation.success():
                return


def plan_goals(simulation: Simulation) -> list[list[str]]:
    """The goal's predicates in an order that can be carried out, with drawers opened that must hold something."""
    goals = simulation.goal
    filled = {goal[2] for goal in goals if goal[0] == "in"}
    opened = {goal[1] for goal in goals if goal[0] == "open"}
    moved = {goal[1] for goal in goals if goal[0] in ("in", "on")}
    scene = Scene(simulation)

    def rank(goal: list[str]) -> float:
        if goal[0] == "close":  # what nothing is put into is closed first: an open drawer is in the way
            holder = any(region.startswith(goal[1]) for region in filled)
            return _ORDER["close"] if holder else 0
        if goal[0] == "on" and goal[2] in moved:  # the lower one of a stack is moved first
            return _ORDER["on"] + 1
        if goal[0] == "in" and "basket" in goal[2] and np.ptp(scene.points(goal[1])[:, 2]) > _TALL_M:
            return _ORDER["in"] - 0.5
        return _ORDER.get(goal[0], 9)

    needed = {region for region in filled if "cabinet" in region} - opened
    return [["open", region] for region in sorted(needed)] + sorted(goals, key=rank)


def skill_for(arm: Arm, goal: list[str]) -> Motion | None:
    """The skill that brings a predicate about; None where it holds already or the expert has none."""
    simulation = arm.scene.simulation

    def done() -> bool:
        return simulation.holds(goal)

    relation, name = goal[0], goal[1]
    if done():
        return None
    if relation in ("in", "on"):
        destination = destination_of(arm.scene, relation, name, goal[2])
        if is_dish(name):
            return Push(arm, name, destination.position, done).run()
        if destination.inward is not None:
            return Insert(arm, name, destination, done).run()
        return PickPlace(arm, name, destination, done).run()
    if relation in ("open", "close") and "cabinet" in name:
        drawer = Drawer(arm, name, done)
        return drawer.open() if relation == "open" else drawer.close()
    if relation in ("open", "close") and "microwave" in name:
        door = Door(arm, name, done)
        return door.open() if relation == "open" else door.close()
    if relation in ("turnon", "turnoff"):
        return Knob(arm, name, done).turn(1.0 if relation == "turnon" else -1.0)
    return None


def destination_of(scene: Scene, relation: str, name: str, target: str) -> Destination:
    """Where to let go of an object so that it is `relation` ("in" or "on") the target."""
    if not scene.is_region(target):
        return Destination(scene.position(target)[:2], float(scene.points(target)[:, 2].max()), 0.01, 0.004)
    centre, _, _ = scene.region(target)
    if "basket" in target:
        floor = scene.points(scene.region_owner(target))[:, 2].min()
        return Destination(centre[:2], float(floor), 0.10)
    inward = opening_of(scene, target) if relation == "in" else None
    if inward is not None:
        return _through_opening(scene, target, inward)
    if relation == "in":
        return _inside_region(scene, name, target)
    place = centre[:2] + _slot_offset(scene, relation, name, target)
    obstacles = scene.obstacles([name])
    near = obstacles[np.linalg.norm(obstacles[:, :2] - place, axis=1) < 0.04]
    surface = max(float(centre[2]), float(near[:, 2].max()) if len(near) else float(centre[2]))
    return Destination(place, surface, 0.012)


def _slot_offset(scene: Scene, relation: str, name: str, target: str) -> np.ndarray:
    """Where on a region `[2]`, from its centre: objects that share it stand side by side along its first axis."""
    sharing = [goal[1] for goal in scene.simulation.goal if goal[0] == relation and goal[2:] == [target]]
    _, rotation, half = scene.region(target)
    spacing = min(_SLOT_SPACING_M, 1.3 * float(half[0]))
    return rotation[:2, 0] * spacing * ((len(sharing) - 1) / 2 - sharing.index(name))


def _through_opening(scene: Scene, target: str, inward: np.ndarray) -> Destination:
    """Just inside a compartment, on its floor: no deeper, or the hand would have to follow."""
    centre, rotation, half = scene.region(target)
    depth = float((np.abs(rotation) @ half)[:2] @ np.abs(inward))
    around = scene.points(scene.region_owner(target))
    place = centre[:2] - inward * (depth - _INSIDE_M)
    below = (np.linalg.norm(around[:, :2] - centre[:2], axis=1) < 0.06) & (around[:, 2] < centre[2])
    floor = float(around[below, 2].max()) if below.any() else float(centre[2] - (np.abs(rotation) @ half)[2])
    return Destination(place, floor, 0.008, 0.003, inward=inward, depth=_INSIDE_M)


def _inside_region(scene: Scene, name: str, target: str) -> Destination:
    """Let go above a compartment's floor; turn what is too long for its shorter side."""
    centre, rotation, half = scene.region(target)
    extent = np.abs(rotation) @ half
    outline = scene.points(name)[:, :2]
    length = float(np.ptp((outline - outline.mean(0)) @ np.linalg.eigh(np.cov(outline.T))[1][:, 1]))
    long_axis = None
    if length > 2 * min(extent[:2]):
        long_axis = 0.0 if extent[0] > extent[1] else np.pi / 2
    snug = length > 2 * min(extent[:2]) - _SNUG_M
    scatter = 0.002 if snug else 0.006
    keep = _rests_below(scene, name, target)
    room = float(np.clip(min(extent[:2]) - length / 2 - _WALL_CLEARANCE_M, 0.006, 0.02))
    place = centre[:2] + (_between_walls(scene, target) if snug else _past_overhang(scene, name, target))
    return Destination(place, float(centre[2]) - 0.03, 0.02, scatter, long_axis, snug, keep, room)


def _past_overhang(scene: Scene, name: str, target: str) -> np.ndarray:
    """From a region's centre to where an object comes down clear of what is over the region's edge `[2]`."""
    centre, rotation, half = scene.region(target)
    extent = np.abs(rotation) @ half
    around = scene.points(scene.region_owner(target))
    near = around[(np.abs(around[:, :2] - centre[:2]) < extent[:2] + 0.1).all(1)]
    points = scene.points(name) - np.r_[scene.position(name)[:2] - centre[:2], 0.0]
    walls = near[np.abs(near[:, 2] - centre[2]) < 0.5 * extent[2]]
    return way_in(points, walls, near[near[:, 2] > centre[2] + extent[2] + 0.01])


def _between_walls(scene: Scene, target: str) -> np.ndarray:
    """From a region's centre to the middle between the walls around it `[2]`: LIBERO's regions are some mm off."""
    centre, rotation, half = scene.region(target)
    extent = np.abs(rotation) @ half
    offset = scene.points(scene.region_owner(target)) - centre
    middle = np.zeros(2)
    for axis in (0, 1):
        level = (np.abs(offset[:, 1 - axis]) < 0.5 * extent[1 - axis]) & (np.abs(offset[:, 2]) < 0.8 * extent[2])
        along = offset[level, axis]
        before, behind = along[along < -0.5 * extent[axis]], along[along > 0.5 * extent[axis]]
        if len(before) and len(behind):
            middle[axis] = (before.max() + behind.min()) / 2
    return middle


def _rests_below(scene: Scene, name: str, target: str) -> bool:
    """Whether an object's origin comes to rest below a region that it lies in, so that it would not count as inside.

    LIBERO's region of the desk caddy's back compartment begins 12 mm above its floor; a book's origin is at its foot.
    """
    centre, rotation, half = scene.region(target)
    around = scene.points(scene.region_owner(target))
    below = around[(np.linalg.norm(around[:, :2] - centre[:2], axis=1) < 0.03) & (around[:, 2] < centre[2])]
    if not len(below):
        return False
    resting = below[:, 2].max() + scene.position(name)[2] - scene.points(name)[:, 2].min()
    return bool(resting < centre[2] - (np.abs(rotation) @ half)[2] - 0.005)


class ExecutionNoise:
    """Smooth (Ornstein-Uhlenbeck) disturbance of the translation, a quarter as strong near contact.

    Args:
        scale: standard deviation of the disturbance in units of action; 0 for none.
        rng: its source.
    """

    def __init__(self, scale: float, rng: np.random.Generator) -> None:
        self.scale = scale
        self._rng = rng
        self._value = np.zeros(3)

    def apply(self, command: Command) -> np.ndarray:
        """The action `[7]` to execute for a command."""
        self._value = 0.8 * self._value + 0.6 * self._rng.standard_normal(3)
        executed = command.action.copy()
        executed[:3] += self.scale * self._value * (1.0 if command.free else 0.25)
        pose = slice(LIBERO.num_continuous)
        executed[pose] = np.clip(executed[pose], -1.0, 1.0)
        return executed
