"""Goals by exchange: worded as what they are, none that a suite tests, collected and replayed as their own goal."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest

pytest.importorskip("libero")

from statevla.commands.collect import CollectArgs
from statevla.commands.collect import collect as collect_command
from statevla.errors import UserError
from statevla.worlds.collect import collect
from statevla.worlds.libero.demo_file import GOAL_ATTRIBUTE
from statevla.worlds.libero.episodes import CollectSettings, make_simulation, run_episode
from statevla.worlds.libero.exchange import exchanged_goals
from statevla.worlds.libero.replay import replay_data
from statevla.worlds.libero.tasks import find_task, suite_tasks


def test_an_object_or_a_drawer_is_exchanged_in_goal_and_words() -> None:
    drawer = {goal.instruction: goal.predicates for goal in exchanged_goals(find_task("libero_goal", 3))}
    assert drawer == {
        "open the top drawer and put the wine bottle inside": (("in", "wine_bottle_1", "wooden_cabinet_1_top_region"),),
        "open the middle drawer and put the bowl inside": (
            ("in", "akita_black_bowl_1", "wooden_cabinet_1_middle_region"),
        ),
        "open the bottom drawer and put the bowl inside": (
            ("in", "akita_black_bowl_1", "wooden_cabinet_1_bottom_region"),
        ),
    }
    mugs = [goal.instruction for goal in exchanged_goals(find_task("libero_10", 4))]
    assert mugs == [
        "put the red mug on the left plate and put the yellow and white mug on the right plate",
        "put the white mug on the left plate and put the red mug on the right plate",
    ]


@pytest.mark.parametrize("suite", ["libero_goal", "libero_10"])
def test_what_is_tested_is_not_among_them(suite: str) -> None:
    tested = [sorted(task.goal) for task in suite_tasks(suite) + suite_tasks(f"{suite}_task")]
    goals = [goal for task in suite_tasks(suite) for goal in exchanged_goals(task)]
    assert len(goals) > 10
    for goal in goals:
        assert sorted(map(list, goal.predicates)) not in tested


def test_what_has_nothing_to_exchange_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"nothing to exchange in task 6, 7 of libero_goal .*pass --tasks 0,1,2,3,4,5,8,9"
    ):
        collect_command(CollectArgs(world="libero_goal", exchange=True, out=tmp_path))
    with pytest.raises(UserError, match=r"nothing to exchange in task 0, .* of libero_spatial .*leave it out"):
        collect_command(CollectArgs(world="libero_spatial", exchange=True, out=tmp_path))  # told by their places
    with pytest.raises(UserError, match="--exchange: changes demonstrations"):
        collect_command(CollectArgs(world="libero_goal", exchange=True, reaches="start", out=tmp_path))
    with pytest.raises(UserError, match="--exchange: is for LIBERO's scripted expert alone"):
        collect_command(CollectArgs(world="so101", exchange=True, out=tmp_path))
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_bottle_goes_into_the_basket_before_a_can() -> None:
    """On top of the can it would lean over the rim, which LIBERO does not call "in"."""
    simulation = make_simulation(find_task("libero_10", 7))
    (goal,) = exchanged_goals(simulation.task)
    assert goal.instruction == "put both the alphabet soup and the ketchup in the basket"
    episodes = [run_episode(simulation, CollectSettings("libero_10", exchange=True), index) for index in range(3)]
    simulation.close()
    assert sum(episode.is_kept for episode in episodes) >= 2


@pytest.mark.slow
def test_they_are_collected_and_replayed_as_their_own_goal(tmp_path: Path) -> None:
    settings = CollectSettings("libero_goal", image_size=32, frame_stride=8, exchange=True)
    (summary,) = collect(settings, [1], 3, tmp_path, num_workers=1)
    assert summary.file.name == "put_the_bowl_on_the_stove_exchange.hdf5"
    goals = {goal.instruction: goal.predicates for goal in exchanged_goals(find_task("libero_goal", 1))}
    with h5py.File(summary.file) as file:
        for demo in file["data"].values():
            told = goals[demo.attrs["language_instruction"]]
            assert json.loads(demo.attrs[GOAL_ATTRIBUTE]) == list(map(list, told))
    results = list(replay_data(summary.file))
    assert len(results) == 3
    assert all(result.success and result.deviation == 0 for result in results)
