"""The whole model: exact size, its verbs, what each phase trains, and one-batch overfits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from statevla.config import load_config
from statevla.errors import UserError
from statevla.model.statevla_model import StateVLA
from statevla.robots import LIBERO, Camera
from statevla.types import ChunkBatch, ModelInput, TransitionBatch

# Part by part. The spec counts 14,862,097: its code has one number more, a scalar that nothing reads.
EXACT = {
    "tokenizer": 695_552,
    "context encoder": 5_256_960,
    "target encoder (EMA)": 5_256_960,
    "temporal predictor": 1_056_512,
    "state projection": 66_304,
    "flow-matching policy": 2_395_654,
    "gripper classifier": 134_154,
}
TINY = [
    "model.embed_dim=32",
    "model.encoder_depth=2",
    "model.state_dim=24",
    "model.image_size=32",
    "model.language_dim=12",
    "model.action_seq_len=4",
    "model.policy.d_state=8",
    "model.policy.mlp_hidden_dim=32",
    "training.phase1.temporal_predictor_hidden_dim=32",
]


@pytest.fixture
def config():
    return load_config("conf/config.yaml", TINY)


@pytest.fixture
def model(config) -> StateVLA:
    torch.manual_seed(0)
    return StateVLA(config)


def random_input(config, *batch: int) -> ModelInput:
    m = config.model
    return ModelInput(
        images=torch.rand(*batch, len(m.cameras), 3, m.image_size, m.image_size) * 2 - 1,
        robot_state=torch.randn(*batch, m.robot_state_dim),
        language=torch.randn(*batch, m.language_dim),
    )


def random_transitions(config, batch: int = 6, frames: int = 2) -> TransitionBatch:
    return TransitionBatch(
        random_input(config, batch, frames), torch.rand(batch, frames - 1, config.model.action_dim) * 2 - 1
    )


def random_chunks(config, batch: int = 6) -> ChunkBatch:
    horizon, dim = config.model.action_seq_len, config.model.action_dim
    actions = torch.randn(batch, horizon, dim)
    actions[..., -1] = actions[..., -1].sign()
    return ChunkBatch(random_input(config, batch), actions, torch.zeros(batch, horizon, dtype=torch.bool))


def test_faithful_preset_has_exactly_the_specs_parameters() -> None:
    with torch.device("meta"):
        model = StateVLA(load_config("conf/config.yaml"))
    assert dict(model.parameter_table()) == EXACT
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(EXACT.values()) == 14_862_097 - 1
    with torch.device("meta"):
        dims = ["model.action_dim=auto", "model.robot_state_dim=auto", "model.cameras=auto"]
        model = StateVLA(load_config("conf/config.yaml", dims), LIBERO)
    assert dict(model.parameter_table()) == EXACT


@pytest.mark.parametrize("cameras", [["front"], ["a", "b", "c"]])
def test_any_number_of_cameras(cameras: list[str]) -> None:
    robot = LIBERO.model_copy(update={"cameras": tuple(Camera(name=name) for name in cameras)})
    for chosen in (cameras, "auto"):
        model = StateVLA(load_config("conf/config.yaml", [*TINY, f"model.cameras={chosen}"]), robot)
        assert model.config.model.cameras == cameras
        assert model.encode(random_input(model.config, 2)).shape == (2, 24)
    with pytest.raises(UserError, match=r"model.cameras: no camera 'wrist', robot 'libero' has (front|a, b, c); set"):
        StateVLA(load_config("conf/config.yaml", [*TINY, "model.cameras=[wrist]"]), robot)


def test_shapes(model: StateVLA, config) -> None:
    observation = random_input(config, 3)
    assert model.encode(observation).shape == (3, 24)
    assert model.encode(random_input(config, 2, 3)).shape == (2, 3, 24)
    actions = model.sample_actions(observation)
    assert actions.shape == (3, 4, 7)
    assert actions.dtype == torch.float32
    assert set(actions[..., -1].unique().tolist()) <= {-1.0, 1.0}


def test_sampling_is_deterministic_given_a_generator(model: StateVLA, config) -> None:
    model.eval()
    observation = random_input(config, 2)
    draws = [model.sample_actions(observation, 3, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    torch.testing.assert_close(draws[0], draws[1], rtol=0, atol=0)
    assert not torch.equal(draws[0], draws[2])


def test_temperature_scales_the_noise(config) -> None:
    model = StateVLA(load_config("conf/config.yaml", [*TINY, "model.policy.sampling_temperature=0.5"])).eval()
    observation, noise = random_input(config, 2), torch.randn(2, 4, 6)
    halved = model.sample_actions(observation, noise=noise)
    torch.testing.assert_close(halved, model.sample_actions(observation, noise=0.5 * noise, temperature=1.0))
    assert not torch.equal(halved, model.sample_actions(observation, noise=noise, temperature=1.0))


def test_sampler_encodes_once(model: StateVLA, config) -> None:
    calls = []
    model.state_encoder.tokenizer.register_forward_hook(lambda *_: calls.append(1))
    model.sample_actions(random_input(config, 1), steps=7)
    assert len(calls) == 1


def test_prepared_model_answers_alike_and_keeps_its_weights(model: StateVLA, config) -> None:
    observation, noise = random_input(config, 2), torch.randn(2, 4, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        plain = model.eval().sample_actions(observation, noise=noise)
        exact = model.prepare_for_inference("fp32").sample_actions(observation, noise=noise)
        rough = model.prepare_for_inference("bf16").sample_actions(observation, noise=noise)
    torch.testing.assert_close(exact, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rough[..., :-1], plain[..., :-1], rtol=0.1, atol=0.1)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_state_and_observation_give_the_same_loss(model: StateVLA, config) -> None:
    batch = random_chunks(config)
    state = model.encode(batch.observation).detach()
    from_state = ChunkBatch(None, batch.actions, batch.is_pad, state)
    draws = model.draw_flow(len(batch.actions), generator=torch.Generator().manual_seed(3))
    losses = [model.action_loss(b, draws) for b in (batch, from_state)]
    torch.testing.assert_close(losses[0].total, losses[1].total)


def test_padded_steps_do_not_count(model: StateVLA, config) -> None:
    batch = random_chunks(config)
    is_pad = torch.zeros_like(batch.is_pad)
    is_pad[:, 2:] = True
    wild = batch.actions.clone()
    wild[:, 2:, :-1] = 0.0
    losses = []
    for actions in (wild, wild.clone()):
        actions[:, 2:, -1] *= -1 if losses else 1
        losses.append(model.action_loss(ChunkBatch(batch.observation, actions, is_pad)))
    torch.testing.assert_close(losses[0].gripper, losses[1].gripper)


def let_predictor_move(model: StateVLA) -> None:
    """Its last layer begins at zero and lets no gradient through."""
    torch.nn.init.normal_(model.state_encoder.predictor.delta[-1].weight, std=0.1)


def gradients(model: StateVLA) -> set[str]:
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_each_phase_moves_exactly_its_own_parameters(model: StateVLA, config) -> None:
    let_predictor_move(model)
    model.jepa_loss(random_transitions(config)).total.backward()
    phase1 = {name for name, _ in model.phase_parameters("1")}
    assert gradients(model) == phase1
    assert not any(name.startswith("state_encoder.target") for name in phase1)

    model.zero_grad(set_to_none=True)
    model.action_loss(random_chunks(config)).total.backward()
    assert gradients(model) == {name for name, _ in model.phase_parameters("bc")}

    model.zero_grad(set_to_none=True)
    model.freeze_encoder()
    model.action_loss(random_chunks(config)).total.backward()
    assert gradients(model) == {name for name, _ in model.phase_parameters("2")}
    with pytest.raises(UserError, match="phase '3'"):
        list(model.phase_parameters("3"))


def test_frozen_encoder_stays_in_evaluation_mode(model: StateVLA) -> None:
    model.freeze_encoder()
    model.train()
    assert model.policy.training
    assert not any(module.training for module in model.state_encoder.modules())


def test_target_follows_the_online_weights(model: StateVLA, config) -> None:
    observation = random_input(config, 2)
    torch.testing.assert_close(model.encode(observation), model.encode_target(observation))
    with torch.no_grad():
        for parameter in model.state_encoder.encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    apart = (model.encode(observation) - model.encode_target(observation)).norm()
    for _ in range(600):
        model.update_target(0, 1)
    near = (model.encode(observation) - model.encode_target(observation)).norm()
    assert near < 0.4 * apart
    assert model.update_target(1, 1) == 1.0


RECIPE = [
    "model.robot_token_dropout=1.0",
    "model.state_projection=batchnorm",
    "model.policy.condition={robot_state: true, language: true}",
    "training.phase1.frame_skip=3",
    "training.phase1.num_frames=4",
    "training.phase1.rollout_steps=2",
    "training.phase1.target.kind=online",
    "training.phase1.loss={variance_weight: 0, covariance_weight: 0, sigreg_weight: 0.01, "
    "inverse_dynamics_weight: 1.0, keyframe_weight: 1.0, later_keyframe_weight: 0.5}",
]


def test_recipe_switches_together() -> None:
    config = load_config("conf/config.yaml", [*TINY, *RECIPE])
    model = StateVLA(config)
    let_predictor_move(model)
    batch = TransitionBatch(random_input(config, 6, 4), torch.rand(6, 3, 21) * 2 - 1)
    is_known = torch.ones(6, 4, dtype=torch.bool)
    for name in ("keyframe", "later_keyframe"):
        with pytest.raises(UserError, match=rf"loss\.{name}_weight: the batch has no keyframes"):
            model.jepa_loss(batch)
        batch = replace(batch, **{name: torch.randn(6, 4, 3), f"{name}_is_known": is_known})
    losses = model.jepa_loss(batch)
    losses.total.backward()
    hidden = "state_encoder.tokenizer.robot_state"
    assert gradients(model) == {name for name, _ in model.phase_parameters("1") if not name.startswith(hidden)}
    assert not any("target" in name for name, _ in model.named_parameters())
    assert losses.sigreg > 0
    assert losses.inverse_dynamics > 0
    assert losses.keyframe > 0
    assert losses.later_keyframe > 0
    unknown = replace(batch, keyframe_is_known=torch.zeros(6, 4, dtype=torch.bool))
    without = model.jepa_loss(unknown)
    assert without.keyframe == 0
    assert without.later_keyframe == losses.later_keyframe
    terms = losses.prediction + 0.01 * losses.sigreg + losses.inverse_dynamics + losses.keyframe
    assert losses.total.item() == pytest.approx((terms + 0.5 * losses.later_keyframe).item(), rel=1e-5)
    assert model.update_target(1, 2) == 0.0

    model.zero_grad(set_to_none=True)
    chunks = random_chunks(config)
    state = model.encode_for_policy(chunks.observation)
    assert state.shape == (6, 24 + 9 + 12)
    model.action_loss(chunks).total.backward()
    assert {name for name, _ in model.phase_parameters("2")} <= gradients(model)
    assert model.eval().sample_actions(random_input(config, 2)).shape == (2, 4, 7)


def test_hidden_robot_state_never_reaches_the_encoder() -> None:
    config = load_config("conf/config.yaml", [*TINY, "model.robot_token_dropout=1.0"])
    model, observation = StateVLA(config).eval(), random_input(config, 2)
    moved = ModelInput(observation.images, observation.robot_state + 1, observation.language)
    torch.testing.assert_close(model.encode(observation), model.encode(moved))
    open_model = StateVLA(load_config("conf/config.yaml", [*TINY, "model.robot_token_dropout=0.5"])).eval()
    assert not torch.equal(open_model.encode(observation), open_model.encode(moved)), "positive control"


def test_online_target_needs_a_regulariser() -> None:
    with pytest.raises(UserError, match=r"collapses without loss\.sigreg_weight"):
        load_config("conf/config.yaml", ["training.phase1.target.kind=online"])


def test_one_batch_overfit_phase_1(model: StateVLA, config) -> None:
    batch = random_transitions(config, batch=8)
    optimizer = torch.optim.Adam([p for _, p in model.phase_parameters("1")], lr=3e-3)
    start = model.jepa_loss(batch)
    for step in range(60):
        optimizer.zero_grad()
        losses = model.jepa_loss(batch)
        losses.total.backward()
        optimizer.step()
        model.update_target(step, 60)
    assert losses.prediction < 0.3 * start.prediction
    assert losses.total < 0.6 * start.total


@pytest.mark.parametrize("phase", ["2", "bc"])
def test_one_batch_overfit_actions(model: StateVLA, config, phase: str) -> None:
    batch = random_chunks(config, batch=4)
    if phase == "2":
        model.freeze_encoder()
    optimizer = torch.optim.Adam([p for _, p in model.phase_parameters(phase)], lr=5e-3)
    noise = torch.Generator().manual_seed(0)
    start = model.action_loss(batch, model.draw_flow(4, generator=noise))
    tail = []
    for _ in range(250):
        optimizer.zero_grad()
        losses = model.action_loss(batch, model.draw_flow(4, generator=noise))
        losses.total.backward()
        optimizer.step()
        tail.append(losses)
    flow = sum(losses.flow.item() for losses in tail[-30:]) / 30
    gripper = sum(losses.gripper.item() for losses in tail[-30:]) / 30
    assert flow < 0.5 * start.flow.item()
    assert gripper < 0.1 * start.gripper.item()


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_bf16_autocast(model: StateVLA, config, device: str) -> None:
    model, batch = model.to(device), random_transitions(config).to(device)
    exact = model.jepa_loss(batch).total
    with torch.autocast(device, dtype=torch.bfloat16):
        rough = model.jepa_loss(batch).total
        actions = model.sample_actions(random_input(config, 2).to(device))
    rough.backward()
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)
    assert torch.isfinite(actions).all()
