"""The temporal JEPA loss against its formulas, the EMA target, the tokenizer's order, and collapse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from statevla.config import JepaLossConfig, load_config
from statevla.errors import UserError
from statevla.model.jepa.encoder import Encoder, ema_momentum, update_ema
from statevla.model.jepa.loss import (
    JepaLosses,
    covariance_loss,
    keyframe_loss,
    prediction_loss,
    sigreg,
    variance_loss,
    weighted,
)
from statevla.model.jepa.stem import Keypoints
from statevla.model.jepa.temporal_predictor import TemporalPredictor
from statevla.model.jepa.tokenizer import Tokenizer
from statevla.types import ModelInput

TINY = [
    "model.embed_dim=32",
    "model.encoder_depth=2",
    "model.state_dim=24",
    "model.image_size=32",
    "model.language_dim=12",
    "model.stem.patch_size=16",
]


@pytest.fixture(scope="module")
def tiny():
    return load_config("conf/config.yaml", TINY)


def random_input(config, *batch: int) -> ModelInput:
    model = config.model
    return ModelInput(
        images=torch.rand(*batch, len(model.cameras), 3, model.image_size, model.image_size) * 2 - 1,
        robot_state=torch.randn(*batch, model.robot_state_dim),
        language=torch.randn(*batch, model.language_dim),
    )


def test_loss_terms_are_the_formulas() -> None:
    torch.manual_seed(0)
    prediction, target = torch.randn(8, 3, 5), torch.randn(8, 3, 5)
    z = prediction.flatten(0, 1) * 0.3
    covariance = torch.cov(z.T)
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    assert prediction_loss([prediction], target) == pytest.approx(((prediction - target) ** 2).mean().item(), rel=1e-5)
    assert variance_loss(z) == pytest.approx(
        (1 - (covariance.diagonal() + 1e-4).sqrt()).clamp_min(0).mean().item(), rel=1e-4
    )
    assert covariance_loss(z) == pytest.approx((off_diagonal**2).sum().item() / 5, rel=1e-4)
    known = torch.tensor([[True, False, True]] * 8)
    error = ((prediction - target) ** 2).mean(-1)
    assert keyframe_loss(prediction, target, known) == pytest.approx((error * known).mean().item(), rel=1e-5)


def test_the_total_is_the_weighted_sum_of_all_terms() -> None:
    weights = {name.removesuffix("_weight"): 0.5 + i for i, name in enumerate(JepaLossConfig.model_fields)}
    config = JepaLossConfig(**{f"{name}_weight": weight for name, weight in weights.items()})
    terms = {name: torch.tensor(2.0**i) for i, name in enumerate(weights)}
    losses = weighted(config, **terms)
    assert losses.total.item() == pytest.approx(sum(weights[name] * terms[name].item() for name in weights))
    assert losses._asdict() == {"total": losses.total, **terms}


@pytest.mark.parametrize("loss", [variance_loss, covariance_loss, lambda z: sigreg(z.unflatten(0, (64, 2)))])
def test_autocast_rounds_no_regulariser(loss: Callable[[Tensor], Tensor]) -> None:
    z = torch.randn(128, 16)
    torch.manual_seed(0)
    exact = loss(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(0)
        assert torch.equal(loss(z), exact)


def test_regulariser_sees_collapse_and_redundancy() -> None:
    varied = torch.randn(4096, 4)
    assert variance_loss(varied * 2) < 1e-3 < 0.9 < variance_loss(torch.zeros(64, 4))
    assert covariance_loss(varied) < 0.02 < 2.0 < covariance_loss(varied[:, :1].expand(-1, 4))


def test_rollouts_are_scored_against_their_own_frames() -> None:
    target = torch.arange(3.0).reshape(1, 3, 1).expand(4, 3, 2)
    assert prediction_loss([target, target[:, 1:]], target) == 0
    assert prediction_loss([target, target[:, :-1]], target) == 0.5


def test_sigreg_knows_a_normal_from_other_distributions() -> None:
    torch.manual_seed(0)
    normal = torch.randn(512, 3, 8)
    statistic = {
        "normal": sigreg(normal),
        "collapsed": sigreg(torch.zeros(512, 3, 8)),
        "narrow": sigreg(normal * 0.5),
        "shifted": sigreg(normal + 1.0),
        "one direction": sigreg(normal[..., :1].expand(-1, -1, 8)),
    }
    assert statistic.pop("normal") < 2.0
    assert min(statistic.values()) > 15.0


def test_ema_schedule_and_update() -> None:
    assert ema_momentum(0, 1000, 0.99, 1.0) == pytest.approx(0.99)
    assert ema_momentum(500, 1000, 0.99, 1.0) == pytest.approx(0.995)
    assert ema_momentum(1000, 1000, 0.99, 1.0) == pytest.approx(1.0)
    assert ema_momentum(250, 1000, 0.99, 1.0) < ema_momentum(251, 1000, 0.99, 1.0)
    target, online = [torch.tensor([0.0, 4.0])], [torch.tensor([1.0, 0.0])]
    update_ema(target, online, 0.75)
    torch.testing.assert_close(target[0], torch.tensor([0.25, 3.0]))


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_tokens_and_their_order(tiny) -> None:
    """Changing one input moves exactly its own tokens, which stand where the spec puts them."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(tiny.model)
    observation = random_input(tiny, 2)
    tokens = tokenizer(observation)
    per_camera = tiny.model.tokens_per_camera
    assert tokens.shape == (2, 3 + 2 * per_camera, 32)

    def changed(**fields: Tensor) -> list[int]:
        other = tokenizer(ModelInput(**{**vars(observation), **fields}))
        return (tokens - other).abs().amax(dim=(0, 2)).nonzero().flatten().tolist()

    assert changed(language=observation.language + 1) == [0]
    assert changed(robot_state=observation.robot_state + 1) == [1]
    for camera in range(2):
        images = observation.images.clone()
        images[:, camera] += 1
        first = 2 + camera * per_camera
        assert changed(images=images) == list(range(first, first + per_camera))


