"""Where numba keeps what it has compiled, in places such as containers where neither home nor package is writable."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

VARIABLE = "NUMBA_CACHE_DIR"


def choose_kernel_cache() -> Path:
    """Set `NUMBA_CACHE_DIR` to a temporary folder if the home's cache cannot be written; before numba is imported.

    A folder that the user has set is respected. Processes started from here inherit the choice.

    Returns:
        The folder that will be used.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen)
    usual = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    if _is_writable(usual):
        return usual
    temporary = _private_folder()
    os.environ[VARIABLE] = str(temporary)
    return temporary


def _is_writable(folder: Path) -> bool:
    """Whether it is, or can be made."""
    if not folder.is_absolute():  # `~` of a user without a home
        return False
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _private_folder() -> Path:
    """The user's own folder in the temporary one, the same every time: numba runs what it finds there."""
    owner = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"statevla-kernels-{owner}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="statevla-kernels-"))
    is_mine = stat.S_ISDIR(found.st_mode) and found.st_uid == owner and not found.st_mode & 0o022
    return folder if is_mine else Path(tempfile.mkdtemp(prefix="statevla-kernels-"))
