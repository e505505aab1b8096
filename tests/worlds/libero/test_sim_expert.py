"""The scripted expert in the simulator."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("libero")

from statevla.errors import UserError
from statevla.worlds.libero import grasp
from statevla.worlds.libero.episodes import CollectSettings, draw_start, make_simulation, run_episode
from statevla.worlds.libero.grasp import plan_grasp
from statevla.worlds.libero.placement import REACH_X_M, REACH_Y_M, wide_init_state
from statevla.worlds.libero.rollout import run_expert
from statevla.worlds.libero.scene import Scene
from statevla.worlds.libero.simulation import Simulation
from statevla.worlds.libero.skills.insert import opening_of
from statevla.worlds.libero.tasks import find_task, load_init_states

pytestmark = pytest.mark.slow


@pytest.mark.ci
def test_expert_solves_an_object_task() -> None:
    simulation = Simulation(find_task("libero_object", 7))
    for number, state in enumerate(load_init_states(simulation.task)[:2]):
        simulation.reset(0, state)
        rollout = run_expert(simulation, np.random.default_rng(number), noise=0.1)
        assert rollout.success
        assert len(rollout) < simulation.task.max_steps
        assert rollout.actions.shape == rollout.executed_actions.shape == (len(rollout), 7)
        assert set(rollout.actions[:, 6]) == {-1.0, 1.0}
        assert np.abs(rollout.actions).max() <= 1.0
        assert np.abs(rollout.actions - rollout.executed_actions)[:, :3].max() > 0.05  # noise was executed
        np.testing.assert_array_equal(rollout.actions[:, 3:], rollout.executed_actions[:, 3:])
    simulation.close()


def test_expert_takes_a_bowl_out_of_a_drawer() -> None:
    simulation = Simulation(find_task("libero_spatial", 4))
    simulation.reset(0, load_init_states(simulation.task)[0])
    assert run_expert(simulation, np.random.default_rng(0)).success
    simulation.close()


@pytest.mark.ci
def test_one_bowl_is_held_at_one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the cabinet both sides of the rim cost the same: left alone, demonstrations contradict one another."""
    simulation = Simulation(find_task("libero_spatial", 9))
    bowl, plate = "akita_black_bowl_1", "plate_1"

    def sides() -> set[float]:
        found = set()
        for number, state in enumerate(load_init_states(simulation.task)[:8]):
            simulation.reset(number, state)
            scene = Scene(simulation)
            place = scene.position(plate)[:2]
            planned = plan_grasp(scene, bowl, scene.obstacles([bowl]), place=place)
            assert planned is not None
            found.add(float(np.sign(planned.position[1] - scene.position(bowl)[1])))
        return found

    assert sides() == {1.0}
    monkeypatch.setattr(grasp, "RIGHT_SIDE_COST", 0.0)
    assert sides() == {-1.0, 1.0}
    simulation.close()


@pytest.mark.parametrize(
    ("suite", "index"),
    [
        ("libero_goal", 0),  # open a drawer
        ("libero_goal", 5),  # push a dish
        ("libero_goal", 7),  # turn a knob
        ("libero_90", 33),  # close a door
        ("libero_90", 73),  # a book into a compartment that it just fits
        ("libero_90", 77),  # and into one that it must not be let go in
        ("libero_90", 3),  # into a drawer and close it
        ("libero_90", 23),  # pull a drawer out in front of a rack
        ("libero_90", 30),  # a bowl beside an open drawer, which the forearm has to clear
        ("libero_90", 42),  # a pan into a low shelf
        ("libero_90", 75),  # a book into a compartment whose region is off its middle
        ("libero_10", 3),  # close a drawer beside a rack, from a turned hand
        ("libero_10", 9),  # a mug into a microwave and close it
    ],
)
def test_expert_has_every_skill(suite: str, index: int) -> None:
    simulation = Simulation(find_task(suite, index))
    simulation.reset(0, load_init_states(simulation.task)[0])
    rng = np.random.default_rng([0, index, 0])  # as in benchmarks/measure_expert.py
    assert run_expert(simulation, rng, noise=0.1, max_steps=simulation.task.max_steps).success
    simulation.close()


