"""The API key: read from a private file, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from pathlib import Path

from statevla.errors import UserError
from statevla_client.protocol import API_KEY_SCHEME

MIN_KEY_CHARS, MAX_KEY_CHARS = 16, 1024


def read_api_key(path: str | Path) -> str:
    """The key in a file that holds nothing else.

    Raises:
        UserError: the file is absent, readable by others, or holds no usable key.
    """
    file = Path(path).expanduser()
    try:
        with open(file, encoding="ascii") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            text = opened.read(MAX_KEY_CHARS + 2).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not plain ASCII"
        raise UserError(f"api key file {file}: not readable ({reason}); write one line of ASCII to it") from None
    if os.name == "posix" and mode & 0o077:
        raise UserError(
            f"api key file {file}: expected permissions 600, got {mode:03o}, so others can read it; chmod 600 {file}"
        )
    if not MIN_KEY_CHARS <= len(text) <= MAX_KEY_CHARS or not text.isprintable() or " " in text:
        raise UserError(
            f"api key file {file}: expected one line of {MIN_KEY_CHARS} to {MAX_KEY_CHARS} characters without spaces; "
            "make one with `openssl rand -hex 32`"
        )
    return text


class ApiKey:
    """Checks `Authorization: Api-Key <key>` headers."""

    def __init__(self, key: str) -> None:
        self._digest = _digest(f"{API_KEY_SCHEME} {key}")

    def allows(self, header: str | None) -> bool:
        """Whether the header holds the key; takes the same time for every wrong one."""
        return hmac.compare_digest(_digest(header or ""), self._digest)


def _digest(text: str) -> bytes:
    # Of equal length whatever the text: the comparison then tells nothing about the key's length either.
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
