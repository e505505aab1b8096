"""The policy object on a real, tiny checkpoint: queue, replanning, ensembling, determinism, wrong inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from statevla.acting.policy import StateVLAPolicy
from statevla.checkpoints.checkpoint import Contents, DataInfo, TrainingState, save_checkpoint
from statevla.config import Config
from statevla.errors import UserError
from statevla.model.language import LanguageInfo
from statevla.model.statevla_model import StateVLA
from statevla.robots import LIBERO, ActionGroup, Camera, RobotSpec, StateField
from statevla.robots.libero import Gripper
from statevla.transforms import FieldStatistics, Statistics
from statevla.types import Observation

HORIZON = 4
TEXTS = ("pick up the red block", "push the green block to the left")


@pytest.fixture(scope="module")
def run(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose checkpoint nobody trained, with normalisation that is not the identity."""
    return save_run(tiny_config, tmp_path_factory.mktemp("run"), LIBERO)


def save_run(
    config: Config, folder: Path, robot: RobotSpec, relative: tuple[str, ...] = (), margin: float = 0.0
) -> Path:
    """An untrained one; what demonstrations did lies `margin` within the bounds that it notes."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    actions = FieldStatistics.of(rng.uniform(-0.8, 0.5, (200, robot.action_dim)))
    actions = replace(actions, min=actions.min - margin, max=actions.max + margin)
    state = FieldStatistics.of(rng.normal(1.0, 2.0, (200, robot.state_dim)))
    statistics = Statistics(actions, state, relative_actions=relative, targets=actions if relative else None)
    dims = {"action_dim": robot.action_dim, "robot_state_dim": robot.state_dim, "cameras": list(robot.camera_names)}
    config = config.model_copy(update={"model": config.model.model_copy(update=dims)})
    language = LanguageInfo(config.language.encoder, 16, "")
    weights = StateVLA(config, robot).state_dict()
    contents = Contents(weights, config, robot, statistics, language, DataInfo("", 0.7, 0), {"phase": "2"})
    save_checkpoint(folder, contents, TrainingState({}, {}), is_best=True)
    return folder


@pytest.fixture
def load(run: Path) -> Callable[..., StateVLAPolicy]:
    return lambda **options: StateVLAPolicy.from_pretrained(run / "checkpoint_best.pt", device="cpu", **options)


def observation(seed: int, **changes: object) -> Observation:
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for camera in ("agentview", "eye_in_hand")}
    plain = Observation(images, LIBERO.named_state(rng.normal(size=9), "test"), TEXTS[seed % 2])
    return replace(plain, **changes)


def test_chunk_is_in_the_robots_units(load: Callable[..., StateVLAPolicy]) -> None:
    policy = load()
    chunk = policy.act_chunk(observation(0)).actions
    assert chunk.shape == (HORIZON, 7)
    assert chunk.dtype == np.float32
    assert set(np.unique(chunk[:, 6])) <= {float(Gripper.OPEN), float(Gripper.CLOSE)}
    limits = policy.transform.statistics.actions
    assert (chunk[:, :6] >= limits.min[:6] - 1e-6).all()
    assert (chunk[:, :6] <= limits.max[:6] + 1e-6).all()
    # Denormalised: the model's own samples average zero, the demonstrations' actions do not.
    many = np.stack([c.actions for c in policy.act_chunk([observation(i) for i in range(32)])])
    assert abs(many[..., :6].mean() - limits.mean[:6].mean()) < abs(many[..., :6].mean())


def test_open_loop_executes_the_whole_chunk_before_looking_again(load: Callable[..., StateVLAPolicy]) -> None:
    policy = load()
    expected = policy.act_chunk(observation(0)).actions
    policy.reset()
    for step in range(HORIZON):
        assert policy.needs_observation() == (step == 0)
        action = policy.act(observation(0) if step == 0 else None)
        np.testing.assert_array_equal(action, expected[step])
    assert policy.needs_observation()
    # A second query draws other noise.
    assert not np.array_equal(policy.act(observation(0)), expected[0])


def test_replanning_looks_again_after_k_steps(load: Callable[..., StateVLAPolicy]) -> None:
    policy = load(execute_steps=3)
    looks = []
    for _ in range(7):
        looks.append(policy.needs_observation())
        policy.act(observation(1))
    assert looks == [True, False, False, True, False, False, True]


def test_temporal_ensembling_is_the_weighted_mean_of_overlapping_chunks(load: Callable[..., StateVLAPolicy]) -> None:
    decay = 0.5
    session = load(temporal_ensembling=decay).new_session()
    rng = np.random.default_rng(0)
    chunks = [rng.normal(size=(HORIZON, 7)).astype(np.float32) for _ in range(7)]
    for chunk in chunks:
        chunk[:, 6] = np.sign(chunk[:, 6])
    for step, chunk in enumerate(chunks):
        assert session.needs_observation()
        session.accept(chunk)
        action = session.next_action()
        covering = [(start, chunks[start][step - start]) for start in range(max(0, step - HORIZON + 1), step + 1)]
        weights = np.exp(-decay * np.arange(len(covering)))  # the oldest chunk weighs most
        votes = np.stack([vote for _, vote in covering])
        mean = (weights[:, None] * votes).sum(0) / weights.sum()
        np.testing.assert_allclose(action[:6], mean[:6], rtol=1e-5)
        assert action[6] == np.sign(mean[6])


def test_ensembling_with_longer_execution_blends_each_step(load: Callable[..., StateVLAPolicy]) -> None:
    session = load(temporal_ensembling=0.0, execute_steps=2).new_session()
    first, second = np.zeros((HORIZON, 7), np.float32), np.ones((HORIZON, 7), np.float32)
    first[:, 6] = -1.0
    session.accept(first)
    np.testing.assert_array_equal(session.next_actions()[:, :6], np.zeros((2, 6)))
    session.accept(second)
    blended = session.next_actions()
    np.testing.assert_allclose(blended[:, :6], 0.5)
    assert (blended[:, 6] == 1.0).all()  # a tie goes to the newest chunk


def valves_in_the_middle() -> RobotSpec:
    """[continuous, binary, binary, continuous], with commands that are not -1 and +1."""
    return RobotSpec(
        name="valves",
        control_freq_hz=10,
        actions=(
            ActionGroup(name="slide", dims=("slide",), state="slide"),
            ActionGroup(name="valve", dims=("valve",), kind="binary", values=(0, 1)),
            ActionGroup(name="pump", dims=("pump",), kind="binary", values=(5, 2)),
            ActionGroup(name="turn", dims=("turn",), mode="delta"),
        ),
        state=(StateField(name="slide", dims=("slide",)),),
        cameras=(Camera(name="agentview"), Camera(name="eye_in_hand")),
    )


@pytest.fixture
def valves(tiny_config: Config, tmp_path: Path) -> Callable[..., StateVLAPolicy]:
    robot = valves_in_the_middle()
    folder = save_run(tiny_config, tmp_path / "valves", robot, relative=("slide",))
    return lambda **options: StateVLAPolicy.from_pretrained(folder, device="cpu", **options)


def valve_observation(seed: int, slide: float = 0.3) -> Observation:
    return observation(seed, robot_state={"slide": np.array([slide])})


def test_binary_commands_anywhere_are_exactly_the_declared_ones(valves: Callable[..., StateVLAPolicy]) -> None:
    chunks = np.stack([c.actions for c in valves().act_chunk([valve_observation(seed) for seed in range(8)])])
    assert chunks.shape == (8, HORIZON, 4)
    for dim, commands in ((1, {0.0, 1.0}), (2, {5.0, 2.0})):
        assert set(np.unique(chunks[..., dim])) <= commands
    assert min(len(np.unique(chunks[..., dim])) for dim in (0, 3)) > 4 * HORIZON


def test_relative_actions_start_from_where_the_robot_is(tiny_config: Config, tmp_path: Path) -> None:
    """What the model answers is added to the state; an encoder that does not see it answers the same."""
    # Bounds that clip nothing.
    folder = save_run(tiny_config, tmp_path, valves_in_the_middle(), relative=("slide",), margin=100.0)
    policy = StateVLAPolicy.from_pretrained(folder, device="cpu")
    with torch.no_grad():
        for parameter in policy.model.state_encoder.tokenizer.robot_state.parameters():
            parameter.zero_()
    chunks = []
    for slide in (0.0, 0.25):
        policy.reset()
        chunks.append(policy.act_chunk(valve_observation(0, slide)).actions)
    np.testing.assert_allclose(chunks[1] - chunks[0], np.tile([0.25, 0, 0, 0], (HORIZON, 1)), atol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_ensembling_votes_on_binary_numbers_in_the_middle(valves: Callable[..., StateVLAPolicy], decay: float) -> None:
    session = valves(temporal_ensembling=decay).new_session()
    rng = np.random.default_rng(0)
    chunks = [rng.normal(size=(HORIZON, 4)).astype(np.float32) for _ in range(9)]
    for chunk in chunks:
        chunk[:, 1], chunk[:, 2] = chunk[:, 1] > 0, np.where(chunk[:, 2] > 0, 2.0, 5.0)
    for step, chunk in enumerate(chunks):
        session.accept(chunk)
        action = session.next_action()
        votes = np.stack([chunks[s][step - s] for s in range(max(0, step - HORIZON + 1), step + 1)])
        weights = np.exp(-decay * np.arange(len(votes)))
        mean = (weights[:, None] * votes).sum(0) / weights.sum()
        np.testing.assert_allclose(action[[0, 3]], mean[[0, 3]], rtol=1e-5, atol=1e-6)
        for dim, off, on in ((1, 0.0, 1.0), (2, 5.0, 2.0)):
            share = weights[votes[:, dim] == on].sum() / weights.sum()
            wanted = votes[-1, dim] if abs(share - 0.5) < 1e-9 else on if share > 0.5 else off
            assert action[dim] == wanted


def test_a_tie_of_binary_votes_goes_to_the_newest_chunk(valves: Callable[..., StateVLAPolicy]) -> None:
    for newest in (0.0, 1.0):
        session = valves(temporal_ensembling=0.0).new_session()
        for valve in (1.0 - newest, newest):
            session.accept(np.tile(np.float32([0.0, valve, 2.0 if valve else 5.0, 0.0]), (HORIZON, 1)))
            action = session.next_action()
        assert action[1] == newest
        assert action[2] == (2.0 if newest else 5.0)


def test_noise_depends_on_seed_episode_and_query_alone(load: Callable[..., StateVLAPolicy]) -> None:
    policy = load(seed=3)
    alone = policy.new_session(episode=5)
    policy.query([(alone, observation(0))])
    together = [policy.new_session(episode=e) for e in (4, 5, 6)]
    policy.query([(session, observation(0)) for session in together])
    actions = [session.next_actions() for session in (alone, *together)]
    # Equal to rounding, not to the last bit: the batch is another one.
    np.testing.assert_allclose(actions[0], actions[2], atol=1e-5)
    assert not np.allclose(actions[0], actions[1], atol=1e-3)
    assert not np.allclose(actions[0], actions[3], atol=1e-3)
    policy.query([(alone, observation(0))])
    assert not np.allclose(alone.next_actions(), actions[0], atol=1e-3)
    for options, same in (({"seed": 3}, True), ({"seed": 4}, False)):
        fresh = load(**options)
        session = fresh.new_session(episode=5)
        fresh.query([(session, observation(0))])
        assert np.array_equal(session.next_actions(), actions[0]) is same


def test_sessions_keep_queues_of_their_own(load: Callable[..., StateVLAPolicy]) -> None:
    policy = load(execute_steps=2)
    one, two = policy.new_session(1), policy.new_session(2)
    policy.act_batch([(one, observation(0))])
    assert (one.needs_observation(), two.needs_observation()) == (False, True)
    actions = policy.act_batch([(one, None), (two, observation(1))])
    assert [action.shape for action in actions] == [(7,), (7,)]
    assert (one.needs_observation(), two.needs_observation()) == (True, False)
    with pytest.raises(UserError, match="needs_observation"):
        policy.act_batch([(one, None)])
    with pytest.raises(UserError, match="no action left"):
        one.next_action()


def test_instruction_reaches_the_policy(load: Callable[..., StateVLAPolicy]) -> None:
    policy = load()
    chunks = []
    for text in TEXTS:
        policy.reset()
        chunks.append(policy.act_chunk(observation(0, instruction=text)).actions)
    assert not np.array_equal(chunks[0], chunks[1])


def test_without_noise_the_seed_does_not_matter(load: Callable[..., StateVLAPolicy]) -> None:
    for temperature, is_same in ((0.0, True), (1.0, False)):
        chunks = [
            load(seed=seed, sampling_temperature=temperature).act_chunk(observation(0)).actions for seed in (1, 2)
        ]
        assert np.array_equal(chunks[0], chunks[1]) is is_same


def test_warming_up_changes_no_answer(load: Callable[..., StateVLAPolicy]) -> None:
    policy, warm = load(), load()
    warm.warm_up(batch_size=2)
    np.testing.assert_array_equal(policy.act(observation(0)), warm.act(observation(0)))


def test_wrong_inputs_are_named(load: Callable[..., StateVLAPolicy]) -> None:
    policy = load()
    images = dict(observation(0).images)
    with pytest.raises(UserError, match=r"no camera 'eye_in_hand', it has agentview"):
        policy.act(observation(0, images={"agentview": images["agentview"]}))
    hand = {"hand_position": np.zeros(3), "finger_positions": np.zeros(2)}
    words = r"no state field 'joint_positions', it has finger_positions, hand_position; robot 'libero' declares"
    with pytest.raises(UserError, match=words):
        policy.act(observation(0, robot_state=hand))
    with pytest.raises(UserError, match=r"expected a mapping of state fields, got ndarray; RobotSpec.named_state"):
        observation(0, robot_state=np.zeros(9))
    joints = {**observation(0).robot_state, "joint_positions": np.array([0, np.nan, 0, 0, 0, 0, 0])}
    with pytest.raises(UserError, match=r"robot_state 'joint_positions': NaN or infinite at 1"):
        observation(0, robot_state=joints)
    with pytest.raises(UserError, match="instruction is empty"):
        policy.act(observation(0, instruction="  "))
    with pytest.raises(UserError, match="an observation is needed"):
        policy.act()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execute_steps": 5}, "expected 1 to 4"),
        ({"execute_steps": 0}, "expected 1 to 4"),
        ({"temporal_ensembling": -0.1}, "decay"),
        ({"num_sampling_steps": 0}, "num_sampling_steps"),
        ({"sampling_temperature": -0.5}, "sampling_temperature"),
        ({"sampling_temperature": float("nan")}, "sampling_temperature"),
        ({"precision": "fp8"}, "fp8"),
    ],
)
def test_options_out_of_range(load: Callable[..., StateVLAPolicy], options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(**options)


def test_a_phase_1_checkpoint_has_no_policy(run: Path, tmp_path: Path) -> None:
    from statevla.checkpoints.checkpoint import load_checkpoint

    loaded = load_checkpoint(run)
    parts = (loaded.config, loaded.robot, loaded.statistics, loaded.language, loaded.data, {"phase": "1"})
    save_checkpoint(tmp_path, Contents(loaded.model.state_dict(), *parts), TrainingState({}, {}), is_best=True)
    with pytest.raises(UserError, match="--phase 2 --phase1_checkpoint"):
        StateVLAPolicy.from_pretrained(tmp_path)


def test_damaged_weights_do_not_move_a_robot(load: Callable[..., StateVLAPolicy]) -> None:
    policy = load()
    with torch.no_grad():
        policy.model.policy.head[-1].bias.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN"):
        policy.act(observation(0))
