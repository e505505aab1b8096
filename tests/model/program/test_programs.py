"""Programs answer as the modules do, for any sizes, and are dropped as soon as weights may have changed."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from statevla.config import load_config
from statevla.model.mamba import MambaStack
from statevla.model.statevla_model import StateVLA
from statevla.types import ModelInput

pytest.importorskip("numba")
from statevla.model.program import StackProgram, multiplies
from statevla.model.program.acting import MAX_BATCH
from statevla.model.program.program import PackedWeight, Program

# Sizes that fit no vector, panel or tile.
ODD = (
    "model.embed_dim=40", "model.encoder_depth=2", "model.state_dim=26", "model.image_size=48",
    "model.language_dim=37", "model.action_seq_len=7", "model.mamba.d_state=3",
    "model.policy.depth=1", "model.policy.d_state=5", "model.policy.mlp_hidden_dim=22",
)  # fmt: skip
CONV = ("model.stem={kind: conv, channels: [12, 20, 40], strides: [4, 2, 2], film: true, keypoints: 19}",)
VARIANTS = {
    "spec": ("model.stem.patch_size=16",),
    "conv": (*CONV, "model.state_projection=batchnorm", "model.robot_token_dropout=1.0"),
    "conv without extras": ("model.stem={kind: conv, channels: [16, 40], strides: [4, 4]}",),
    "conditions": ("model.policy.condition={robot_state: true, language: true}", "model.policy.mlp_hidden_dim=0"),
    "one level of keypoints": ("model.stem={kind: conv, channels: [16, 40], strides: [4, 2], keypoints: 3}",),
}
HAS_BF16 = pytest.mark.skipif(not multiplies(torch.bfloat16), reason="this processor has no bfloat16 products")


def build(*changes: str) -> StateVLA:
    torch.manual_seed(0)
    model = StateVLA(load_config("conf/config.yaml", [*ODD, *changes])).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "film" in name or ("A_log" not in name and parameter.dim() == 1):
                parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model


def random_input(model: StateVLA, batch: int) -> ModelInput:
    m = model.config.model
    images = torch.rand(batch, len(m.cameras), 3, m.image_size, m.image_size) * 2 - 1
    return ModelInput(images, torch.randn(batch, m.robot_state_dim), torch.randn(batch, m.language_dim))


def random_noise(model: StateVLA, batch: int) -> Tensor:
    return torch.randn(batch, model.config.model.action_seq_len, model.robot.num_continuous)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", [1, 2, MAX_BATCH + 3])
@torch.inference_mode()
def test_programs_answer_as_the_modules_do(variant: str, batch: int) -> None:
    model = build(*VARIANTS[variant])
    observation, noise = random_input(model, batch), random_noise(model, batch)
    z, actions = model.encode(observation), model.sample_actions(observation, noise=noise, temperature=0.7)
    model.prepare_for_inference("fp32")
    assert model.is_prepared
    torch.testing.assert_close(model.encode(observation), z, rtol=1e-5, atol=1e-5)
    found = model.sample_actions(observation, noise=noise, temperature=0.7)
    torch.testing.assert_close(found, actions, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.sample_actions(observation, noise=noise, temperature=0.7), found)


@HAS_BF16
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_half_precision_is_near(variant: str) -> None:
    model = build(*VARIANTS[variant])
    observation, noise = random_input(model, 2), random_noise(model, 2)
    z, actions = model.encode(observation), model.sample_actions(observation, noise=noise)
    model.prepare_for_inference("bf16")
    assert 1e-6 < (model.encode(observation) - z).abs().max() < 2e-2 * z.abs().max()
    found = model.sample_actions(observation, noise=noise)
    assert (found - actions)[..., :-1].abs().max() < 2e-2 * actions.abs().max()


@torch.inference_mode()
def test_an_answer_does_not_depend_on_what_it_is_batched_with() -> None:
    model = build(*VARIANTS["conv"]).prepare_for_inference("fp32")
    observation = random_input(model, 3)
    together = model.encode(observation)
    alone = torch.cat([model.encode(observation.at(slice(i, i + 1))) for i in range(3)])
    assert torch.equal(alone, together)


@torch.inference_mode()
def test_any_number_of_threads_and_solver_steps() -> None:
    model, threads = build(), torch.get_num_threads()
    observation, noise = random_input(model, 1), random_noise(model, 1)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            model._programs = None
            wanted = model.sample_actions(observation, steps=count, noise=noise)
            model.prepare_for_inference("fp32")
            found = model.sample_actions(observation, steps=count, noise=noise)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def test_two_callers_at_once() -> None:
    model = build().prepare_for_inference("fp32")
    observations = [random_input(model, 1) for _ in range(8)]
    wanted = [model.encode(each) for each in observations]

    def repeatedly(i: int) -> bool:
        with torch.inference_mode():
            return all(torch.equal(model.encode(observations[i]), wanted[i]) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(repeatedly, range(8)))


def test_never_used_with_gradients() -> None:
    model = build()
    observation = random_input(model, 1)
    wanted = model.encode(observation)
    model.prepare_for_inference("fp32")
    z = model.encode(observation)
    assert torch.equal(z, wanted)
    z.sum().backward()
    assert model.state_encoder.tokenizer.cls.grad is not None


@pytest.mark.parametrize("change", ["train", "optimizer", "load", "move", "statistics"])
def test_dropped_when_weights_may_have_changed(change: str) -> None:
    model = build(*VARIANTS["conv"]).prepare_for_inference("fp32")
    observation = random_input(model, 1)
    with torch.no_grad():
        before = model.encode(observation)
        if change == "train":
            model.train().eval()
        elif change == "move":
            model.double().float()
        elif change == "load":
            model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})
        elif change == "statistics":
            model.state_encoder.projection[1].running_mean.add_(1.0)
        else:
            torch._foreach_mul_(list(model.parameters()), 1.1)
        found = model.encode(observation)
        assert not model.is_prepared
        assert torch.equal(found, copy.deepcopy(model).encode(observation))
        if change in ("optimizer", "load", "statistics"):
            assert not torch.allclose(found, before)


@torch.inference_mode()
def test_a_stem_without_a_program_acts_by_its_modules() -> None:
    class Averages(nn.Module):
        __module__ = "statevla.model.jepa.stem"  # one more stem there, as CONTRIBUTING.md says

        def __init__(self, dim: int) -> None:
            super().__init__()
            self.map = nn.Conv2d(3, dim, 1)

        def forward(self, images: Tensor, language: Tensor) -> tuple[Tensor, None]:
            return self.map(nn.functional.avg_pool2d(images, 16)), None

    model = build()
    model.state_encoder.tokenizer.stems = nn.ModuleList(Averages(40) for _ in model.config.model.cameras)
    observation = random_input(model, 2)
    z = model.encode(observation)
    model.prepare_for_inference("fp32")
    assert not model.is_prepared
    assert torch.equal(model.encode(observation), z)


def test_copies_have_programs_of_their_own() -> None:
    model = build().prepare_for_inference("fp32")
    twin = copy.deepcopy(model)
    assert model.is_prepared
    assert not twin.is_prepared
    observation = random_input(model, 1)
    with torch.no_grad():
        torch.testing.assert_close(twin.encode(observation), model.encode(observation), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 13), (1, 395)])
@torch.no_grad()
def test_a_stack_alone(batch: int, length: int, last_only: bool) -> None:
    torch.manual_seed(0)
    stack = MambaStack(24, 2, d_state=6, mlp_hidden_dim=18).eval()
    for layer in stack.layers:  # steps large enough for the state to matter
        layer.mixer.dt_proj.bias.add_(3)
        layer.mixer.out_proj.weight.mul_(5)
    x = torch.randn(batch, length, 24)
    program = StackProgram(stack, batch, length, torch.float32, last_only)
    torch.testing.assert_close(program(x), stack(x, last_only=last_only), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=HAS_BF16)])
@pytest.mark.parametrize("rows", [*range(1, 14), 25, 97, 200])
def test_products_of_every_height(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    weight, bias, x = torch.randn(70, 33), torch.randn(70), torch.randn(rows, 33)
    program = Program()
    left, out = program.buffer(rows, 33, dtype), program.buffer(rows, 70)
    left.copy_(x)
    program.matmul(left, PackedWeight(weight, bias, dtype), out, "silu")
    out_again = program.buffer(rows, 70)
    program.matmul(left, PackedWeight(weight, bias, dtype), out_again, "gelu")
    program.run()
    product = left.double() @ weight.to(dtype).double().T + bias.double()
    torch.testing.assert_close(out.double(), nn.functional.silu(product), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out_again.double(), nn.functional.gelu(product), rtol=1e-5, atol=1e-5)
