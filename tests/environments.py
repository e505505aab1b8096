"""Interpreters that have what a distribution depends on and nothing else: links to the packages of this one."""

from __future__ import annotations

import tomllib
import venv
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement


def project_of(folder: Path) -> dict[str, Any]:
    """The table `project` of a folder's pyproject.toml."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def make_interpreter(folder: Path, requirements: list[str], source: Path) -> Path:
    """An environment in `folder` with what `requirements` lead to, without extras, and `source` to import from."""
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "source.pth").write_text(str(source))
    for name in _closure(requirements, set()):
        installed = distribution(name)
        tops = {file.parts[0] for file in installed.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            target = Path(str(installed.locate_file(top)))
            if target.exists() and not (site / top).exists():
                (site / top).symlink_to(target)
    return folder / "bin" / "python"


def _closure(requirements: list[str], found: set[str]) -> set[str]:
    for requirement in map(Requirement, requirements):
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not applies or requirement.name in found:
            continue
        found.add(requirement.name)
        _closure(distribution(requirement.name).requires or [], found)
    return found
