"""The world: exact fast steps, complete snapshots, thrifty rendering, determinism, observations."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("libero")

from statevla.errors import UserError
from statevla.robots import LIBERO, LIBERO_HAND
from statevla.worlds.gym import as_gymnasium
from statevla.worlds.libero.env import LiberoWorld
from statevla.worlds.libero.replay import fixture_poses_of_xml
from statevla.worlds.libero.simulation import Renderer, Simulation
from statevla.worlds.libero.tasks import find_task, load_init_states
from statevla.worlds.protocol import EndingWorld, ReplayableWorld, ScalableWorld, WorldWithObjects
from statevla.worlds.registry import make_world

pytestmark = pytest.mark.slow


def random_actions(count: int, seed: int = 0) -> np.ndarray:
    actions = np.random.default_rng(seed).uniform(-1, 1, (count, 7))
    actions[:, 2] -= 0.4  # downward, into contact
    actions[:, 6] = np.sign(actions[:, 6])
    actions[5:10, 3:6] = 0  # the controller then keeps its goal orientation
    return actions


@pytest.fixture(scope="module", params=[("libero_object", 6), ("libero_goal", 1)], ids=lambda p: p[0])
def simulation(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    simulation = Simulation(find_task(*request.param), initialization_noise=0.02)
    yield simulation
    simulation.close()


def test_the_first_look_leaves_the_physics_alone() -> None:
    simulation = Simulation(find_task("libero_object", 6))
    simulation.reset(3)
    before = simulation.snapshot()
    simulation.render("agentview", 32)  # makes the context, in which robosuite evaluates the dynamics
    after = simulation.snapshot()
    np.testing.assert_array_equal(before.state, after.state)
    np.testing.assert_array_equal(before.hidden, after.hidden)
    simulation.close()


def test_fast_step_equals_robosuite(simulation: Simulation) -> None:
    start = load_init_states(simulation.task)[0]
    actions = random_actions(40)

    def states_of(step) -> np.ndarray:  # type: ignore[no-untyped-def]
        simulation.reset(3, start, settle_steps=0)
        states = []
        for action in actions:
            step(action)
            states.append(simulation.state())
        return np.array(states)

    fast = states_of(simulation.step)
    exact = states_of(simulation.robosuite_env.step)
    np.testing.assert_array_equal(fast, exact)
    assert np.abs(np.diff(fast, axis=0)).max() > 1e-3


def test_snapshot_repeats_the_future_exactly(simulation: Simulation) -> None:
    actions = random_actions(40, seed=1)
    simulation.reset(4)
    for action in actions[:20]:
        simulation.step(action)
    middle = simulation.snapshot()
    for action in actions[20:]:
        simulation.step(action)
    end = simulation.state()
    simulation.reset(9)
    simulation.restore(middle)
    for action in actions[20:]:
        simulation.step(action)
    np.testing.assert_array_equal(simulation.state(), end)


def test_reset_forgets_the_episode_before(simulation: Simulation) -> None:
    simulation.reset(5)
    first = simulation.snapshot()
    for action in random_actions(30, seed=2):
        simulation.step(action)
    simulation.reset(5)
    second = simulation.snapshot()
    np.testing.assert_array_equal(first.state, second.state)
    np.testing.assert_array_equal(first.hidden, second.hidden)
    np.testing.assert_array_equal(first.fixtures, second.fixtures)


@pytest.mark.ci
def test_drawn_objects_lie_on_their_fixtures() -> None:
    task = find_task("libero_spatial", 7)  # one bowl on the stove, another one on the cabinet
    simulation = Simulation(task)

    def places(init_states: list[np.ndarray | None]) -> np.ndarray:
        drawn = []
        for seed, state in enumerate(init_states):
            simulation.reset(seed, state)
            drawn.append(simulation.object_states()[:, :3])
        return np.array(drawn)

    official = places(list(load_init_states(task)[:8]))
    ours = places([None] * 8)
    simulation.close()
    np.testing.assert_allclose(ours.mean(0), official.mean(0), atol=0.03)
    # They go with the stove, which stands elsewhere each time.
    assert np.ptp(ours, axis=0)[:, :2].max() > 0.005


def test_fixtures_are_read_back_from_the_recorded_model(simulation: Simulation) -> None:
    simulation.reset(11)
    text, poses = simulation.model_xml(), simulation.fixture_poses()
    simulation.reset(12)
    np.testing.assert_allclose(fixture_poses_of_xml(text, simulation), poses, atol=1e-5)
    assert len(poses) == 0 or np.abs(simulation.fixture_poses() - poses).max() > 1e-4
    files = re.findall(r'file="([^"]*)"', text)
    assert files
    assert all(file.startswith(("libero/libero/assets/", "robosuite/models/assets/")) for file in files)


def test_looking_does_not_disturb(simulation: Simulation) -> None:
    actions = random_actions(15, seed=3)
    ends = []
    for look in (False, True):
        simulation.reset(6)
        for action in actions:
            simulation.step(action)
            if look:
                simulation.render("eye_in_hand", 32)
                simulation.ee_position()
        ends.append(simulation.state())
    np.testing.assert_array_equal(ends[0], ends[1])


@pytest.mark.parametrize("size", [96, 128])
def test_leaving_out_what_cannot_be_seen_changes_no_pixel(simulation: Simulation, size: int) -> None:
    """Of a recorded motion, with objects that lie and objects that are pushed about."""
    simulation.reset(7)
    thrifty = Renderer(simulation.robosuite_env.sim, is_thrifty=True)
    whole = Renderer(simulation.robosuite_env.sim, is_thrifty=False)
    try:
        for action in random_actions(25, seed=4):
            simulation.step(action)
            for camera in ("agentview", "eye_in_hand"):
                np.testing.assert_array_equal(thrifty.render(camera, size), whole.render(camera, size))
        canvas = thrifty._canvases[size]
        assert canvas._drawn.mesh_facenum.sum() < 0.5 * whole._canvases[size]._drawn.mesh_facenum.sum()
    finally:
        thrifty.release()
        whole.release()


FIRST_OBSERVATION = """
import hashlib
from statevla.worlds import make_world
world = make_world("libero_object", task=6, image_size=64)
world.reset(2, {"init_state_index": 5})
seen = world.observe()
digest = hashlib.sha256()
for values in (*seen.robot_state.values(), *seen.images.values()):
    digest.update(values.tobytes())
