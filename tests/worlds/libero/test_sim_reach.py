"""Reaches: what a scene affords, where they end, and that they are trained on but not measured by."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("libero")

from statevla.config import Config, config_from_dict
from statevla.data import (
    ChunkDataset,
    TransitionDataset,
    open_frame_cache,
    partial_episodes,
    split_episodes,
)
from statevla.errors import UserError
from statevla.robots.libero import Gripper
from statevla.transforms import Transform
from statevla.types import ReachKind
from statevla.worlds.collect import collect
from statevla.worlds.libero.episodes import CollectSettings, make_simulation, run_episode
from statevla.worlds.libero.placement import eccentricity
from statevla.worlds.libero.reach import SEEN_STEPS, afforded_tasks, run_reach
from statevla.worlds.libero.simulation import Simulation
from statevla.worlds.libero.tasks import find_task

SETTINGS = CollectSettings("libero_object", seed=1, wide=True, reaches="start", image_size=32)


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return make_simulation(find_task("libero_object", 3))


def test_a_scene_affords_the_tasks_whose_things_it_has(simulation: Simulation) -> None:
    tasks = afforded_tasks(simulation, range(10))
    assert tasks[0] == simulation.task
    assert len(tasks) == 6  # of the ten objects, every scene holds six
    for task in tasks:
        assert task.name.removeprefix("pick_up_the_").removesuffix("_and_place_it_in_the_basket") + "_1" in (
            simulation.object_names
        )
    assert [task.index for task in afforded_tasks(simulation, (0, 1, 5))] == [3, 0, 1]  # its own, and no tomato sauce
    with pytest.raises(UserError, match=r"its scene lacks what .*stove"):
        simulation.pursue([["turnon", "flat_stove_1"]])


def test_the_same_goal_in_other_words_belongs_to_another_scene() -> None:
    simulation = make_simulation(find_task("libero_spatial", 0))
    assert afforded_tasks(simulation, range(10)) == [simulation.task]
    simulation.close()


def test_a_reach_ends_at_what_its_instruction_names(simulation: Simulation) -> None:
    asked = set()
    for index in range(4):
        episode = run_episode(simulation, SETTINGS, index)
        rollout = episode.rollout
        assert episode.is_kept
        assert episode.seen_steps == SEEN_STEPS
        assert simulation.goal == simulation.task.goal
        closing = int(np.argmax(rollout.actions[:, -1] == Gripper.CLOSE))
        assert len(rollout) == closing + 5
        simulation.restore(rollout.start)
        simulation.set_state(rollout.states[closing])
        places = dict(zip(simulation.object_names, simulation.object_states()[:, :2]))
        nearest = min(places, key=lambda name: float(np.linalg.norm(places[name] - simulation.ee_position()[:2])))
        assert nearest.removesuffix("_1").replace("_", " ") in episode.instruction
        asked.add(episode.instruction)
    assert len(asked) > 1


def test_mixed_reaches_go_to_the_goal_and_some_begin_beside_the_object(simulation: Simulation) -> None:
    rng, beside, windows = np.random.default_rng(0), [], set()
    (name,) = (predicate[1] for predicate in simulation.task.goal)
    for seed in range(8):
        simulation.reset(seed)
        reach = run_reach(simulation, [simulation.task], "mixed", rng, 0.1)
        assert reach.seen_steps is not None
        assert set(SEEN_STEPS) <= set(reach.seen_steps)
        if reach.is_kept:
            windows.add(reach.seen_steps)
            assert reach.rollout.success
            closing = int(np.argmax(reach.rollout.actions[:, -1] == Gripper.CLOSE))
            before = sum(SEEN_STEPS[-1] < step <= closing for step in reach.seen_steps)
            after = sum(step > closing for step in reach.seen_steps)
            assert before > 0 or closing <= SEEN_STEPS[-1]
            assert after > 0
            assert reach.seen_steps[-1] < len(reach.rollout)
        simulation.restore(reach.rollout.start)
        place = simulation.object_states()[simulation.object_names.index(name), :2]
        beside.append(float(np.linalg.norm(place - simulation.ee_position()[:2])) < 0.08)
    assert 0 < sum(beside) < len(beside)
    assert len(windows) > 2


def test_outer_reaches_go_to_the_rim_of_the_table(simulation: Simulation) -> None:
    far: dict[ReachKind, list[float]] = {"start": [], "outer": []}
    for kind, found in far.items():
        for index in range(6):
            reach = run_episode(simulation, replace(SETTINGS, reaches=kind), index)
            assert reach.seen_steps == SEEN_STEPS
            simulation.restore(reach.rollout.start)
            asked = reach.instruction.removeprefix("pick up the ").removesuffix(" and place it in the basket")
            name = asked.replace(" ", "_") + "_1"
            found.append(eccentricity(simulation.object_states()[simulation.object_names.index(name), :2]))
    assert min(far["outer"]) > 0.75
    assert min(far["start"]) < 0.5


def test_missed_reaches_begin_beside_the_object_and_end_at_it(simulation: Simulation) -> None:
    rng, kept = np.random.default_rng(0), 0
    (name,) = (predicate[1] for predicate in simulation.task.goal)
    for seed in range(4):
        simulation.reset(seed)
        reach = run_reach(simulation, [simulation.task], "missed", rng, 0.1)
        closing = int(np.argmax(reach.rollout.actions[:, -1] == Gripper.CLOSE))
        off = []
        for state in (reach.rollout.states[0], reach.rollout.states[closing]):
            simulation.restore(reach.rollout.start)
            simulation.set_state(state)
            place = simulation.object_states()[simulation.object_names.index(name), :2]
            off.append(float(np.linalg.norm(place - simulation.ee_position()[:2])))
        assert off[0] < 0.12, "hand and object start near each other"
        if reach.is_kept:
            kept += 1
            assert reach.seen_steps is not None
            assert set(SEEN_STEPS) < set(reach.seen_steps)
            assert reach.seen_steps[-1] < len(reach.rollout) == closing + 5
            assert off[1] < off[0]
    assert kept >= 3


def test_frames_anywhere_in_a_reach(simulation: Simulation) -> None:
    rng, firsts = np.random.default_rng(0), []
    for seed in range(4):
        simulation.reset(seed)
        reach = run_reach(simulation, [simulation.task], "any", rng, 0.1)
        assert reach.is_kept
        assert reach.seen_steps is not None
        assert np.diff(reach.seen_steps).tolist() == np.diff(SEEN_STEPS).tolist()
        assert reach.seen_steps[-1] < len(reach.rollout)
        firsts.append(reach.seen_steps[0])
    assert len(set(firsts)) > 1
    simulation.close()


def config_for(path: Path, cache: Path) -> Config:
    tree = {
        "model": {"image_size": 32, "stem": {"kind": "patch", "patch_size": 8}, "language_dim": 4},
        "data": {"path": str(path), "cache_dir": str(cache)},
        "training": {"phase1": {"frame_skip": 4, "num_frames": 4, "loss": {"keyframe_weight": 1.0}}},
    }
    return config_from_dict(tree, "test")


def test_reaches_are_windows_to_train_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (summary,) = collect(SETTINGS, [3], 2, tmp_path / "reaches")
    assert summary.file.name.endswith("_reach.hdf5")
    config = config_for(tmp_path / "reaches", tmp_path / "cache")
    # Room for the frames that there are, not for one at every step.
    room, usage = 2 * len(SEEN_STEPS) * 2 * 32 * 32 * 3, shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=room - 1))
    with pytest.raises(UserError, match="make room"):
        open_frame_cache(config, progress=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=room))
    cache = open_frame_cache(config, progress=False)
    assert split_episodes(cache, 0.9, 0) == ([], [])
    assert partial_episodes(cache) == [0, 1]
    transform = Transform(config.model, cache.statistics([0, 1]), cache.robot)
    table = torch.zeros(len(cache.instructions), 4)
    windows = TransitionDataset(cache, [0, 1], config.training.phase1, transform, table)
    starts = torch.tensor([episode.start for episode in cache.episodes])
    assert torch.equal(windows.frame_indices_of(torch.arange(len(windows))), starts)
    assert (windows.count_of([0, 1]), windows.count_of([1]), windows.count_of([])) == (2, 1, 0)
    batch = windows.gather(torch.arange(2))
    assert batch.keyframe_is_known is not None
    assert batch.keyframe_is_known.all()
    hand = cache.robot_states["hand_position"]
    for row, episode in enumerate(cache.episodes):
        closing = episode.start + int(np.argmax(cache.actions[episode.start : episode.stop, -1] > 0))
        np.testing.assert_allclose(batch.keyframe[row, 0], (hand[closing] - hand[episode.start]) / 0.1, atol=1e-5)  # type: ignore[index]
    chunks = ChunkDataset(cache, [0, 1], 10, transform, table)
    expected = (starts[:, None] + torch.tensor(SEEN_STEPS)).flatten()
    assert torch.equal(chunks.frame_indices_of(torch.arange(len(chunks))), expected)
    pictures = cache.frames(np.arange(cache.num_frames)).flatten(1).float().mean(1)
    assert ((pictures > 20).numpy() == cache.is_seen).all()  # what was not drawn is black