def test_hand_leans_beside_an_open_drawer_and_only_there() -> None:
    """The bowl stands half under the drawer: with the hand upright nothing of its rim can be held."""
    simulation = Simulation(find_task("libero_goal", 3))
    bowl, drawer = "akita_black_bowl_1", "wooden_cabinet_1_top_region"
    simulation.reset(0, load_init_states(simulation.task)[5])
    scene = Scene(simulation)

    def planned() -> grasp.Grasp:
        place = scene.region(drawer)[0][:2]
        found = plan_grasp(scene, bowl, scene.obstacles([bowl]), place=place)
        assert found is not None
        assert found.is_free
        return found

    assert planned().lean == 0.0
    rollout = run_expert(simulation, np.random.default_rng([0, 3, 5]), noise=0.1, max_steps=120)
    assert simulation.holds(["open", drawer])
    assert len(rollout) == 120
    assert planned().lean != 0.0
    simulation.close()


@pytest.mark.parametrize(
    ("suite", "index", "region", "inward"),
    [
        ("libero_10", 9, "microwave_1_heating_region", (0.0, 1.0)),
        ("libero_90", 42, "wooden_two_layer_shelf_1_bottom_region", (0.0, -1.0)),
        ("libero_90", 33, "microwave_1_heating_region", (0.0, 1.0)),
        ("libero_90", 2, "wooden_cabinet_1_top_region", None),
        ("libero_90", 74, "desk_caddy_1_left_contain_region", None),
    ],
)
def test_only_what_is_covered_and_open_at_one_side_has_an_opening(
    suite: str, index: int, region: str, inward: tuple[float, float] | None
) -> None:
    simulation = Simulation(find_task(suite, index))
    simulation.reset(0, load_init_states(simulation.task)[0])
    found = opening_of(Scene(simulation), region)
    assert (None if found is None else tuple(found)) == inward
    simulation.close()


def test_episodes_are_pure_functions_of_settings_and_index() -> None:
    task = find_task("libero_object", 0)
    first, second = make_simulation(task), make_simulation(task)
    settings = CollectSettings("libero_object", seed=3, wide=True)
    run_episode(first, settings, 0)  # another episode before, in one of them only
    one, two = run_episode(first, settings, 1).rollout, run_episode(second, settings, 1).rollout
    np.testing.assert_array_equal(one.states, two.states)
    np.testing.assert_array_equal(one.executed_actions, two.executed_actions)
    other = run_episode(first, CollectSettings("libero_object", seed=4, wide=True), 1).rollout
    assert other.states.shape != one.states.shape or np.abs(other.states - one.states).max() > 0.01
    first.close()
    second.close()


def test_play_moves_objects_and_ends_on_time() -> None:
    simulation = make_simulation(find_task("libero_object", 0))
    rollout = run_episode(simulation, CollectSettings("libero_object", play=True), 0).rollout
    np.testing.assert_array_equal(rollout.actions, rollout.executed_actions)
    assert len(rollout) == 200
    assert np.abs(rollout.states[-1] - rollout.states[0])[8:].max() > 0.03
    simulation.close()


def test_wide_placement_is_wide_and_free() -> None:
    simulation = make_simulation(find_task("libero_object", 0))
    places = []
    for seed in range(6):
        simulation.reset(seed, wide_init_state(simulation, seed))
        scene = Scene(simulation)
        for name in simulation.object_names:
            others = scene.points(name)
            gaps = [
                np.linalg.norm(others[:, None, :2] - scene.points(other)[None, ::3, :2], axis=-1).min()
                for other in simulation.object_names
                if other != name
            ]
            assert min(gaps) > 0.02, name
        places.append([scene.position(name)[:2] for name in simulation.object_names if name != "basket_1"])
    spread = np.array(places).reshape(-1, 2)
    assert spread[:, 0].min() >= REACH_X_M[0] - 0.02
    assert spread[:, 1].max() <= REACH_Y_M[1] + 0.02
    assert spread[:, 0].std() > 0.08
    assert spread[:, 1].std() > 0.12
    np.testing.assert_array_equal(wide_init_state(simulation, 1), wide_init_state(simulation, 1))
    simulation.close()


