"""JSON that says itself whether it is as it was written: `seal` is the SHA-256 of everything else in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from statevla.errors import UserError

SEAL = "seal"
EDITED = "edited"
"""What stands in place of a SHA-256 where somebody has changed what it was taken of, and means it."""


def seal(tree: Mapping[str, Any], *free: str) -> dict[str, Any]:
    """`tree` with its seal, which does not cover the keys `free`."""
    return {**tree, SEAL: _digest(tree, free)}


def check_seal(tree: Mapping[str, Any], source: str, fix: str, *free: str, was_sealed: bool = True) -> None:
    """Check a tree from JSON, unless it says that it was edited.

    Args:
        was_sealed: whether it had a seal to begin with; if not, it is checked only where it has one.

    Raises:
        UserError: it is not as it was written; it begins with `source`, and names `fix` beside how to accept an edit.
    """
    if tree.get(SEAL, None if was_sealed else EDITED) not in (EDITED, _digest(tree, free)):
        raise UserError(
            f"{source}: damaged, or edited (its '{SEAL}' is not the SHA-256 of the rest); {fix}, or, to accept an "
            f'edit, write "{EDITED}" in place of the seal'
        )


def _digest(tree: Mapping[str, Any], free: tuple[str, ...]) -> str:
    covered = {key: value for key, value in tree.items() if key != SEAL and key not in free}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()
