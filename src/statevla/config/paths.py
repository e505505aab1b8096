"""Where things lie: the home folder of data and caches, and paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path

EARLIER = "earlier"
"""Folder, beside a demo's or an experiment's results, for those of other settings; reports leave it out."""


def home_dir() -> Path:
    """Where data sets, caches and demo runs live: `$STATEVLA_HOME`, else `~/.cache/statevla`."""
    return Path(os.environ.get("STATEVLA_HOME") or Path.home() / ".cache" / "statevla")


def expand_path(path: str | Path) -> Path:
    """Expand `~`, `$STATEVLA_HOME` (with its default) and other environment variables."""
    text = str(path).replace("${STATEVLA_HOME}", "$STATEVLA_HOME").replace("$STATEVLA_HOME", str(home_dir()))
    return Path(os.path.expandvars(text)).expanduser()


def portable_text(text: str) -> str:
    """`text` with `$STATEVLA_HOME` in place of this machine's folder: for what other machines are to read."""
    return text.replace(str(home_dir()), "$STATEVLA_HOME")
