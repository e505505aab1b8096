"""Robots of every kind, from their data set to the policy's answers: no number is taken for what nobody declared.

Having as many numbers as another robot means nothing: seven joints are no hand with a gripper, eight numbers of state
are no hand with fingers, and the last number of an action is no gripper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lerobot_files import Dataset, Episode, write_dataset
from robot_files import BENCH, bench_config
from statevla.acting.policy import StateVLAPolicy
from statevla.config import Config, config_from_dict
from statevla.data import open_frame_cache, open_reader
from statevla.data.inspect import inspect_dataset
from statevla.data.keyframes import next_keyframes
from statevla.errors import UserError
from statevla.robots import KNOWN_ROBOTS, ImageOrientation
from statevla.training.run import train
from statevla.training.setup import prepare
from statevla.transforms import Transform
from statevla.types import Observation

STATE, ACTION = "observation.state", "action"
JOINTS = [f"joint_{i}" for i in range(1, 8)]
ARM = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"]
ALOHA = [f"{side}_{dim}" for side in ("left", "right") for dim in (*ARM, "gripper")]
SO101 = [f"{dim}.pos" for dim in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")]
G1 = list(KNOWN_ROBOTS["unitree_g1"].action_names)
DROID = {
    "name": "droid",
    "control_freq_hz": 15,
    "actions": [
        {"name": "arm", "dims": JOINTS, "state": "arm"},
        {"name": "gripper", "dims": ["gripper"], "low": 0, "high": 1, "state": "gripper", "role": "gripper"},
    ],
    "state": [
        {"name": "arm", "dims": JOINTS, "units": "rad"},
        {"name": "gripper", "dims": ["gripper"], "role": "gripper_opening"},
    ],
    "cameras": [{"name": "outside", "key": "observation.images.top"}],
}


@dataclass(frozen=True)
class Case:
    """A data set as somebody recorded it.

    Attributes:
        names: of the numbers of an action and of the state, as the data set says them.
        num_actions, num_state: how many there are.
        openings: numbers that run from 0 to 1, as a gripper's opening does; the others are angles.
        robot: declaration that is given; None for none.
        relative: `data.relative_actions`.
        orientation: `data.orientation`; cameras named as LIBERO's have to be told.
    """

    names: Any
    num_actions: int
    num_state: int
    openings: Sequence[int] = ()
    robot: str | dict[str, Any] | None = None
    relative: str = "none"
    keys: tuple[str, str] = (STATE, ACTION)
    orientation: str = "auto"
    written: dict[str, Any] = field(default_factory=dict)


CASES = {
    "pusht": Case(
        {"motors": ["motor_0", "motor_1"]}, 2, 2, written={"cameras": ("observation.image",), "version": "v2.1"}
    ),
    "six_joints": Case(SO101, 6, 6, (5,), written={"robot_type": "so101_follower", "fps": 30, "version": "v2.1"}),
    "so101": Case(SO101, 6, 6, (5,), "so101", "all", written={"robot_type": "so101_follower", "fps": 30}),
    "seven_joints_and_no_gripper": Case(JOINTS, 7, 7),
    "opening_from_0_to_1": Case([*"xyzabc", "gripper"], 7, 9, (6,)),
    "two_arms": Case([ALOHA], 14, 14, (6, 13), written={"robot_type": "some_aloha", "fps": 50, "version": "v2.1"}),
    "aloha": Case([ALOHA], 14, 14, (6, 13), "aloha", written={"robot_type": "aloha", "fps": 50}),
    "unitree_g1": Case(
        [G1],
        26,
        26,
        (24, 25),
        written={"robot_type": "Unitree_G1_Inspire", "fps": 30, "version": "v2.1", "codec": "libsvtav1"},
    ),
    "eight_numbers": Case({"axes": [*JOINTS, "gripper"]}, 8, 8, (7,), written={"fps": 15, "version": "v2.1"}),
    "droid": Case({"axes": [*JOINTS, "gripper"]}, 8, 8, (7,), DROID, "all", written={"fps": 15}),
    "openpi_keys": Case(
        None,
        7,
        8,
        (6,),
        keys=("state", "actions"),
        orientation="upright",
        written={"cameras": ("image", "wrist_image"), "pictures": True},
    ),
    "three_cameras": Case(
        ["x", "y", "z"], 3, 3, written={"cameras": ("observation.images.a", "observation.images.b", "c")}
    ),
}
HORIZON = 4


def recorded(case: Case) -> Dataset:
    """Four episodes of angles around 40 and openings around a half, in both cases never twice the same."""
    rng = np.random.default_rng(len(case.keys[0]) + case.num_actions)

    def numbers(steps: int, dims: int) -> np.ndarray:
        values = rng.uniform(20, 60, (steps, dims))
        openings = [dim for dim in case.openings if dim < dims]
        values[:, openings] = rng.uniform(0.05, 0.95, (steps, len(openings)))
        return values

    state_key, action_key = case.keys
    episodes = [
        Episode({state_key: numbers(n, case.num_state), action_key: numbers(n, case.num_actions)})
        for n in (12, 9, 11, 8)
    ]
    return Dataset({state_key: case.names, action_key: case.names}, episodes, **case.written)


def configured(config: Config, folder: Path, case: Case, data: Dataset) -> Config:
    """A tiny model for the case, whose data set is written into `folder`."""
    write_dataset(folder / "data", data)
    np.savez(folder / "language.npz", **{"push the block": np.ones(16, np.float32)})
    robot = "auto" if case.robot is None else case.robot
    if isinstance(robot, dict):
        (folder / "robot.yaml").write_text(yaml.safe_dump(robot))
        robot = str(folder / "robot.yaml")
    tree = config.model_dump(mode="json")
    tree["model"] |= {"action_dim": "auto", "robot_state_dim": "auto", "cameras": "auto", "action_seq_len": HORIZON}
    tree["data"] |= {"path": str(folder / "data"), "cache_dir": str(folder), "robot": robot, "train_split": 1.0}
    tree["data"] |= {"relative_actions": case.relative, "orientation": case.orientation}
    tree["language"]["encoder"] = str(folder / "language.npz")
    tree["training"]["bc"] |= {"max_steps": 2}
    tree["output_dir"] = str(folder / "runs")
    return config_from_dict(tree, "test")


@pytest.mark.parametrize("name", CASES)
def test_every_number_is_learnt_and_answered_as_it_was_recorded(tiny_config: Config, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    data = recorded(case)
    config = configured(tiny_config, tmp_path, case, data)
    setup = prepare(config, "bc")
    robot, transform = setup.model.robot, setup.transform
    assert not robot.is_binary.any()
    assert (robot.action_dim, robot.state_dim) == (case.num_actions, case.num_state)
    assert {camera.orientation for camera in robot.cameras} == {ImageOrientation.UPRIGHT}
    assert (robot.field_with_role("hand_position"), robot.control_freq_hz) == (None, data.fps)
    check_targets(setup.train, transform, data)
    check_keyframes(config, transform, case, data)
    policy = StateVLAPolicy.from_pretrained(train(config, "bc"), device="cpu")
    assert "gripper classifier" not in dict(policy.model.parameter_table())
    check_answers(policy, data)


def check_targets(samples: Any, transform: Transform, data: Dataset) -> None:
    """What is trained on are the recorded actions, every one; what is seen is the recorded state."""
    state_key, action_key = list(data.episodes[0].columns)
    items = torch.arange(len(samples))
    batch = samples.gather(items)
    frames = samples.frame_indices_of(items)
    states = np.concatenate([episode.columns[state_key] for episode in data.episodes]).astype(np.float32)
    raw = transform.targets_to_chunks(batch.actions, torch.from_numpy(states)[frames]).numpy()
    actions = np.concatenate([episode.columns[action_key] for episode in data.episodes]).astype(np.float32)
    stops = np.cumsum([len(episode) for episode in data.episodes])
    for item, frame in enumerate(frames.tolist()):
        last = stops[np.searchsorted(stops, frame, side="right")] - 1
        # Past the end of an episode absolute targets hold the last.
        steps = np.minimum(np.arange(frame, frame + HORIZON), last)
        np.testing.assert_allclose(raw[item], actions[steps], rtol=1e-4, atol=1e-4)
    expected = (states - states.mean(0)) / states.std(0)
    np.testing.assert_allclose(batch.observation.robot_state, expected[frames], rtol=1e-3, atol=1e-3)


def check_keyframes(config: Config, transform: Transform, case: Case, data: Dataset) -> None:
    """Joints are no metres: a keyframe is the whole state, normalised, where something happens next."""
    cache = open_frame_cache(config, progress=False)
    keyframes, known = next_keyframes(cache, transform)
    assert keyframes.shape == (cache.num_frames, case.num_state)
    assert known.all()
    states = transform.normalize_robot_state(torch.from_numpy(cache.robot_state)).numpy()
    grippers = cache.robot.gripper_dims()
    for episode in cache.episodes:
        own, last = slice(episode.start, episode.stop), episode.stop - 1
        np.testing.assert_array_equal(keyframes[last], states[last])
        if not grippers:  # Motion without a pause: the only event is the end.
            np.testing.assert_array_equal(keyframes[own], np.tile(states[last], (episode.num_steps, 1)))
    assert sorted(grippers) == (sorted(case.openings) if case.robot else [])


def check_answers(policy: StateVLAPolicy, data: Dataset) -> None:
    """Answers are of the size of the recorded actions, and none of their numbers has two values only."""
    state_key, action_key = list(data.episodes[0].columns)
    rng = np.random.default_rng(1)
    seen = []
    for state in data.episodes[0].columns[state_key][:8]:
        images = {camera: rng.integers(0, 256, (24, 40, 3), dtype=np.uint8) for camera in policy.robot.camera_names}
        seen.append(Observation(images, policy.robot.named_state(state, "test"), "push the block"))
    chunks = np.stack([answer.actions for answer in policy.act_chunk(seen)]).reshape(-1, policy.robot.action_dim)
    actions = np.concatenate([episode.columns[action_key] for episode in data.episodes])
    low, high = actions.min(0) - 1e-4, actions.max(0) + 1e-4
    assert ((low <= chunks) & (chunks <= high)).all()
    assert min(len(np.unique(values)) for values in chunks.T) > len(chunks) // 3


# What numbers and names do not say ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_actions", "num_state"), [(1, 1), (2, 2), (6, 7), (7, 7), (7, 8), (7, 9), (8, 8), (14, 16)]
)
@pytest.mark.parametrize("named", [True, False])
def test_numbers_of_any_count_are_one_continuous_group(
    tmp_path: Path, num_actions: int, num_state: int, named: bool
) -> None:
    """Nine numbers of state are LIBERO's, eight are openpi's, seven actions are LIBERO's: only where it is said."""
    names = {STATE: num_state, ACTION: num_actions}
    said = (
        {key: [f"joint_{i}" for i in range(count - 1)] + ["gripper"] for key, count in names.items()} if named else {}
    )
    ones = Episode({key: np.ones((3, count)) for key, count in names.items()})
    robot = open_reader(write_dataset(tmp_path / "data", Dataset(said, [ones], cameras=()))).robot
    assert robot.describe_actions() == f"action ({num_actions} continuous, absolute)"
    assert robot.describe_state() == f"state ({num_state})"
    assert {group.role for group in robot.actions} | {part.role for part in robot.state} == {None}
    assert np.isinf(robot.action_bounds).all()


