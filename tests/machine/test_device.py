"""Which precision `auto` means."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from statevla.machine.device import autocast, cpu_gains_from_bf16, resolve_precision
from statevla.machine.processor import processor_field

CPU = torch.device("cpu")


def test_named_precisions_are_themselves() -> None:
    assert [resolve_precision(name, CPU) for name in ("bf16", "fp32")] == ["bf16", "fp32"]


def test_auto_on_a_cpu_takes_bf16_only_where_it_is_faster() -> None:
    assert resolve_precision("auto", CPU) == ("bf16" if cpu_gains_from_bf16() else "fp32")
    with autocast(CPU, "auto"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if cpu_gains_from_bf16() else torch.float32)


@pytest.mark.skipif(platform.system() != "Linux" or platform.machine() != "x86_64", reason="reads /proc/cpuinfo")
def test_the_check_agrees_with_the_kernel() -> None:
    text = Path("/proc/cpuinfo").read_text()
    flags = set(text.split("flags", 1)[1].split("\n", 1)[0].split())
    has_gain = bool(flags & {"amx_bf16", "amx_tile"}) or ("avx512_bf16" in flags and "AuthenticAMD" in text)
    assert cpu_gains_from_bf16() == has_gain


@pytest.mark.parametrize(
    ("vendor", "amx", "avx512", "gains"),
    [
        ("GenuineIntel", False, True, False),
        ("GenuineIntel", True, True, True),
        ("AuthenticAMD", False, True, True),
        ("AuthenticAMD", False, False, False),
    ],
)
def test_instructions_count_only_where_they_are_quick(
    monkeypatch: pytest.MonkeyPatch, vendor: str, amx: bool, avx512: bool, gains: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"vendor_id\t: {vendor}\n")
    processor_field.cache_clear()
    assert cpu_gains_from_bf16() == gains
    processor_field.cache_clear()
