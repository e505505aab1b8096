"""The stem's kernels, forward and backward, against float64 and against PyTorch's own bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from statevla.config import ConvStem
from statevla.model.jepa.stem import ConvolutionalStem

pytest.importorskip("numba")
from statevla.model.jepa import fused_stem

pytestmark = pytest.mark.skipif(not fused_stem.HAS_BF16, reason="this processor has no bfloat16 products")

TEXT = 24
STEMS = {
    "compact": ConvStem(kind="conv", channels=[32, 64, 128, 192], strides=[4, 2, 2, 2], film=True, keypoints=32),
    "plain": ConvStem(kind="conv", channels=[16, 48], strides=[2, 4]),
    "odd grids": ConvStem(kind="conv", channels=[16, 32, 16], strides=[2, 2, 4], film=True, keypoints=5),
    "stride 1": ConvStem(kind="conv", channels=[16, 16, 32], strides=[1, 4, 4], film=True),
}
SIDES = {"compact": 64, "plain": 32, "odd grids": 112, "stride 1": 32}


def build(name: str) -> ConvolutionalStem:
    torch.manual_seed(0)
    stem = ConvolutionalStem(STEMS[name], TEXT, "auto")
    with torch.no_grad():
        for parameter in stem.parameters():
            if parameter.dim() == 1 or not parameter.any():  # FiLM begins at zero, norms at one
                parameter.add_(0.2 * torch.randn_like(parameter))
    return stem


def outputs_and_gradients(stem: ConvolutionalStem, images: Tensor, language: Tensor) -> dict[str, Tensor]:
    """Of a random functional of grid and keypoints."""
    language = language.clone().requires_grad_()
    grid, places = stem(images, language)
    found = {"grid": grid}
    generator = torch.Generator().manual_seed(1)
    total = (grid.double() * torch.randn(grid.shape, generator=generator, dtype=torch.float64)).sum()
    if places is not None:
        found["places"] = places
        total = total + (places.double() * 20 * torch.randn(places.shape, generator=generator).double()).sum()
    parameters = dict(stem.named_parameters())
    wanted = [language, *parameters.values()] if stem.film is not None else list(parameters.values())
    names = ["language", *parameters] if stem.film is not None else list(parameters)
    return found | dict(zip(names, torch.autograd.grad(total, wanted)))


def deviation(found: Tensor, wanted: Tensor) -> float:
    return float(((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-9)).detach())


@pytest.mark.parametrize("name", STEMS)
@pytest.mark.parametrize("count", [1, 19])
def test_as_exact_as_pytorch_in_bfloat16(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stem = build(name)
    images, language = torch.rand(count, 3, SIDES[name], SIDES[name]) * 2 - 1, torch.randn(count, TEXT)
    exact = outputs_and_gradients(copy.deepcopy(stem).double(), images.double(), language.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert stem.is_fused(images)
        fused = outputs_and_gradients(stem, images, language)
        monkeypatch.setattr(ConvolutionalStem, "is_fused", lambda *_: False)
        plain = outputs_and_gradients(stem, images, language)
    assert fused.keys() == exact.keys()
    for key, wanted in exact.items():
        assert fused[key].shape == wanted.shape
        # A bias before a norm of its own channels has a gradient of nothing but rounding.
        if wanted.norm() > 1e-6 * max(value.norm() for value in exact.values()):
            assert deviation(fused[key], wanted) < max(1.3 * deviation(plain[key], wanted), 5e-3), key


def test_the_sums_do_not_depend_on_threads() -> None:
    stem, threads = build("compact"), torch.get_num_threads()
    images, found = torch.rand(19, 3, 64, 64), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            film = torch.zeros(19, 64)
            x = fused_stem.pack_pictures(images, 3).requires_grad_()
            out, inner = fused_stem.stem_stage(x, stem[0], stem[1], film, 1)
            found.append(torch.autograd.grad(out.float().sum() + inner.float().square().sum(), (x, stem[0].weight)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_either_form_of_the_activation_may_be_used_alone() -> None:
    stem = build("compact")
    x = fused_stem.pack_pictures(torch.rand(3, 3, 64, 64), 3)
    film = torch.randn(3, 64).requires_grad_()
    out, inner = fused_stem.stem_stage(x, stem[0], stem[1], film, 1)
    assert torch.equal(out[:, 1:-1, 1:-1], inner)
    border = out.clone()
    border[:, 1:-1, 1:-1] = 0
    assert not border.any()
    weights = torch.randn(inner.shape).bfloat16()
    padded = F.pad(weights, (0, 0, 1, 1, 1, 1), value=7.0)
    of_out = torch.autograd.grad(out, (film, stem[0].weight), padded, retain_graph=True)
    of_inner = torch.autograd.grad(inner, (film, stem[0].weight), weights)
    assert all(torch.equal(a, b) for a, b in zip(of_out, of_inner))


def test_pictures_are_packed_with_zeros_around() -> None:
    images = torch.rand(2, 2, 3, 32, 32)
    packed = fused_stem.pack_pictures(images[:, 1], 3)
    assert torch.equal(packed[:, 3:-3, 3:-3, :3], images[:, 1].permute(0, 2, 3, 1).bfloat16())
    packed[:, 3:-3, 3:-3, :3] = 0
    assert not packed.any()


def test_full_precision_and_other_sizes_take_the_modules() -> None:
    stem, images = build("compact"), torch.rand(1, 3, 64, 64)
    assert not stem.is_fused(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert stem.is_fused(images)
        assert not stem.is_fused(torch.rand(1, 3, 40, 40))
        assert not ConvolutionalStem(ConvStem(kind="conv", channels=[12, 24], strides=[4, 4]), TEXT, "auto").is_fused(
            images
        )
        assert not ConvolutionalStem(STEMS["compact"], TEXT, "chunked").is_fused(images)


@pytest.mark.parametrize("sides", [(16, 8), (7, 4), (5, 1)])
def test_enlarged_as_interpolate_does(sides: tuple[int, int]) -> None:
    from statevla.model.jepa.stem import enlarged

    fine, coarse = sides
    maps = torch.randn(2, coarse, coarse, 3)
    wanted = F.interpolate(maps.permute(0, 3, 1, 2), (fine, fine), mode="bilinear").permute(0, 2, 3, 1)
    torch.testing.assert_close(enlarged(maps, fine), wanted, rtol=1e-5, atol=1e-5)
