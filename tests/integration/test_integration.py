"""Clients of other projects, unmodified, in environments of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NOT_OFFERED = 77


def run_script(name: str, timeout_s: float) -> None:
    result = subprocess.run(
        ["bash", str(HERE / name)],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    if result.returncode == NOT_OFFERED:
        pytest.skip(result.stderr.strip().splitlines()[-1])
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.ci
def test_openpi_client() -> None:
    run_script("check_openpi_client.sh", 500)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_lerobot_plugin() -> None:
    run_script("check_lerobot_plugin.sh", 2300)
