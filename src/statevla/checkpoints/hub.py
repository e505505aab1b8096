"""Checkpoints of the Hugging Face hub: which names mean one, and how they get here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from statevla.errors import UserError

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def is_repo_id(name: str | Path) -> bool:
    """Whether a name is `owner/repository` and no path of this machine: its first part is no folder here."""
    text = str(name)
    return isinstance(name, str) and _REPO_ID.fullmatch(text) is not None and not Path(text.split("/")[0]).exists()


def hub_dataset(path: str) -> str | None:
    """The hub's name of a data set by where the hub's libraries keep it here; None for other places.

    That is `…/datasets--owner--name/…`, or `…/huggingface/lerobot/owner/name`.
    """
    parts = Path(path).parts
    for number, part in enumerate(parts):
        if part.startswith("datasets--") and part.count("--") == 2:
            return part.removeprefix("datasets--").replace("--", "/")
        if parts[number : number + 2] == ("huggingface", "lerobot") and len(parts) == number + 4:
            name = "/".join(parts[number + 2 :])
            return name if _REPO_ID.fullmatch(name) else None
    return None


def download(repo_id: str) -> Path:
    """The folder of a repository of the hub, from the hub's own cache where it is there already.

    Raises:
        UserError: `huggingface_hub` is not installed, there is no such repository, or no hub is reachable.
    """
    hub = import_hub()
    try:
        return Path(hub.snapshot_download(repo_id))
    except Exception as error:
        raise UserError(f"checkpoint {repo_id}: no such folder here, and not from the hub ({_reason(error)})") from None


def upload(folder: Path, repo_id: str, private: bool) -> str:
    """Create a repository where needed, put the files of a folder into it, return its address.

    Raises:
        UserError: `huggingface_hub` is not installed, no hub is reachable, or it refuses.
    """
    hub = import_hub()
    try:
        api = hub.HfApi()
        url = str(api.create_repo(repo_id, private=private, exist_ok=True))
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    except Exception as error:
        raise UserError(
            f"hub {repo_id}: not uploaded ({_reason(error)}); log in with 'hf auth login', or share the folder that "
            "save_pretrained writes"
        ) from None
    return url


def import_hub() -> Any:
    """`huggingface_hub`; a UserError where it is absent."""
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise UserError("hub: needs huggingface_hub; pip install 'statevla[hub]'") from None
    return huggingface_hub


def _reason(error: Exception) -> str:
    """The library raises errors of its own, of the transport's and of the system's: the first line of any."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