def opening_data(*openings: Sequence[float]) -> Dataset:
    """Two numbers of an arm and the opening of a gripper, an episode for each of `openings`."""
    rng = np.random.default_rng(0)
    episodes = []
    for opening in openings:
        actions = np.concatenate([rng.uniform(-1, 1, (len(opening), 2)), np.array(opening)[:, None]], axis=1)
        episodes.append(Episode({STATE: rng.normal(size=(len(opening), 2)), ACTION: actions}))
    return Dataset({ACTION: ["x", "y", "gripper"]}, episodes)


@pytest.mark.parametrize(
    ("openings", "values"),
    [
        (([0, 0, 1, 1], [1, 0, 1]), "[0, 1]"),
        (([0, 0, 0], [1, 1, 1]), "[0, 1]"),
        (([-1, 1, 1], [1, 1]), "[-1, 1]"),
        (([0, 0, 1, 1], [1, 0.5, 0]), None),
        (([0, 0.2, 1], [1, 0]), None),
        (([0.1, 0.9], [0.9, 0.1]), None),
        (([0, 0], [0, 0]), None),
    ],
)
def test_two_values_are_told_of_all_episodes_together(tmp_path: Path, openings: Any, values: str | None) -> None:
    """It is told, and not done: the group stays continuous."""
    found = inspect_dataset(write_dataset(tmp_path / "data", opening_data(*openings)))
    line = f"- {{name: gripper, dims: [gripper], kind: binary, values: {values}}}"
    assert found.binary_hints == ([] if values is None else [line])
    assert found.robot is not None
    assert not found.robot.num_binary


