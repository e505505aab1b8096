"""Keys of a declaration: a data set's own name, or some of the numbers under it (`observation.state[0:3]`)."""

from __future__ import annotations

import re

_PART = re.compile(r"(.+)\[(\d+):(\d+)\]")


def split_key(key: str) -> tuple[str, slice]:
    """`observation.state[0:3]` → `observation.state` and which of its numbers; all of them without brackets."""
    match = _PART.fullmatch(key)
    return (match[1], slice(int(match[2]), int(match[3]))) if match else (key, slice(None))
