"""The environment: exact fast steps, complete snapshots, culled rendering, determinism, observations."""

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
from statevla.types import RobotStateLayout
from statevla.worlds.libero.env import LiberoEnv
from statevla.worlds.libero.replay import fixture_poses_of_xml
from statevla.worlds.libero.simulation import Simulation
from statevla.worlds.libero.tasks import find_task, load_init_states

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


@pytest.mark.parametrize("camera", ["agentview", "eye_in_hand"])
def test_culling_changes_no_pixel(simulation: Simulation, camera: str) -> None:
    simulation.reset(7)
    hidden = 0
    for action in random_actions(12, seed=4):
        simulation.step(action)
        simulation.renderer.cull = True
        culled = simulation.render(camera, 96)
        name = {"agentview": "agentview", "eye_in_hand": "robot0_eye_in_hand"}[camera]
        hidden += len(simulation.renderer._outside_view(simulation.model.camera(name).id))
        simulation.renderer.cull = False
        np.testing.assert_array_equal(culled, simulation.render(camera, 96))
    simulation.renderer.cull = True
    assert camera == "agentview" or hidden > 0


FIRST_OBSERVATION = """
import hashlib
from statevla.worlds.libero.env import LiberoEnv
from statevla.worlds.libero.tasks import find_task
env = LiberoEnv(find_task("libero_object", 6), image_size=64)
env.reset(seed=2, options={"init_state_index": 5})
seen = env.observe()
digest = hashlib.sha256(seen.robot_state.tobytes())
for image in seen.images.values():
    digest.update(image.tobytes())
print("digest", digest.hexdigest())
"""


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    env = LiberoEnv(find_task("libero_object", 6), image_size=64)
    yield env
    env.close()


@pytest.mark.ci
def test_first_observation_is_the_same_in_another_process(env: LiberoEnv) -> None:
    env.reset(seed=1)
    for action in random_actions(10, seed=5):
        env.step(action)
    env.reset(seed=2, options={"init_state_index": 5})
    seen = env.observe()
    digest = hashlib.sha256(seen.robot_state.tobytes())
    for image in seen.images.values():
        digest.update(image.tobytes())
    done = subprocess.run([sys.executable, "-c", FIRST_OBSERVATION], capture_output=True, text=True, check=True)
    assert f"digest {digest.hexdigest()}" in done.stdout


@pytest.mark.ci
def test_observation_is_named_and_upright(env: LiberoEnv) -> None:
    observation, info = env.reset(seed=0, options={"init_state_index": 0})
    assert info == {"success": False}
    assert not observation.images
    assert observation.instruction == "pick up the butter and place it in the basket"
    seen = env.observe()
    assert {name: image.shape for name, image in seen.images.items()} == {
        "agentview": (64, 64, 3),
        "eye_in_hand": (64, 64, 3),
    }
    # The floor is bright and the far wall dark; in the wrist camera the fingers are at the bottom.
    agentview = seen.images["agentview"].mean(-1)
    assert agentview[-8:].mean() > agentview[:8].mean() + 20
    wrist = seen.images["eye_in_hand"].mean(-1)
    assert wrist[-4:].mean() < wrist[:4].mean()


def test_robot_state_layouts(env: LiberoEnv) -> None:
    env.reset(seed=0, options={"init_state_index": 0})
    joints = env.robot_state()
    assert joints.shape == (9,)
    env.simulation.ee_position()  # brings positions up to the state; robosuite's are one substep behind
    robosuite_sees = env.simulation.robosuite_env._get_observations(force_update=True)
    np.testing.assert_allclose(joints[:7], robosuite_sees["robot0_joint_pos"])
    np.testing.assert_allclose(joints[7:], robosuite_sees["robot0_gripper_qpos"])
    env.robot_state_layout = RobotStateLayout.EE_GRIPPER
    hand = env.robot_state()
    env.robot_state_layout = RobotStateLayout.JOINT_GRIPPER
    assert hand.shape == (8,)
    np.testing.assert_allclose(hand[:3], robosuite_sees["robot0_eef_pos"], atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(hand[3:6]), np.pi, atol=0.2)  # it points down


def test_step_limit_truncates(env: LiberoEnv) -> None:
    env.reset(seed=0, options={"init_state_index": 0})
    env.num_steps = env.task.max_steps - 1
    _, reward, terminated, truncated, info = env.step(np.zeros(7))
    assert (reward, terminated, truncated, info["num_steps"]) == (0.0, False, True, env.task.max_steps)


def test_wrong_options(env: LiberoEnv) -> None:
    with pytest.raises(UserError, match="states 0 to 49"):
        env.reset(options={"init_state_index": 50})
    with pytest.raises(UserError, match="'init_index'"):
        env.reset(options={"init_index": 3})
    with pytest.raises(UserError, match="got shape \\[5\\]"):
        env.reset(options={"init_state": np.zeros(5)})
    with pytest.raises(UserError, match="camera 'front'"):
        LiberoEnv(env.task, cameras=("front",))
