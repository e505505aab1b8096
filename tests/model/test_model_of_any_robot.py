"""The model for robots that declare other actions: none binary, all binary, binary ones anywhere, no state at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from statevla.config import Config, load_config
from statevla.errors import UserError
from statevla.model.statevla_model import StateVLA
from statevla.robots import KNOWN_ROBOTS, LIBERO_EITHER, ActionGroup, Camera, RobotSpec, StateField
from statevla.transforms import FieldStatistics, Statistics, Transform
from statevla.types import ChunkBatch, ModelInput, TransitionBatch

TINY = [
    "model.action_dim=auto",
    "model.robot_state_dim=auto",
    "model.cameras=auto",
    "model.embed_dim=32",
    "model.encoder_depth=1",
    "model.state_dim=24",
    "model.image_size=32",
    "model.language_dim=12",
    "model.action_seq_len=4",
    "model.policy.depth=1",
    "model.policy.d_state=8",
    "model.policy.mlp_hidden_dim=32",
    "training.phase1.temporal_predictor_hidden_dim=32",
]


def arm(name: str, *dims: str) -> ActionGroup:
    return ActionGroup(name=name, dims=dims)


def switches(name: str, *dims: str, values: tuple[float, float] = (0, 1)) -> ActionGroup:
    return ActionGroup(name=name, dims=dims, kind="binary", values=values)


def robot_of(*groups: ActionGroup) -> RobotSpec:
    state = (StateField(name="joints", dims=("a", "b", "c")),)
    return RobotSpec(name="some", control_freq_hz=10, actions=groups, state=state, cameras=(Camera(name="front"),))


VARIANTS = {
    "no_binary": robot_of(arm("arm", "x", "y", "z")),
    "only_binary": robot_of(switches("valves", "left", "right")),
    "two_binary_in_the_middle": robot_of(arm("arm", "x"), switches("valves", "left", "right"), arm("base", "y")),
    "mixed": robot_of(
        arm("left", "x"), switches("valve", "v"), arm("right", "y", "z"), switches("pump", "p", values=(7, 3))
    ),
}


@pytest.fixture(params=VARIANTS)
def robot(request: pytest.FixtureRequest) -> RobotSpec:
    return VARIANTS[request.param]


def build(robot: RobotSpec, *settings: str) -> StateVLA:
    torch.manual_seed(0)
    return StateVLA(load_config("conf/config.yaml", [*TINY, *settings]), robot)


def random_input(config: Config, *batch: int) -> ModelInput:
    m = config.model
    images = torch.rand(*batch, len(m.cameras), 3, m.image_size, m.image_size) * 2 - 1
    return ModelInput(images, torch.randn(*batch, m.robot_state_dim), torch.randn(*batch, m.language_dim))


def random_targets(robot: RobotSpec, *leading: int) -> torch.Tensor:
    targets = torch.randn(*leading, robot.action_dim)
    is_binary = torch.from_numpy(robot.is_binary)
    targets[..., is_binary] = targets[..., is_binary].sign()
    return targets


def random_chunks(model: StateVLA, batch: int = 6) -> ChunkBatch:
    horizon = model.config.model.action_seq_len
    is_pad = torch.zeros(batch, horizon, dtype=torch.bool)
    return ChunkBatch(random_input(model.config, batch), random_targets(model.robot, batch, horizon), is_pad)


def gradients(model: StateVLA) -> set[str]:
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_each_head_learns_its_own_numbers(robot: RobotSpec) -> None:
    model = build(robot)
    losses = model.action_loss(random_chunks(model))
    assert all(torch.isfinite(loss) for loss in losses)
    assert (losses.flow > 0) == (robot.num_continuous > 0)
    assert (losses.gripper > 0) == (robot.num_binary > 0)
    losses.total.backward()
    assert gradients(model) == {name for name, _ in model.phase_parameters("bc")}
    parts = dict(model.parameter_table())
    assert ("flow-matching policy" in parts) == (robot.num_continuous > 0)
    assert ("gripper classifier" in parts) == (robot.num_binary > 0)
    torch.testing.assert_close(losses.total, losses.flow + losses.gripper)


def test_losses_go_by_number_and_not_by_place(robot: RobotSpec) -> None:
    """What is changed in a continuous number changes the flow's loss alone, in a binary one the classifier's alone."""
    model = build(robot).eval()
    batch, draws = random_chunks(model), model.draw_flow(6, generator=torch.Generator().manual_seed(1))
    before = model.action_loss(batch, draws)
    for dim in range(robot.action_dim):
        actions = batch.actions.clone()
        actions[..., dim] = -actions[..., dim]
        after = model.action_loss(ChunkBatch(batch.observation, actions, batch.is_pad), draws)
        changed = after.gripper != before.gripper, after.flow != before.flow
        assert changed == ((True, False) if robot.is_binary[dim] else (False, True))


def test_world_model_takes_all_numbers(robot: RobotSpec) -> None:
    model = build(robot, "training.phase1.frame_skip=2")
    windows = random_input(model.config, 6, 2)
    actions = random_targets(robot, 6, 1, 2).flatten(2)
    # The predictor's last layer begins at zero and lets no gradient through.
    torch.nn.init.normal_(model.state_encoder.predictor.delta[-1].weight, std=0.1)
    losses = model.jepa_loss(TransitionBatch(windows, actions))
    assert all(torch.isfinite(loss) for loss in losses)
    losses.total.backward()
    assert gradients(model) == {name for name, _ in model.phase_parameters("1")}
    state = torch.randn(2, 24)
    for dim in range(2 * robot.action_dim):  # every number of the block is looked at
        moved = actions[:2, 0].clone()
        moved[:, dim] += 1.0
        assert not torch.equal(model.predict_next(state, moved), model.predict_next(state, actions[:2, 0]))


def test_sampled_commands_are_exactly_the_declared_ones(robot: RobotSpec) -> None:
    model = build(robot).eval()
    observation = random_input(model.config, 32)
    noise = torch.randn(32, 4, robot.num_continuous)
    sampled = model.sample_actions(observation, noise=noise)
    assert sampled.shape == (32, 4, robot.action_dim)
    assert set(sampled[..., torch.from_numpy(robot.is_binary)].unique().tolist()) <= {-1.0, 1.0}
    rng = np.random.default_rng(0)
    statistics = Statistics(
        FieldStatistics.of(rng.normal(2, 3, (50, robot.action_dim))),
        FieldStatistics.of(rng.normal(size=(50, robot.state_dim))),
    )
    transform = Transform(model.config.model, statistics, robot)
    actions = transform.targets_to_chunks(sampled, observation.robot_state)
    off, on = robot.binary_values()
    for number, dim in enumerate(np.flatnonzero(robot.is_binary)):
        commands = torch.tensor([off[number], on[number]], dtype=torch.float32)
        assert torch.isin(actions[..., dim], commands).all()
        assert torch.equal(actions[..., dim] == commands[1], sampled[..., dim] > 0)
    continuous = np.flatnonzero(~robot.is_binary)
    for dim in continuous:
        assert len(actions[..., dim].unique()) == 32 * 4
    if len(continuous):
        other = model.sample_actions(observation, noise=noise + 1.0)
        assert not torch.equal(other[..., continuous], sampled[..., continuous])
        assert torch.equal(other[..., robot.is_binary], sampled[..., robot.is_binary])


def test_prepared_models_answer_alike(robot: RobotSpec) -> None:
    model = build(robot).eval()
    observation, noise = random_input(model.config, 2), torch.randn(2, 4, robot.num_continuous)
    with torch.inference_mode():
        plain = model.sample_actions(observation, noise=noise)
        prepared = model.prepare_for_inference("fp32").sample_actions(observation, noise=noise)
    torch.testing.assert_close(prepared, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", KNOWN_ROBOTS)
def test_every_known_robot_has_a_model(name: str) -> None:
    robot = KNOWN_ROBOTS[name]
    token = f"model.robot_token_dropout={1.0 if robot.state_ways else 0.0}"
    model = build(robot, "training.phase1.loss.keyframe_weight=1.0", token)
    model.action_loss(random_chunks(model, 2)).total.backward()
    assert model.state_encoder.keyframe.out_features == robot.keyframe_dim
    assert model.sample_actions(random_input(model.config, 2)).shape == (2, 4, robot.action_dim)


def test_a_robot_may_have_no_state() -> None:
    blind = VARIANTS["mixed"].model_copy(update={"state": ()})
    model = build(blind)
    assert model.encode(random_input(model.config, 2)).shape == (2, 24)
    model.action_loss(random_chunks(model)).total.backward()
    assert "policy.action.weight" in gradients(model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"action_dim": 7}, r"model.action_dim is 7, robot 'some' has 3: arm \(3 continuous, absolute\); set"),
        (
            {"robot_state_dim": 9},
            r"model.robot_state_dim is 9, robot 'some' has 3: joints \(3\); set model",
        ),
        ({"cameras": ["front", "wrist"]}, r"model.cameras: no camera 'wrist', robot 'some' has front; set"),
    ],
)
def test_dimensions_of_another_robot_are_refused(changes: dict[str, Any], words: str) -> None:
    config = load_config("conf/config.yaml", TINY)
    config = config.model_copy(update={"model": config.model.model_copy(update=changes)})
    with pytest.raises(UserError, match=words) as error:
        StateVLA(config, VARIANTS["no_binary"])
    assert "\n" not in str(error.value)


def test_training_hides_ways_of_saying_the_state() -> None:
    hidden = ("model.robot_token_dropout=1", "model.policy.condition.robot_state=true")
    model = build(LIBERO_EITHER, *hidden)
    batch, draws = random_chunks(model, 3), model.draw_flow(3, generator=torch.Generator().manual_seed(1))
    draws = draws._replace(way=torch.tensor([0, 1, 2]))
    assert batch.observation is not None
    shown = batch.observation.robot_state * torch.from_numpy(LIBERO_EITHER.way_masks())
    as_sent = replace(batch, observation=replace(batch.observation, robot_state=shown))
    model.state_encoder.eval()
    trained, plain = model.action_loss(batch, draws), model.eval().action_loss(batch, draws)
    assert trained.flow != plain.flow
    assert trained.gripper != plain.gripper
    assert trained == model.action_loss(as_sent, draws)
    drawn = model.draw_flow(3000, generator=torch.Generator().manual_seed(2)).way
    assert drawn is not None
    assert drawn.bincount().min() > 900  # evenly
    with pytest.raises(UserError, match=r"model\.robot_token_dropout: expected 1.0 for robot 'libero_either'"):
        build(LIBERO_EITHER, "model.robot_token_dropout=0")
