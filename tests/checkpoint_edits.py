"""Change a file of a checkpoint as a person does who means it."""

from __future__ import annotations

import json
from pathlib import Path


def edit(path: Path, text: str) -> None:
    """Write `text` into a file of a checkpoint, and into its `version.json` that the file was edited."""
    path.write_text(text)
    version = path.with_name("version.json")
    tree = json.loads(version.read_text())
    tree["sha256"][path.name] = "edited"
    version.write_text(json.dumps(tree))
