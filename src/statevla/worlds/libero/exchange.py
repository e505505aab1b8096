"""Goals that a suite has no task for: a task with its object, or its drawer, exchanged for another of the scene.

In ten tasks of a scene a policy may tell by one word what to do: what goes into the bowl is always the cream cheese.
Exchanged, the same words come in other company ("put the wine bottle in the top drawer"), so that each has to be heard.
The goals of LIBERO-PRO's `_task` suites, which ask for the same, are left out: they stay a test.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from statevla.errors import UserError
from statevla.worlds.libero.skills.push import is_dish
from statevla.worlds.libero.tasks import TaskSpec, suite_names, suite_tasks

Predicates = tuple[tuple[str, ...], ...]
_WORDS = {
    "akita_black_bowl": ("black bowl", "bowl"),
    "black_book": ("book",),
    "chefmate_8_frypan": ("frying pan",),
    "cream_cheese": ("cream cheese box", "cream cheese"),
    "new_salad_dressing": ("salad dressing",),
    "porcelain_mug": ("white mug",),
    "red_coffee_mug": ("red mug",),
    "white_yellow_mug": ("yellow and white mug",),
}
"""What instructions call kinds of objects, the longest first; others as BDDL calls them."""
_LEVELS = ("top", "middle", "bottom")
_CONTAINERS = ("basket", "caddy", "tray")


@dataclass(frozen=True)
class Goal:
    """What to do, and in words.

    Attributes:
        predicates: a conjunction such as `(("on", "wine_bottle_1", "plate_1"),)`.
        instruction: what a policy is told.
    """

    predicates: Predicates
    instruction: str


@cache
def exchanged_goals(task: TaskSpec) -> tuple[Goal, ...]:
    """The goals that a task becomes by an exchange; none where its objects have no others to be exchanged for."""
    found = {goal.predicates: goal for goal in [*_other_objects(task), *_other_levels(task)]}
    return tuple(goal for predicates, goal in found.items() if predicates not in _tested_goals(task.suite))


def check_exchangeable(suite: str, indices: Sequence[int]) -> None:
    """Whether all of some tasks have goals by exchange.

    Raises:
        UserError: some have none.
    """
    able = [task.index for task in suite_tasks(suite) if exchanged_goals(task)]
    if unable := [index for index in indices if index not in able]:
        fix = f"pass --tasks {','.join(map(str, able))}" if able else "leave it out"
        raise UserError(
            f"--exchange: nothing to exchange in task {', '.join(map(str, unable))} of {suite} but what the suite or "
            f"LIBERO-PRO has a task for; {fix}"
        )


@cache
def _tested_goals(suite: str) -> frozenset[Predicates]:
    """Of the suite's tasks, and of LIBERO-PRO's of other goals."""
    perturbed = f"{suite}_task"
    tasks = suite_tasks(suite) + (suite_tasks(perturbed) if perturbed in suite_names() else [])
    return frozenset(_predicates(task.goal) for task in tasks)


def _predicates(goal: list[list[str]]) -> Predicates:
    return tuple(sorted(tuple(predicate) for predicate in goal))


def _other_objects(task: TaskSpec) -> list[Goal]:
    """The goals in which another object takes the place of one that is moved."""
    kinds: dict[str, list[str]] = task.problem["objects"]
    kind_of = {name: kind for kind, names in kinds.items() for name in names}
    named = {word for predicate in task.goal for word in predicate[1:]}
    goals = []
    for relation, moved, *_ in task.goal:
        if relation not in ("in", "on") or len(kinds[kind_of[moved]]) > 1:  # one of several is told by its place
            continue
        for other, kind in kind_of.items():
            is_named = any(word == other or word.startswith(f"{other}_") for word in named)
            if is_named or len(kinds[kind]) > 1 or any(word in kind for word in _CONTAINERS):
                continue
            if is_dish(other):  # is pushed, not put
                continue
            text = _exchange(task.instruction, kind_of[moved], kind)
            if text is not None:
                predicates = [[other if word == moved else word for word in predicate] for predicate in task.goal]
                goals.append(Goal(_predicates(predicates), text))
    return goals


def _exchange(instruction: str, kind: str, other: str) -> str | None:
    """An instruction with one kind of object for another; None where it does not name the kind once."""
    for words in _words(kind):
        if len(re.findall(rf"\bthe {words}\b", instruction)) == 1:
            return re.sub(rf"\bthe {words}\b", f"the {_words(other)[-1]}", instruction)
    return None


def _words(kind: str) -> tuple[str, ...]:
    return _WORDS.get(kind, (kind.replace("_", " "),))


def _other_levels(task: TaskSpec) -> list[Goal]:
    """The goals that are about another drawer of a cabinet that is closed."""
    opened = {predicate[1] for predicate in task.problem["initial_state"] if predicate[0] == "open"}
    goals = []
    for level in _LEVELS:
        regions = {word for predicate in task.goal for word in predicate[1:] if word.endswith(f"_{level}_region")}
        regions = {region for region in regions if "cabinet" in region and region not in opened}
        if len(regions) != 1 or f"{level} drawer" not in task.instruction:
            continue
        for other in _LEVELS:
            if other != level:
                region = next(iter(regions))
                changed = region.replace(f"_{level}_", f"_{other}_")
                predicates = [[changed if word == region else word for word in predicate] for predicate in task.goal]
                text = task.instruction.replace(f"{level} drawer", f"{other} drawer")
                goals.append(Goal(_predicates(predicates), text))
    return goals
