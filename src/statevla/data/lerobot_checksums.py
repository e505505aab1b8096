"""SHA-256 of every file of a LeRobotDataset that we wrote: neither JSON nor MP4 would show a flipped bit."""

from __future__ import annotations

import json
import os
from pathlib import Path

from statevla.errors import UserError
from statevla.machine.sealed import EDITED
from statevla.machine.storage import sha256

CHECKSUMS_PATH = "meta/sha256.json"


def write_checksums(root: Path) -> None:
    """Note the checksums of all files under `root`, as the last thing that is written.

    Raises:
        OSError: the disk does not take it.
    """
    files = sorted(path for path in root.rglob("*") if path.is_file())
    digests = {path.relative_to(root).as_posix(): sha256(path) for path in files}
    (root / CHECKSUMS_PATH).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


class Checksums:
    """What the files of a data set have to be, where it says so; each is compared once.

    Raises:
        UserError: the list is damaged.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._checked = root, set[Path]()
        self._expected = _read(root / CHECKSUMS_PATH)

    def check(self, file: Path) -> None:
        """Raise a UserError if `file` is not what was written; one that is missing is its reader's to tell."""
        if self._expected is None or file in self._checked or not file.is_file():
            return
        expected = self._expected.get(Path(os.path.relpath(file, self._root)).as_posix())
        if expected not in (EDITED, sha256(file)):
            raise UserError(
                f"data {file}: damaged, or edited (its SHA-256 is not the one in {CHECKSUMS_PATH}); copy it again, or, "
                f'to accept an edit, write "{EDITED}" in place of the SHA-256 there'
            )
        self._checked.add(file)


def _read(path: Path) -> dict[str, str] | None:
    """Name of a file → its SHA-256; None where a data set has no such list."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"data {path}: not readable as JSON; copy the data set again, or delete it to read unchecked")
    return found
