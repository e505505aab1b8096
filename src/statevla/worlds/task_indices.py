"""Which tasks of a suite, as people write it on a command line."""

from __future__ import annotations

import re

from statevla.errors import UserError


def parse_indices(text: str, count: int, suite: str) -> list[int]:
    """Read `all`, `3`, `0,3,5` or `2-6` (and mixtures) into indices below `count`, in order, without repeats.

    Raises:
        UserError: the text cannot be read, or an index is out of range.
    """
    if text.strip().lower() == "all":
        return list(range(count))
    indices: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"tasks: expected 'all' or indices such as '0,3,5' or '0-4', got '{text}'; name indices")
        first, last = int(match[1]), int(match[2] or match[1])
        check_index(last, count, suite)  # before a long list is made of it
        indices += range(first, last + 1)
    return [check_index(index, count, suite) for index in dict.fromkeys(indices)]


def check_index(index: int, count: int, suite: str) -> int:
    """`index`, if there is such a task.

    Raises:
        UserError: it is out of range.
    """
    if not 0 <= index < count:
        raise UserError(f"task {index} of suite '{suite}': it has tasks 0 to {count - 1}; choose one of them")
    return index
