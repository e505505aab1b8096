"""The client needs no torch, neither by itself nor through the package."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from statevla.serving.client import PolicyClient
heavy = {"torch", "numba", "pydantic", "scipy", "h5py", "transformers"} & set(sys.modules)
sys.exit(f"imported {sorted(heavy)}" if heavy else 0)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_client_imports_nothing_heavy() -> None:
    result = run(CODE)
    assert result.returncode == 0, result.stderr


def test_the_check_sees_torch() -> None:
    """Positive control."""
    result = run("import torch\n" + CODE)
    assert result.returncode != 0
    assert "torch" in result.stderr