def test_an_opening_is_binary_where_that_is_declared_and_true(tiny_config: Config, tmp_path: Path) -> None:
    """Commands 0 and 1: both are learnt as they are, and answers are one or the other. A half is neither."""
    tree = {
        "name": "opening",
        "control_freq_hz": 10,
        "actions": [
            {"name": "arm", "dims": ["x", "y"]},
            {"name": "gripper", "dims": ["gripper"], "kind": "binary", "values": [0, 1], "role": "gripper"},
        ],
        "state": [{"name": "place", "dims": ["x", "y"]}],
        "cameras": [{"name": "top"}],
    }
    case = Case(None, 3, 2, robot=tree)
    data = opening_data([0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0])
    config = configured(tiny_config, tmp_path, case, data)
    setup = prepare(config, "bc")
    batch = setup.train.gather(torch.arange(len(setup.train)))
    commands = np.concatenate([episode.columns[ACTION][:, 2] for episode in data.episodes])
    np.testing.assert_array_equal(batch.actions[:, 0, 2], 2 * commands - 1)
    check_targets(setup.train, setup.transform, data)
    policy = StateVLAPolicy.from_pretrained(train(config, "bc"), device="cpu")
    see = [
        Observation({"top": np.full((32, 32, 3), i, np.uint8)}, {"place": np.ones(2)}, "push the block") for i in (0, 9)
    ]
    assert np.isin(np.stack([answer.actions[:, 2] for answer in policy.act_chunk(see)]), (0.0, 1.0)).all()
    half = write_dataset(tmp_path / "half", opening_data([0, 0.5, 1]))
    with pytest.raises(UserError, match=r"declared binary with the values 0 and 1, found 0, 0.5, 1; declare it cont"):
        open_reader(half, robot=str(tmp_path / "robot.yaml")).read(0)


