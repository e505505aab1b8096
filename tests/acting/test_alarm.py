"""Surprise: what is expected, when it is computed, when it raises the alarm; thresholds; damaged calibrations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from statevla.acting.alarm import Calibration, Sighting, conformal_threshold, expect, novelty_of
from statevla.acting.policy import StateVLAPolicy
from statevla.checkpoints.checkpoint import (
    ALARM_FILE,
    Contents,
    DataInfo,
    TrainingState,
    resolve_checkpoint,
    save_checkpoint,
    weights_hash,
)
from statevla.config import Config
from statevla.errors import UserError
from statevla.model.language import LanguageInfo
from statevla.model.statevla_model import StateVLA
from statevla.robots import LIBERO, ActionGroup, Camera, RobotSpec
from statevla.transforms import FieldStatistics, Statistics, Transform
from statevla.types import Observation

HORIZON, SKIP, Z = 4, 2, 16


def save_run(config: Config, folder: Path, phase: str = "2") -> Path:
    """A checkpoint that nobody trained, with two control steps per action block."""
    phase1 = config.training.phase1.model_copy(update={"frame_skip": SKIP})
    config = config.model_copy(update={"training": config.training.model_copy(update={"phase1": phase1})})
    statistics = statistics_of(LIBERO)
    torch.manual_seed(0)
    weights = predicting(StateVLA(config)).state_dict()
    language = LanguageInfo(config.language.encoder, 16, "")
    contents = Contents(weights, config, LIBERO, statistics, language, DataInfo("", 0.7, 0), {"phase": phase})
    save_checkpoint(folder, contents, TrainingState({}, {}), is_best=True)
    return resolve_checkpoint(folder)


def predicting(model: StateVLA) -> StateVLA:
    """Untrained, a model expects that nothing moves; here it expects something."""
    torch.nn.init.normal_(model.state_encoder.predictor.delta[-1].weight, std=0.3)
    return model


def statistics_of(robot: RobotSpec) -> Statistics:
    rng = np.random.default_rng(0)
    actions = FieldStatistics.of(rng.uniform(-0.8, 0.5, (200, robot.action_dim)))
    return Statistics(actions, FieldStatistics.of(rng.normal(1.0, 2.0, (200, robot.state_dim))))


@pytest.fixture
def folder(tiny_config: Config, tmp_path: Path) -> Path:
    return save_run(tiny_config, tmp_path / "run")


def observation(seed: int) -> Observation:
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for camera in ("agentview", "eye_in_hand")}
    return Observation(images, LIBERO.named_state(rng.normal(size=9), "test"), "pick up the red block")


def calibration_of(folder: Path, surprise: float, novelty: float = 1e9) -> Calibration:
    counts = range(1, HORIZON + 1)
    thresholds = {"surprise": dict.fromkeys(counts, surprise), "novelty": dict.fromkeys(counts, novelty)}
    return Calibration(0.1, 9, thresholds, torch.randn(40, Z), weights_hash(folder) or "", "a test")


def run_looks(policy: StateVLAPolicy, num_looks: int) -> list[float | None]:
    seen = []
    for step in range(num_looks * policy.execute_steps):
        looks = policy.needs_observation()
        policy.act(observation(step) if looks else None)
        if looks:
            seen.append(policy.surprise)
    return seen


# What is expected -----------------------------------------------------------------------------------------------------


def test_expectation_rolls_the_predictor_over_whole_blocks(folder: Path) -> None:
    policy = StateVLAPolicy.from_pretrained(folder, device="cpu")
    actions, state = torch.randn(3, 4, 7), torch.randn(3, Z)
    blocks = policy.transform.normalize_actions(actions)
    by_hand = policy.model.predict_next(state, blocks[:, :2].flatten(1))
    by_hand = policy.model.predict_next(by_hand, blocks[:, 2:].flatten(1))
    torch.testing.assert_close(expect(policy.model, policy.transform, state, actions), by_hand)


@pytest.mark.parametrize("num_actions", [1, 3])
def test_a_block_that_is_not_full_ends_with_rest(folder: Path, num_actions: int) -> None:
    policy = StateVLAPolicy.from_pretrained(folder, device="cpu")
    skip = policy.config.training.phase1.frame_skip
    actions, state = torch.randn(1, num_actions, 7), torch.randn(1, Z)
    rest = torch.zeros(1, -num_actions % skip, 7)
    rest[..., -1] = actions[:, -1:, -1]
    full = torch.cat([actions, rest], dim=1)
    model, transform = policy.model, policy.transform
    torch.testing.assert_close(expect(model, transform, state, actions), expect(model, transform, state, full))


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_rest_is_as_the_robot_declares_it(tiny_config: Config, count: int) -> None:
    """Deltas stop; absolute targets and binary commands stay, wherever they are."""
    robot = RobotSpec(
        name="mixed",
        control_freq_hz=10,
        actions=(
            ActionGroup(name="arm", dims=("a", "b")),
            ActionGroup(name="valve", dims=("v",), kind="binary", values=(0, 1)),
            ActionGroup(name="base", dims=("x", "y"), mode="delta"),
        ),
        cameras=(Camera(name="top"),),
    )
    phase1 = tiny_config.training.phase1.model_copy(update={"frame_skip": 3})
    dims = {"action_dim": 5, "robot_state_dim": 0, "cameras": ["top"]}
    changes = {"training": tiny_config.training.model_copy(update={"phase1": phase1})}
    config = tiny_config.model_copy(update={**changes, "model": tiny_config.model.model_copy(update=dims)})
    model, transform = predicting(StateVLA(config, robot)).eval(), Transform(config.model, statistics_of(robot), robot)
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(2, count, 5)).astype(np.float32)
    actions[..., 2] = actions[..., 2] > 0
    last = actions[:, -1:]
    rest = np.concatenate([last[..., :3], np.zeros_like(last[..., 3:])], axis=-1)
    filled = np.concatenate([actions, *[rest] * (-count % 3)], axis=1)
    state = torch.randn(2, Z)
    expected = expect(model, transform, state, actions)
    assert torch.equal(expected, expect(model, transform, state, filled))
    if count % 3:
        for wrong in (np.zeros_like(rest), last):
            other = np.concatenate([actions, *[wrong] * (-count % 3)], axis=1)
            assert not torch.allclose(expected, expect(model, transform, state, other), atol=1e-6)


def test_surprise_is_the_error_of_the_expectation_from_look_to_look(folder: Path) -> None:
    policy = StateVLAPolicy.from_pretrained(folder, device="cpu", execute_steps=3)
    first, second = observation(0), observation(1)
    executed = np.stack([policy.act(first if step == 0 else None) for step in range(3)])
    assert policy.surprise is None  # nothing was expected of the first look
    policy.act(second)
    z = policy.encode([first, second])
    expected = expect(policy.model, policy.transform, z[:1], executed[None])
    assert policy.surprise == pytest.approx(float((expected - z[1]).square().mean()), rel=1e-4)
    policy.reset()
    assert policy.surprise is None


def test_surprise_follows_what_was_executed(folder: Path) -> None:
    """The same two pictures, other actions in between: other surprise."""
    policy = StateVLAPolicy.from_pretrained(folder, device="cpu")
    values = []
    for action in (np.zeros((2, 7)), np.ones((2, 7))):
        session = policy.new_session()
        (_, sighting), *_ = policy.sample_chunks([(session, observation(0))])
        session.note(sighting)
        session.set_executed(action)
        (_, sighting), *_ = policy.sample_chunks([(session, observation(1))])
        values.append(sighting.surprise)
    assert values[0] != pytest.approx(values[1], rel=1e-3)


def test_no_surprise_where_no_world_model_was_trained(tiny_config: Config, tmp_path: Path) -> None:
    policy = StateVLAPolicy.from_pretrained(save_run(tiny_config, tmp_path, phase="bc"), device="cpu")
    assert run_looks(policy, 3) == [None, None, None]


def test_environments_that_share_a_forward_are_surprised_apart(folder: Path) -> None:
    policy = StateVLAPolicy.from_pretrained(folder, device="cpu")
    alone = policy.new_session()
    for number in range(2):
        policy.query([(alone, observation(number))])
        alone.next_actions()
    together = [policy.new_session(), policy.new_session(episode=5)]
    for number in range(2):
        policy.query([(session, observation(number + 7 * i)) for i, session in enumerate(together)])
        for session in together:
            session.next_actions()
    assert together[0].surprise == pytest.approx(alone.surprise, rel=1e-3)
    assert together[1].surprise != pytest.approx(alone.surprise, rel=1e-3)


# Alarms ---------------------------------------------------------------------------------------------------------------


def test_alarm_stays_on_until_the_episode_ends(folder: Path) -> None:
    seen = [value for value in run_looks(StateVLAPolicy.from_pretrained(folder, device="cpu"), 6) if value is not None]
    middle = float(np.median(seen))
    calibration_of(folder, surprise=middle).save(folder)
    policy = StateVLAPolicy.from_pretrained(folder, device="cpu")
    assert policy.alarm is None
    alarms = []
    for step in range(6 * HORIZON):
        looks = policy.needs_observation()
        policy.act(observation(step) if looks else None)
        if looks:
            alarms.append(policy.alarm)
    # The first look has nothing to be compared with: nobody has judged it.
    over = [value > middle for value in seen]
    assert alarms == [None, *(any(over[: i + 1]) for i in range(len(over)))]
    assert True in alarms
    policy.reset()
    assert policy.alarm is None


def test_without_calibration_there_is_surprise_but_no_alarm(folder: Path) -> None:
    policy = StateVLAPolicy.from_pretrained(folder, device="cpu")
    run_looks(policy, 2)
    assert policy.surprise is not None
    assert policy.alarm is None
    assert policy.novelty is None


def test_threshold_is_that_of_the_actions_executed(folder: Path) -> None:
    thresholds = {"surprise": {2: 0.0, 3: 1e9}, "novelty": {2: 1e9, 3: 0.0}}
    calibration = Calibration(0.1, 9, thresholds, torch.randn(40, Z), weights_hash(folder) or "", "a test")
    calibration.save(folder)
    policy = StateVLAPolicy.from_pretrained(folder, device="cpu", execute_steps=3)
    for count, alarm, novelty_alarm in ((2, True, False), (3, False, True)):
        session = policy.new_session()
        session.note(Sighting(torch.zeros(Z)))
        assert (session.alarm, session.novelty_alarm) == (None, None)
        session.set_executed(np.zeros((count, 7)))
        (_, sighting), *_ = policy.sample_chunks([(session, observation(1))])
        session.note(sighting)
        assert (session.alarm, session.novelty_alarm) == (alarm, novelty_alarm)
    # Uncalibrated: looks so far apart have no threshold, and raise no alarm either way.
    policy = StateVLAPolicy.from_pretrained(folder, device="cpu", execute_steps=1)
    assert None not in run_looks(policy, 3)[1:]
    assert policy.alarm is None


def test_novelty_is_the_mean_distance_to_the_nearest_neighbours() -> None:
    memory = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    near, far = novelty_of(torch.tensor([[0.0], [20.0]]), memory, num_neighbors=2).tolist()
    assert near == pytest.approx(0.5)
    assert far == pytest.approx(9.5)


# Thresholds -----------------------------------------------------------------------------------------------------------


def test_threshold_is_the_conformal_rank() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1, 20))
    assert conformal_threshold(scores, 0.1) == 18  # ceil(20 * 0.9)
    assert conformal_threshold(scores, 0.05) == 19
    assert conformal_threshold(np.arange(1, 10), 0.1) == 9


@pytest.mark.parametrize(("count", "alpha", "needed"), [(8, 0.1, "at least 9"), (18, 0.05, "at least 19")])
def test_too_few_episodes_bound_nothing(count: int, alpha: float, needed: str) -> None:
    with pytest.raises(UserError, match=needed):
        conformal_threshold(np.arange(count), alpha)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        conformal_threshold(np.arange(50), alpha)


@pytest.mark.parametrize(("count", "alpha"), [(9, 0.1), (30, 0.1), (25, 0.2)])
def test_false_alarms_stay_below_alpha_and_not_far_below(count: int, alpha: float) -> None:
    """The finite-sample bound α − 1/(m + 1) <= rate <= α, over draws of calibration and test episodes."""
    rng = np.random.default_rng(1)
    draws = rng.exponential(size=(20_000, count + 1)) ** 2
    alarms = np.array([row[-1] > conformal_threshold(row[:-1], alpha) for row in draws])
    spread = 4 * np.sqrt(alpha * (1 - alpha) / len(draws))
    assert alpha - 1 / (count + 1) - spread <= alarms.mean() <= alpha + spread


# Files ----------------------------------------------------------------------------------------------------------------


def test_calibration_survives_the_disk(folder: Path) -> None:
    saved = calibration_of(folder, 0.25, 3.5)
    saved.save(folder)
    loaded = Calibration.load(folder, weights_hash(folder), Z)
    assert loaded is not None
    assert loaded.thresholds == saved.thresholds
    assert torch.equal(loaded.memory, saved.memory)
    assert loaded.summary() == {"alpha": 0.1, "num_episodes": 9, "source": "a test"}


@pytest.mark.parametrize("damage", ["weights", "json", "thresholds", "memory"])
def test_a_calibration_that_does_not_fit_is_refused(folder: Path, damage: str) -> None:
    calibration_of(folder, 0.25).save(folder)
    path = folder / ALARM_FILE
    tree = json.loads(path.read_text())
    if damage == "weights":
        tree["weights_sha256"] = "0" * 64
    elif damage == "thresholds":
        del tree["thresholds"]["novelty"]
    path.write_text("{" if damage == "json" else json.dumps(tree))
    with pytest.raises(UserError, match=r"alarm\.json"):
        Calibration.load(folder, weights_hash(folder), Z + 1 if damage == "memory" else Z)


@pytest.mark.parametrize("name", ["alarm.json", "memory", "gone", "elsewhere"])
def test_a_calibration_that_changed_is_refused(folder: Path, name: str) -> None:
    calibration_of(folder, 0.25).save(folder)
    (memory,) = folder.glob("alarm*.safetensors")
    path = folder / ALARM_FILE
    tree = json.loads(path.read_text())
    if name == "alarm.json":
        path.write_text(path.read_text().replace("0.25", "0.75", 1))
    elif name == "memory":
        data = memory.read_bytes()
        memory.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    elif name == "gone":
        memory.unlink()
    else:
        path.write_text(json.dumps(tree | {"memory": "../model.safetensors", "seal": "edited"}))
    with pytest.raises(UserError, match=memory.name if name in ("memory", "gone") else r"alarm\.json"):
        StateVLAPolicy.from_pretrained(folder, device="cpu")
    path.unlink()  # as the error says
    assert StateVLAPolicy.from_pretrained(folder, device="cpu").calibration is None


def test_an_edited_threshold_may_be_meant_and_earlier_calibrations_are_read(folder: Path) -> None:
    calibration_of(folder, 0.25).save(folder)
    path = folder / ALARM_FILE
    tree = json.loads(path.read_text())
    tree["thresholds"]["surprise"]["1"] = 0.5
    path.write_text(json.dumps(tree | {"seal": "edited"}))
    policy = StateVLAPolicy.from_pretrained(folder, device="cpu")
    assert policy.threshold("surprise", 1) == 0.5
    (folder / tree["memory"]).rename(folder / "alarm.safetensors")
    path.write_text(json.dumps({k: v for k, v in tree.items() if k not in ("memory", "memory_sha256", "seal")}))
    policy = StateVLAPolicy.from_pretrained(folder, device="cpu")
    assert policy.threshold("surprise", 1) == 0.5


def test_transform_is_the_policys(folder: Path) -> None:
    """Expectation in real units: un-normalised actions mean something else to the predictor."""
    policy = StateVLAPolicy.from_pretrained(folder, device="cpu")
    actions, state = torch.full((1, 2, 7), 0.5), torch.randn(1, Z)
    plain = policy.model.predict_next(state, actions.flatten(1))
    assert isinstance(policy.transform, Transform)
    assert not torch.allclose(expect(policy.model, policy.transform, state, actions), plain, atol=1e-4)
