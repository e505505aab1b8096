"""The arrows between modules (CONTRIBUTING.md) hold, none runs in a circle, and simulators stay in their worlds."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import statevla

SOURCE = Path(statevla.__file__).parent
SIMULATORS = {"libero", "robosuite", "mujoco", "gymnasium", "bddl", "lerobot_env_so101"}

# A module may import from rooms before its own, from rooms beside it, and from its own.
LAYERS = [
    {"errors"},
    {"robots", "machine"},
    {"types"},
    {"config"},
    {"transforms", "model"},
    {"data", "checkpoints"},
    {"acting"},
    {"report", "serving", "diagnostics"},
    {"training"},
    {"worlds"},
    {"commands"},
]
RANK = {room: i for i, layer in enumerate(LAYERS) for room in layer}
# data reads files and never sees a model.
FORBIDDEN = {"data": {"model"}, "transforms": {"model"}}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


# The front door: `import statevla` offers names from every room.
FILES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"}


def imports_of(path: Path) -> set[str]:
    """Modules, and names taken from modules, that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            # `from package import module` needs the module, whatever else the package offers.
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= full if full <= FILES.keys() else {node.module, *full}
    return found


def room_of(module: str) -> str:
    return module.split(".")[1]


def circle(arrows: Mapping[str, Iterable[str]]) -> list[str]:
    """One circle of a graph, or nothing."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


ARROWS = {
    name: {other for other in imports_of(path) if other in FILES and other != name} for name, path in FILES.items()
}


@pytest.mark.parametrize("module", [name for name in FILES if name != "statevla.__main__"])
def test_arrows(module: str) -> None:
    room = room_of(module)
    assert room in RANK, f"add '{room}' to LAYERS"
    for name in imports_of(FILES[module]):
        top = name.partition(".")[0]
        assert top not in SIMULATORS or room == "worlds", f"{module} imports {name}: only worlds/ may"
    for other in ARROWS[module]:
        assert RANK[room_of(other)] <= RANK[room], f"{module} imports {other}, which lies above it"
        assert room_of(other) not in FORBIDDEN.get(room, set()), f"{module} must not import {other}"


def test_no_circle_of_modules() -> None:
    assert circle(ARROWS) == []


def test_no_circle_of_rooms() -> None:
    rooms: dict[str, set[str]] = {}
    for name, others in ARROWS.items():
        rooms.setdefault(room_of(name), set()).update(room_of(other) for other in others)
    assert circle({room: others - {room} for room, others in rooms.items()}) == []


def test_circles_and_imports_are_seen(tmp_path: Path) -> None:
    """Positive control: a circle is found, and so are plain, from- and nested imports."""
    assert sorted(circle({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]})[1:]) == ["a", "b", "c"]
    file = tmp_path / "x.py"
    file.write_text(
        "import mujoco\nfrom statevla import data\ndef f():\n    from statevla.worlds.libero.env import x\n"
    )
    assert {"mujoco", "statevla.data", "statevla.worlds.libero.env"} <= imports_of(file)


def test_the_front_hall_is_small() -> None:
    entries = [path for path in SOURCE.iterdir() if not path.name.startswith(("__", "py."))]
    assert len(entries) <= 18, sorted(path.name for path in entries)


def test_the_public_face_is_light_and_complete() -> None:
    code = (
        "import sys, statevla\n"
        "assert 'torch' not in sys.modules\n"
        "from statevla import StateVLA, load_config, load_policy, make_world\n"
        "assert all(hasattr(statevla, name) for name in statevla.__all__)\n"
        # PyTorch's compiler, half of what this would take, is for training with `compile: true`.
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
