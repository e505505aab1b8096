"""Where things lie: the home folder of data and caches, what comes along, and paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from statevla.errors import UserError

_PACKAGE = Path(__file__).parents[1]

LEROBOT_POLICIES = "lerobot_policies"
"""Folder, in `home_dir()`, of checkpoints made of what LeRobot trained."""
EARLIER = "earlier"
"""Folder, beside a demo's or an experiment's results, for those of other settings; reports leave it out."""


def home_dir() -> Path:
    """Where data sets, caches and demo runs live: `$STATEVLA_HOME`, else `~/.cache/statevla`.

    Raises:
        UserError: neither the variable is set nor has this user a home.
    """
    try:
        return Path(os.environ.get("STATEVLA_HOME") or Path.home() / ".cache" / "statevla")
    except RuntimeError:
        raise UserError("this user has no home folder; set STATEVLA_HOME to a folder that can be written") from None


def expand_path(path: str | Path) -> Path:
    """Expand `~`, `$STATEVLA_HOME` (with its default) and other environment variables."""
    text = str(path).replace("${STATEVLA_HOME}", "$STATEVLA_HOME").replace("$STATEVLA_HOME", str(home_dir()))
    return Path(os.path.expandvars(text)).expanduser()


def portable_text(text: str) -> str:
    """`text` with `$STATEVLA_HOME` in place of this machine's folder: for what other machines are to read."""
    return text.replace(str(home_dir()), "$STATEVLA_HOME")


def bundled_dir(kind: Literal["conf", "models"]) -> Path:
    """The folder of presets or of trained policies: in the package, or at the top of the source tree it runs from."""
    inside = _PACKAGE / "bundled" / kind
    return inside if inside.is_dir() else _PACKAGE.parents[1] / kind


def presets() -> list[str]:
    """Names of the configurations that come along."""
    return sorted(path.stem for path in bundled_dir("conf").glob("*.yaml"))


def bundled_policies() -> list[str]:
    """Names of the trained policies that come along."""
    return sorted(path.parent.name for path in bundled_dir("models").glob("*/version.json"))


def find_config(name: str | Path) -> Path:
    """The YAML file that a path or a preset's name means; a file of that name here comes first.

    Raises:
        UserError: it is neither; the presets are named.
    """
    path = expand_path(name)
    if path.is_file():
        return path
    if str(name) in presets():
        return bundled_dir("conf") / f"{name}.yaml"
    raise UserError(
        f"config {path}: no such file; give the path of a YAML file, or a preset's name: {', '.join(presets())}"
    )


def is_lent(checkpoint: Path) -> bool:
    """Whether a checkpoint's folder is the package's, the hub's cache's or made of a policy of LeRobot's, where nobody
    else writes."""
    above = checkpoint.parent
    in_hub_cache = above.name == "snapshots" and above.parent.name.startswith("models--")
    made = (home_dir() / LEROBOT_POLICIES).resolve()
    return in_hub_cache or above in (bundled_dir("models").resolve(), made)


def results_dir(checkpoint: Path, name: str) -> Path:
    """The default folder for what is measured on a checkpoint: beside it; here, where it came along or from the hub."""
    return Path(name) if is_lent(checkpoint) else checkpoint.parent / name
