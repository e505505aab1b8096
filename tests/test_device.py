"""Which precision `auto` means."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from statevla.device import autocast, cpu_multiplies_bf16, resolve_precision

CPU = torch.device("cpu")


def test_named_precisions_are_themselves() -> None:
    assert [resolve_precision(name, CPU) for name in ("bf16", "fp32")] == ["bf16", "fp32"]


def test_auto_on_a_cpu_takes_bf16_only_where_there_are_instructions() -> None:
    assert resolve_precision("auto", CPU) == ("bf16" if cpu_multiplies_bf16() else "fp32")
    with autocast(CPU, "auto"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if cpu_multiplies_bf16() else torch.float32)


@pytest.mark.skipif(platform.system() != "Linux" or platform.machine() != "x86_64", reason="reads /proc/cpuinfo")
def test_the_check_agrees_with_the_kernel() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split())
    assert cpu_multiplies_bf16() == bool(flags & {"avx512_bf16", "amx_bf16", "amx_tile"})