# Rest, and time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", ["none", "all"])
def test_past_the_end_absolute_targets_and_commands_hold_and_deltas_stop(tmp_path: Path, relative: str) -> None:
    config = bench_config(tmp_path, relative_actions=relative)
    setup = prepare(config, "bc")
    cache, samples = setup.main.cache, setup.train
    horizon, items = config.model.action_seq_len, torch.arange(len(samples))
    batch, frames = samples.gather(items), samples.frame_indices_of(items)
    raw = setup.transform.targets_to_chunks(batch.actions, torch.from_numpy(cache.robot_state)[frames]).numpy()
    assert bool(setup.statistics.relative_actions) == (relative == "all")
    ends = 0
    for episode in (cache.episodes[index] for index in setup.main.train):
        item = int((frames == episode.stop - 1).nonzero())
        last = cache.actions[episode.stop - 1]
        np.testing.assert_allclose(raw[item, 0], last, atol=1e-5)
        assert batch.is_pad[item].tolist() == [False] + [True] * (horizon - 1)
        for later in raw[item, 1:]:
            np.testing.assert_allclose(later, [*last[:3], 0.0], atol=1e-5)
            ends += 1
        assert np.abs(last[:2]).min() > 1e-3
    assert ends


@pytest.mark.parametrize(("freq_hz", "is_pause"), [(5, True), (10, True), (20, False), (50, False)])
def test_a_pause_lasts_as_long_at_every_rate(tmp_path: Path, freq_hz: int, is_pause: bool) -> None:
    """Four steps of rest are a pause (0.3 s) at 10 steps a second; at 20 they are too short."""
    place = np.concatenate([np.linspace(0, 1, 11), np.ones(4), np.linspace(1.1, 2, 10)])[:, None] * [1.0, -1.0]
    names = ["x", "y"]
    data = Dataset({STATE: names, ACTION: names}, [Episode({STATE: place, ACTION: place})], fps=freq_hz)
    config = bench_config(tmp_path, BENCH)
    write_dataset(tmp_path / "pause", data)
    changes = {"path": str(tmp_path / "pause")}
    cache = open_frame_cache(config.model_copy(update={"data": config.data.model_copy(update=changes)}), progress=False)
    transform = Transform(config.model, cache.statistics([0]), cache.robot)
    states = transform.normalize_robot_state(torch.from_numpy(cache.robot_state)).numpy()
    keyframes, _ = next_keyframes(cache, transform)
    np.testing.assert_array_equal(keyframes[0], states[10 if is_pause else -1])
