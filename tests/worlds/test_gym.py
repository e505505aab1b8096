"""Gymnasium environments as worlds, and worlds as gymnasium environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium")

import gymnasium
from gymnasium.utils.env_checker import check_env

from statevla.errors import UserError
from statevla.robots import ImageOrientation
from statevla.worlds.gym import GymWorld, as_gymnasium
from statevla.worlds.protocol import EndingWorld, ReplayableWorld, World
from statevla.worlds.registry import open_suite
from toy_worlds import DOT, MAX_STEPS, DotEnv, DotWorld, FallingDotWorld


def changed(**changes: Any) -> DotEnv:
    """A `DotEnv` with other attributes; those that are None are missing."""
    return type("Changed", (DotEnv,), changes)()


def robot(**changes: Any) -> Any:
    return DotEnv.robot.model_copy(update=changes)


def test_an_environment_is_a_world() -> None:
    world = GymWorld(DotEnv(), "dots")
    assert isinstance(world, World)
    assert isinstance(world, EndingWorld)
    assert not isinstance(world, ReplayableWorld)
    first = world.reset(4)
    assert not first.images
    again = GymWorld(DotEnv(), "dots").reset(4)
    np.testing.assert_array_equal(first.robot_state["place"], again.robot_state["place"])
    assert not np.array_equal(world.reset(5).robot_state["place"], first.robot_state["place"])
    before = world.observe()
    assert before.images["top"].shape == (48, 64, 3)
    assert before.instruction == "move the dot onto the square"
    world.step(np.array([1.0, 0.0]))
    np.testing.assert_allclose(world.observe().robot_state["place"] - before.robot_state["place"], [0.1, 0], atol=1e-6)
    assert not world.success()
    for _ in range(60):
        world.step(np.clip((world.env.goal - world.env.dot) * 10, -1, 1))
        if world.success():
            break
    assert world.success()
    assert world.over()


def test_declarations_are_found_through_wrappers_and_registration() -> None:
    gymnasium.register("Dot-v0", entry_point=lambda: changed(max_steps=None), max_episode_steps=7)
    try:
        world = GymWorld(gymnasium.make("Dot-v0"), "dots")
    finally:
        del gymnasium.registry["Dot-v0"]
    assert world.max_steps == 7
    world.reset(0)
    for _ in range(7):
        assert not world.over()
        world.step(np.zeros(2, np.float32))
    assert world.over()
    assert not world.success()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"robot": None}, r"does not say what its actions, state and cameras are; give it an attribute 'robot'"),
        ({"robot": "dott"}, r"robot 'dott': .*known are libero"),
        ({"robot": {"name": "dot"}}, r"control_freq_hz: field required; add it"),
        ({"instruction": None}, r"expected the task in words as attribute 'instruction', got None; add it"),
        ({"instruction": " "}, r"expected the task in words as attribute 'instruction'"),
        ({"max_steps": None}, r"expected a number of control steps as attribute 'max_steps'"),
        ({"max_steps": 0}, r"expected a number of control steps .*got 0"),
        ({"success_from": "reward"}, r"success_from: expected info or termination, got 'reward'"),
        ({"robot": DOT}, r"declares 3 action numbers .* action_space has shape \(2,\); let them agree"),
    ],
)
def test_a_missing_declaration_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        GymWorld(changed(**changes), "dots")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": (DOT.cameras[1],)}, r"no picture of camera 'side' in the observation, it has pixels.top \[48, 64"),
        (
            {"state": DOT.state},
            r"robot 'dot_env' declares 3 state numbers \(place \(2\), lamp \(1\)\), 'agent_pos' has 2",
        ),
        ({"state": (DOT.state[0].model_copy(update={"key": "agent"}),)}, r"no state field 'place' in the observation"),
        ({"state": (DOT.state[0].model_copy(update={"key": "agent_pos[0:1]"}),)}, r"has 2 numbers \(x, y\).* has 1"),
    ],
)
def test_what_the_observation_lacks_is_named(changes: dict[str, Any], message: str) -> None:
    world = GymWorld(changed(robot=robot(**changes)), "dots")
    with pytest.raises(UserError, match=message):
        [world.reset(0), world.observe()]


def test_success_is_never_guessed() -> None:
    class Silent(DotEnv):
        def step(self, action: np.ndarray) -> Any:
            return (*super().step(action)[:2], True, False, {"distance": 0.1})

    world = GymWorld(Silent(), "dots")
    world.reset(0)
    with pytest.raises(UserError, match=r"no 'success' or 'is_success', it has distance; add info\['success'\]"):
        world.step(np.zeros(2))
    ended = GymWorld(type("Ended", (Silent,), {"success_from": "termination"})(), "dots")
    ended.reset(0)
    ended.step(np.zeros(2))
    assert ended.over()
    assert not ended.success()  # terminated, without a reward
    lucky = GymWorld(type("Lucky", (Silent,), {"success_from": "termination"})(), "dots")
    lucky.reset(0)
    lucky.env.goal = lucky.env.dot
    lucky.step(np.zeros(2))
    assert lucky.success()


def test_observations_must_be_named() -> None:
    world = GymWorld(type("Bare", (DotEnv,), {"look": lambda self: np.zeros(3)})(), "dots")
    with pytest.raises(UserError, match="expected observations as a mapping with pictures and state, got ndarray"):
        world.reset(0)


def test_keys_orientation_and_several_fields() -> None:
    fields = (
        DOT.state[0].model_copy(update={"key": "agent_pos[0:2]"}),
        DOT.state[1].model_copy(update={"key": "agent_pos[2:3]"}),
    )
    camera = DOT.cameras[0].model_copy(
        update={"name": "above", "key": "pixels.top", "orientation": ImageOrientation.FLIPPED_VERTICALLY}
    )

    class Keyed(DotEnv):
        def look(self) -> Mapping[str, Any]:
            seen = super().look()
            return {**seen, "agent_pos": np.array([*seen["agent_pos"], 1.0])}

    keyed = type("KeyedEnv", (Keyed,), {"robot": robot(state=fields, cameras=(camera,))})()
    world = GymWorld(keyed, "dots")
    world.reset(2)
    seen = world.observe()
    assert seen.robot_state["lamp"] == [1.0]
    np.testing.assert_array_equal(seen.images["above"], keyed.look()["pixels"]["top"][::-1])
    # The same fields without keys are one array in the declared order.
    flat = type("FlatEnv", (Keyed,), {"robot": robot(state=DOT.state)})()
    flat_seen = GymWorld(flat, "dots").reset(2)
    np.testing.assert_array_equal(flat_seen.robot_state["place"], seen.robot_state["place"])
    np.testing.assert_array_equal(flat_seen.robot_state["lamp"], [1.0])


# Worlds as environments -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_world_is_an_environment() -> None:
    env = as_gymnasium(DotWorld(image_size=24))
    check_env(env, skip_render_check=True)
    assert env.metadata["render_fps"] == 30.0
    assert env.action_space.shape == (3,)
    np.testing.assert_array_equal(env.action_space.low, [-1, -1, 0])
    seen, info = env.reset(seed=3)
    assert info == {"success": False, "num_steps": 0}
    assert {name: image.shape for name, image in seen["images"].items()} == {"top": (24, 24, 3), "side": (24, 24, 3)}
    assert env.render().shape == (24, 24, 3)
    for step in range(1, MAX_STEPS + 1):
        seen, reward, terminated, truncated, info = env.step(np.array([0, 0, 1]))
        assert (reward, terminated, truncated, info["num_steps"]) == (0.0, False, step == MAX_STEPS, step)
    env.world.dot = env.world.goal.copy()
    assert env.step(np.array([0, 0, 1]))[1:3] == (1.0, True)


def test_an_environment_without_images_draws_when_asked() -> None:
    env = as_gymnasium(DotWorld(), images=False)
    seen, _ = env.reset(seed=3)
    env.step(env.action_space.sample())
    assert list(seen) == ["robot_state"]
    assert env.world.num_frames == 0
    assert env.world.observe().images["top"].shape == (32, 32, 3)
    falling = as_gymnasium(FallingDotWorld(), images=False)
    falling.reset(seed=0)
    assert falling.step(falling.action_space.sample())[2]


def test_there_and_back_is_the_same_world() -> None:
    """As an environment a world declares all that makes it a world again."""
    plain, around = DotWorld(), GymWorld(as_gymnasium(DotWorld()), "dots")
    assert around.robot is DOT
    assert (around.instruction, around.max_steps) == (plain.instruction, plain.max_steps)
    for world in (plain, around):
        world.reset(7)
        for action in np.random.default_rng(0).uniform(-1, 1, (5, 3)).astype(np.float32):
            world.step(action)
    one, two = plain.observe(), around.observe()
    for name in DOT.camera_names:
        np.testing.assert_array_equal(one.images[name], two.images[name])
    np.testing.assert_allclose(one.robot_state["place"], two.robot_state["place"])


def test_a_class_is_a_factory() -> None:
    suite = open_suite("toy_worlds:DotEnv")
    assert suite.robot.name == "dot_env"
    assert suite.tasks[0].max_steps == MAX_STEPS
    world = suite.make(suite.tasks[0], 128, ())
    world.reset(0)
    assert not world.observe().images
    with pytest.raises(UserError, match="no camera 'side', it has top"):
        suite.make(suite.tasks[0], 128, ("side",))
