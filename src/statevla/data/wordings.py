"""The same task in other words: half of the training episodes are told one of the wordings that a file has for theirs.

A sentence encoder puts two tasks that differ in a word ("on the cookie box", "next to the cookie box") nearer to one
another than two wordings of the same task. A policy that was trained on one wording each listens to the wrong thing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from statevla.data.cache import FrameCache
from statevla.errors import UserError
from statevla.machine.yaml_text import read_yaml
from statevla.transforms import normalize_instruction


def read_wordings(file: Path) -> dict[str, list[str]]:
    """Instruction → other ways to say it, all normalised, from a YAML file.

    Raises:
        UserError: it is unreadable, not of this form, or one sentence stands for two instructions.
    """
    where = f"data.wordings {file}"
    tree = read_yaml(file, where)
    if not isinstance(tree, dict) or not tree:
        raise UserError(f"{where}: expected instructions with lists of wordings; see docs/own-data.md")
    wordings, meaning = {}, {normalize_instruction(str(key)): str(key) for key in tree}
    for key, others in tree.items():
        if not isinstance(others, list) or not all(isinstance(other, str) and other.strip() for other in others):
            raise UserError(f"{where}: '{key}': expected a list of sentences, got {others!r:.80}")
        instruction = normalize_instruction(str(key))
        wordings[instruction] = list(dict.fromkeys(normalize_instruction(other) for other in others))
        for other in wordings[instruction]:
            if meaning.setdefault(other, str(key)) != str(key):
                raise UserError(f"{where}: '{other}' stands for both '{meaning[other]}' and '{key}'; keep one of them")
    return wordings


def reword(cache: FrameCache, wordings: dict[str, list[str]], episodes: Sequence[int]) -> int:
    """Tell half of these episodes in other words, each always in the same; returns how many have others.

    It changes `cache.instructions` and `cache.episodes`, in memory alone. Which episodes, and which words, follow from
    their names: a phase 2 tells them as its phase 1 did.

    Raises:
        UserError: there are none for any of these episodes, or a wording is another instruction of the data.
    """
    own = list(cache.instructions)
    rows = {text: row for row, text in enumerate(own)}
    if not any(wordings.get(own[cache.episodes[index].instruction]) for index in episodes):
        raise UserError(
            f"data.wordings: has none for the data in {cache.folder}, whose instructions are such as '{own[0]}'; add "
            "them as keys, or leave data.wordings out"
        )
    for instruction in own:
        for other in wordings.get(instruction, []):
            if other in rows:
                raise UserError(f"data.wordings: '{other}' is another instruction of the data; remove it")
    changed = 0
    for index in episodes:
        episode = cache.episodes[index]
        others = wordings.get(own[episode.instruction])
        if not others:
            continue
        number = int.from_bytes(hashlib.sha256(episode.episode_id.encode()).digest()[:8], "little")
        if number % 2:
            text = others[number // 2 % len(others)]
            row = rows.setdefault(text, len(rows))
            cache.episodes[index] = replace(episode, instruction=row)
            changed += 1
    cache.instructions = list(rows)
    return changed