print("digest", digest.hexdigest())
"""


@pytest.fixture(scope="module")
def world() -> Iterator[LiberoWorld]:
    world = LiberoWorld(find_task("libero_object", 6), image_size=64)
    yield world
    world.close()


@pytest.mark.ci
def test_first_observation_is_the_same_in_another_process(world: LiberoWorld) -> None:
    world.reset(1)
    for action in random_actions(10, seed=5):
        world.step(action)
    world.reset(2, {"init_state_index": 5})
    seen = world.observe()
    digest = hashlib.sha256()
    for values in (*seen.robot_state.values(), *seen.images.values()):
        digest.update(values.tobytes())
    done = subprocess.run([sys.executable, "-c", FIRST_OBSERVATION], capture_output=True, text=True, check=True)
    assert f"digest {digest.hexdigest()}" in done.stdout


@pytest.mark.ci
def test_observation_is_named_and_upright(world: LiberoWorld) -> None:
    observation = world.reset(0, {"init_state_index": 0})
    assert not world.success()
    assert not observation.images
    assert observation.instruction == "pick up the butter and place it in the basket"
    seen = world.observe()
    assert {name: image.shape for name, image in seen.images.items()} == {
        "agentview": (64, 64, 3),
        "eye_in_hand": (64, 64, 3),
    }
    # The floor is bright and the far wall dark; in the wrist camera the fingers are at the bottom.
    agentview = seen.images["agentview"].mean(-1)
    assert agentview[-8:].mean() > agentview[:8].mean() + 20
    wrist = seen.images["eye_in_hand"].mean(-1)
    assert wrist[-4:].mean() < wrist[:4].mean()


def test_it_reports_every_declared_state_field(world: LiberoWorld) -> None:
    seen = world.reset(0, {"init_state_index": 0}).robot_state
    assert {name: values.shape for name, values in seen.items()} == {
        field.name: (field.size,) for field in LIBERO.state
    }
    world.simulation.ee_position()  # brings positions up to the state; robosuite's are one substep behind
    robosuite_sees = world.simulation.robosuite_env._get_observations(force_update=True)
    np.testing.assert_allclose(seen["joint_positions"], robosuite_sees["robot0_joint_pos"])
    np.testing.assert_allclose(seen["finger_positions"], robosuite_sees["robot0_gripper_qpos"])
    np.testing.assert_allclose(seen["hand_position"], robosuite_sees["robot0_eef_pos"], atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(seen["hand_orientation"]), np.pi, atol=0.2)  # it points down
    # Two policies see their parts of it.
    assert LIBERO.policy_state(seen, "test").shape == (9,)
    hand = LIBERO_HAND.policy_state(seen, "test")
    np.testing.assert_array_equal(
        hand, np.r_[seen["hand_position"], seen["hand_orientation"], seen["finger_positions"]]
    )


def test_it_offers_what_a_world_may_offer(world: LiberoWorld) -> None:
    assert isinstance(world, ReplayableWorld)
    assert isinstance(world, ScalableWorld)
    assert isinstance(world, WorldWithObjects)
    assert not isinstance(world, EndingWorld)
    world.reset(3, {"init_state_index": 1})
    first, state = world.observe(), world.state()
    for action in random_actions(10, seed=6):
        world.step(action)
    moved = world.observe()
    assert not np.array_equal(moved.images["agentview"], first.images["agentview"])
    world.set_state(state)
    again = world.observe()
    for camera in LIBERO.camera_names:
        np.testing.assert_array_equal(again.images[camera], first.images[camera])
    assert world.draw("agentview", 96).shape == (96, 96, 3)
    assert world.object_poses()["butter_1"].shape == (7,)


def test_it_is_a_gymnasium_environment(world: LiberoWorld) -> None:
    env = as_gymnasium(world, images=False)
    seen, info = env.reset(seed=0, options={"init_state_index": 0})
    assert env.observation_space.contains(seen)
    assert info == {"success": False, "num_steps": 0}
    assert (env.action_space.low.tolist(), env.action_space.high.tolist()) == ([-1.0] * 7, [1.0] * 7)
    env.num_steps = world.max_steps - 1
    _, reward, terminated, truncated, info = env.step(np.zeros(7))
    assert (reward, terminated, truncated, info["num_steps"]) == (0.0, False, True, world.max_steps)
    assert env.render().shape == (64, 64, 3)


def test_wide_states_are_chosen_when_the_world_is_made(world: LiberoWorld) -> None:
    wide = make_world("libero_object", task=6, image_size=32, init_states="wide")
    places = [w.reset(0, {"init_state_index": 4}) and w.object_poses()["butter_1"] for w in (wide, world)]
    told = world.reset(0, {"init_state_index": 4, "init_states": "wide"}) and world.object_poses()["butter_1"]
    np.testing.assert_array_equal(places[0], told)
    assert np.abs(places[0] - places[1]).max() > 0.01
    wide.close()


def test_wrong_options(world: LiberoWorld) -> None:
    with pytest.raises(UserError, match="states 0 to 49"):
        world.reset(0, {"init_state_index": 50})
    with pytest.raises(UserError, match="'init_index'"):
        world.reset(0, {"init_index": 3})
    with pytest.raises(UserError, match="got shape \\[5\\]"):
        world.reset(0, {"init_state": np.zeros(5)})
    with pytest.raises(UserError, match="camera 'front'"):
        LiberoWorld(world.task, cameras=("front",))