@pytest.mark.parametrize(
    ("suite", "index", "moved", "kept"),
    [
        # The other bowl may stand anywhere, this one is told by its place.
        ("libero_spatial", 0, {"plate_1", "cookies_1", "akita_black_bowl_2"}, {"akita_black_bowl_1"}),
        # What carries a bowl stays with it.
        ("libero_spatial", 5, {"plate_1"}, {"akita_black_bowl_1", "glazed_rim_porcelain_ramekin_1", "cookies_1"}),
        # "to the right of the plate" is a region of the table.
        ("libero_10", 6, {"porcelain_mug_1", "chocolate_pudding_1", "red_coffee_mug_1"}, {"plate_1"}),
        # Both pots go to the stove: neither is told by its place.
        ("libero_10", 8, {"moka_pot_1", "moka_pot_2"}, set()),
    ],
)
def test_wide_placement_keeps_what_the_instruction_tells_by_its_place(
    suite: str, index: int, moved: set[str], kept: set[str]
) -> None:
    simulation = make_simulation(find_task(suite, index))
    places = []
    for seed in range(5):
        simulation.reset(seed, wide_init_state(simulation, seed))
        places.append({name: Scene(simulation).position(name)[:2] for name in moved | kept})
    simulation.close()
    widths = {name: np.ptp([place[name] for place in places], axis=0).max() for name in places[0]}
    assert {name for name, width in widths.items() if width > 0.1} == moved
    assert {name for name, width in widths.items() if width < 0.06} == kept


def test_rearranged_fixtures_stand_elsewhere_with_what_is_on_them() -> None:
    simulation = make_simulation(find_task("libero_spatial", 7))  # a bowl on the stove, another on the cabinet
    settings, offsets, fixtures = CollectSettings("libero_spatial", wide=True, rearrange=True), [], []
    for seed in range(4):
        draw_start(simulation, settings, seed)
        scene = Scene(simulation)
        assert not scene.touches_robot(simulation.fixture_names)
        places = {name: scene.position(name) for name in (*simulation.object_names, *simulation.fixture_names)}
        offsets.append(places["akita_black_bowl_1"] - places["flat_stove_1"])
        fixtures.append(simulation.fixture_poses())
    draw_start(simulation, settings, 0)
    np.testing.assert_array_equal(simulation.fixture_poses(), fixtures[0])
    simulation.close()
    assert np.ptp(offsets, axis=0).max() < 0.03
    assert (np.ptp(fixtures, axis=0)[:, :2].max(1) > 0.15).all()
    np.testing.assert_array_equal(np.ptp(fixtures, axis=0)[:, 2], 0)


def test_where_a_fixture_tells_the_goal_it_stays() -> None:
    simulation = make_simulation(find_task("libero_goal", 5))  # push the plate to the front of the stove
    settings, fixtures = CollectSettings("libero_goal", wide=True, rearrange=True), []
    for seed in range(3):
        draw_start(simulation, settings, seed)
        fixtures.append(simulation.fixture_poses())
    simulation.close()
    assert np.ptp(fixtures, axis=0)[:, :2].max() < 0.03


def test_where_the_goal_holds_already_there_is_nothing_to_show() -> None:
    settings = CollectSettings("libero_goal", wide=True, recolor=True, frame_stride=4)
    simulation = make_simulation(find_task("libero_goal", 5))
    episode = run_episode(simulation, settings, 13)  # its draw puts the plate in front of the stove
    simulation.close()
    assert len(episode.rollout) == 0
    assert not episode.is_kept


def test_another_task_of_the_scene_is_taken_up_exactly() -> None:
    first, second = find_task("libero_goal", 7), find_task("libero_goal", 8)
    taken_up, own = Simulation(first), Simulation(second)
    taken_up.reset(0, load_init_states(first)[0])  # another episode before, in one of them only
    run_expert(taken_up, np.random.default_rng(0), max_steps=30)
    taken_up.take_up(second)
    assert taken_up.goal == own.goal == [["on", "akita_black_bowl_1", "plate_1"]]
    rollouts = []
    for simulation in (taken_up, own):
        simulation.reset(0, load_init_states(second)[1])
        rollouts.append(run_expert(simulation, np.random.default_rng(1), noise=0.1))
    np.testing.assert_array_equal(rollouts[0].states, rollouts[1].states)
    assert rollouts[0].success
    assert rollouts[1].success
    with pytest.raises(UserError, match="its scene differs"):
        own.take_up(find_task("libero_object", 0))
    taken_up.close()
    own.close()