def test_film_begins_as_the_plain_stem_and_then_reads_the_instruction() -> None:
    """Old weights fit; until FiLM has learnt something nothing changes, afterwards the cameras' tokens do."""
    stem = "model.stem={kind: conv, channels: [16, 32], strides: [8, 2], film: %s}"
    plain, film = (
        Tokenizer(load_config("conf/config.yaml", [*TINY[:-1], stem % on]).model) for on in ("false", "true")
    )
    missing, unexpected = film.load_state_dict(plain.state_dict(), strict=False)
    assert (set(missing), unexpected) == ({f"stems.{i}.film.0.{n}" for i in (0, 1) for n in ("weight", "bias")}, [])
    observation = random_input(load_config("conf/config.yaml", TINY), 2)
    torch.testing.assert_close(film(observation), plain(observation))
    film(observation).square().sum().backward()
    for stem_module in film.stems:
        weight = stem_module.film[0].weight
        assert weight.grad.abs().sum() > 0
        nn.init.normal_(weight, std=0.1)
    before, after = (film(ModelInput(**{**vars(observation), "language": words})) for words in torch.randn(2, 2, 12))
    moved = (before - after).abs().amax(dim=(0, 2)).nonzero().flatten().tolist()
    assert moved == [0, *range(2, before.shape[1] - 1)]


def test_keypoints_say_where_a_feature_is() -> None:
    """Peaks anywhere are found where they are, whichever level sees them."""
    keypoints = Keypoints([3, 2], 1)
    for layer in keypoints.maps:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    fine, coarse = torch.zeros(1, 8, 8, 3), torch.zeros(1, 4, 4, 2)
    torch.testing.assert_close(keypoints([fine, coarse]), torch.zeros(1, 1, 2))
    fine[0, 2, 7, 1] = coarse[0, 0, 1, 0] = 100.0
    with torch.no_grad():
        keypoints.maps[0].weight[0, 1] = 1.0
    torch.testing.assert_close(keypoints([fine, coarse]), torch.tensor([[[2 / 7 * 2 - 1, 1.0]]]))
    with torch.no_grad():
        keypoints.maps[0].weight.zero_()
        keypoints.maps[1].weight[0, 0] = 1.0
    row, column = keypoints([fine, coarse])[0, 0]
    assert row < -0.7
    assert -0.5 < column < 0


