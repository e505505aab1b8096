"""Sealed JSON: any other value is noticed, an edit may be meant, and what was never sealed is let through."""

from __future__ import annotations

import json
from typing import Any

import pytest

from statevla.errors import UserError
from statevla.machine.sealed import check_seal, seal

TREE = {"alpha": 0.1, "names": ["a", "b"], "free": {"x": 1}}


def read(tree: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """As it comes back from a file."""
    return json.loads(json.dumps(tree | changes))  # type: ignore[no-any-return]


def test_what_is_as_it_was_written_passes_whatever_its_spelling() -> None:
    sealed = seal(TREE, "free")
    check_seal(read(sealed), "x", "fix", "free")
    check_seal(json.loads(json.dumps(dict(reversed(sealed.items())), indent=3)), "x", "fix", "free")
    check_seal(read(sealed, free=[]), "x", "fix", "free")
    assert seal(sealed, "free") == sealed


@pytest.mark.parametrize(
    "changes", [{"alpha": 0.2}, {"alpha": None}, {"names": ["b", "a"]}, {"more": 1}, {"seal": "0"}, {"seal": None}]
)
def test_what_is_not_is_refused_and_may_be_meant(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError) as raised:
        check_seal(read(seal(TREE), **changes), "the file", "take another one")
    assert str(raised.value) == (
        "the file: damaged, or edited (its 'seal' is not the SHA-256 of the rest); take another one, or, to accept an "
        'edit, write "edited" in place of the seal'
    )
    check_seal(read(seal(TREE), **changes | {"seal": "edited"}), "the file", "take another one")


def test_a_seal_that_is_gone_is_missed_where_there_was_one() -> None:
    with pytest.raises(UserError, match="damaged"):
        check_seal(TREE, "x", "fix")
    check_seal(TREE, "x", "fix", was_sealed=False)
    with pytest.raises(UserError, match="damaged"):
        check_seal(read(seal(TREE), alpha=1), "x", "fix", was_sealed=False)