def test_keypoints_join_cls(tiny) -> None:
    """A picture moves its own tokens and CLS; the instruction moves CLS too, once FiLM listens."""
    stem = "model.stem={kind: conv, channels: [16, 32], strides: [8, 2], film: true, keypoints: 4}"
    model = load_config("conf/config.yaml", [*TINY[:-1], stem]).model
    tokenizer = Tokenizer(model)
    observation = random_input(tiny, 2)
    base = tokenizer(observation)

    def moved(**fields: Tensor) -> list[int]:
        other = tokenizer(ModelInput(**{**vars(observation), **fields}))
        return (base - other).abs().amax(dim=(0, 2)).nonzero().flatten().tolist()

    last, first = base.shape[1] - 1, 2 + model.tokens_per_camera
    images = observation.images.clone()
    images[:, 1] = images[:, 1].flip(-1)
    assert moved(images=images) == [*range(first, last), last]
    words = torch.randn(2, 12)
    assert moved(language=words) == [0]
    for module in tokenizer.stems:
        nn.init.normal_(module.film[0].weight, std=0.1)
    base = tokenizer(observation)
    assert moved(language=words) == [0, *range(2, last + 1)]


def test_keypoints_need_a_layer_to_look_in() -> None:
    with pytest.raises(UserError, match=r"stem.*keypoints are looked for between two convolutions"):
        load_config(
            "conf/config.yaml", [*TINY[:-1], "model.stem={kind: conv, channels: [32], strides: [8], keypoints: 4}"]
        )


def test_encoder_is_causal_and_cls_sees_all(tiny) -> None:
    torch.manual_seed(0)
    encoder = Encoder(tiny.model).eval()
    tokens = torch.randn(1, 12, 32)
    base = encoder(tokens)
    for i in (0, 5, 11):
        changed = tokens.clone()
        changed[:, i] += 1.0
        moved = (encoder(changed) - base).abs().amax(dim=(0, 2))
        assert (moved[:i] == 0).all()
        assert (moved[i:] > 0).all(), "positive control: what comes after does move"


def test_predictor_begins_as_a_copy_and_learns_what_the_action_does() -> None:
    torch.manual_seed(0)
    predictor = TemporalPredictor(state_dim=6, action_dim=3, hidden_dim=32)
    state, action = torch.randn(64, 5, 6), torch.randn(64, 5, 3)
    assert torch.equal(predictor(state, action), state)
    # What happens is a product of state and action: neither alone says it.
    goal = state + action.repeat(1, 1, 2) * state
    optimizer = torch.optim.Adam(predictor.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        (predictor(state, action) - goal).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in predictor.parameters())
    copied, learnt = (state - goal).square().mean(), (predictor(state, action) - goal).square().mean()
    assert learnt < 0.3 * copied
    shuffled = predictor(state, action.roll(1, 0))
    assert (shuffled - goal).square().mean() > 3 * learnt


def collapse_std(config: JepaLossConfig) -> float:
    """Train a small joint-embedding predictor whose target is its own encoder; the least std of any latent dim."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 6))
    predictor = TemporalPredictor(6, 2, 16)
    optimizer = torch.optim.Adam([*encoder.parameters(), *predictor.parameters()], lr=3e-3)
    for _ in range(400):
        state, action = torch.randn(64, 8), torch.randn(64, 2)
        following = state + torch.cat([action] * 4, dim=-1) * 0.3
        z = encoder(state)
        prediction = predictor(z, action)
        # The gradient flows into both sides: without a regulariser the trivial solution is an attractor.
        terms = dict.fromkeys(JepaLosses._fields[1:], torch.zeros(())) | {
            "prediction": prediction_loss([prediction.unsqueeze(1)], encoder(following).unsqueeze(1)),
            "variance": variance_loss(z),
            "covariance": covariance_loss(z),
        }
        losses = weighted(config, **terms)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    with torch.no_grad():
        return encoder(torch.randn(512, 8)).std(dim=0).min().item()


def test_regulariser_prevents_collapse_and_its_absence_does_not() -> None:
    assert collapse_std(JepaLossConfig()) > 0.5
    assert collapse_std(JepaLossConfig(variance_weight=0.0, covariance_weight=0.0)) < 0.1
