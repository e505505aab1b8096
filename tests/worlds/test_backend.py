"""The installation check and the choice of a rendering backend."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from statevla.errors import UserError
from statevla.worlds import backend


@pytest.mark.parametrize("extra", ["sim", "so101"])
def test_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch, extra: backend.Extra) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(backend, "version", missing)
    with pytest.raises(UserError, match=rf"pip install 'statevla\[{extra}\]'"):
        backend.versions(extra)


def test_other_mujoco_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "version", lambda name: "3.9.0")
    with pytest.raises(UserError, match=r"expected mujoco 3\.3\.2, got 3\.9\.0.*pip install mujoco==3\.3\.2"):
        backend.versions("sim")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    pytest.importorskip("mujoco")
    monkeypatch.setenv("STATEVLA_HOME", str(tmp_path))
    return tmp_path


class Machine:
    """An interpreter that draws nothing: it notes which backend it is asked for, and renders with the working ones."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        python = folder / "python"
        python.write_text(
            f"""#!/bin/sh
echo $MUJOCO_GL >> {folder}/tried
[ -e {folder}/$MUJOCO_GL ] && echo rendered && exit 0
echo "first" >&2; echo "$MUJOCO_GL is broken" >&2; exit 3
"""
        )
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))

    def works(self, name: str) -> None:
        (self.folder / name).touch()

    @property
    def tried(self) -> list[str]:
        file = self.folder / "tried"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, home: Path) -> Machine:
    monkeypatch.setattr(backend, "gpu_devices", lambda: ["renderD128"])
    return Machine(home / "machine", monkeypatch)


def test_second_backend_is_taken_and_remembered(machine: Machine, home: Path) -> None:
    machine.works("osmesa")
    assert backend.choose_backend() == "osmesa"
    assert backend.choose_backend() == "osmesa"
    assert machine.tried == ["egl", "osmesa"]  # the second call asked nobody
    assert (home / "backend.json").is_file()


def test_damaged_memory_is_ignored(monkeypatch: pytest.MonkeyPatch, machine: Machine, home: Path) -> None:
    (home / "backend.json").write_text("[1, 2")
    machine.works("egl")
    machine.works("osmesa")
    monkeypatch.setattr(backend, "gpu_devices", list)
    assert backend.choose_backend() == "osmesa"  # without a GPU
    assert machine.tried == ["osmesa"]


def test_no_backend_says_what_to_install(machine: Machine, home: Path) -> None:
    """For each the last line of its complaint."""
    with pytest.raises(
        UserError, match=r"\(egl: egl is broken; osmesa: osmesa is broken\); run: apt-get install libosmesa6 libgl1"
    ):
        backend.choose_backend()
    assert not (home / "backend.json").exists()


def test_users_own_choice_is_respected(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert backend.prepare("sim") == "glfw"
    assert not machine.tried


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other backends")
def test_a_choice_that_there_is_not_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.setenv("MUJOCO_GL", "eglx")
    with pytest.raises(UserError, match="MUJOCO_GL=eglx: expected egl or osmesa, or glfw with a display; correct it"):
        backend.prepare("sim")
    # Commands say so before MuJoCo is imported, which would raise.
    done = subprocess.run(
        [sys.executable, "-m", "statevla", "collect", "--suite", "libero_object"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: MUJOCO_GL=eglx: expected egl or osmesa")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems render natively")
def test_pyopengls_own_variable_agrees_or_is_set(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LIBERO's users set it, and MuJoCo refuses to be imported where the two differ."""
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    with pytest.raises(UserError, match="PYOPENGL_PLATFORM=egl: expected osmesa, as MUJOCO_GL says, or none; unset it"):
        backend.prepare("sim")
    script = "import os; from statevla.worlds.so101 import world; print(os.environ['MUJOCO_GL'])"
    environment = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    for other in ("egl", "osmesa"):  # one of them is not what is chosen
        environment["PYOPENGL_PLATFORM"] = other
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.skipif(sys.platform != "linux", reason="other systems render natively")
def test_some_backend_really_renders(home: Path) -> None:
    assert backend.choose_backend() in backend.BACKENDS


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems render natively")
def test_mujoco_alone_is_tried_where_there_is_no_robosuite(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "robosuite").mkdir()
    (home / "robosuite" / "__init__.py").write_text("raise ImportError('robosuite is not installed')")
    monkeypatch.setenv("PYTHONPATH", str(home))
    assert backend.choose_backend() in backend.BACKENDS


def test_robosuite_opens_no_log_file() -> None:
    """Its file in the temporary folder may be another user's, and importing it would fail."""
    pytest.importorskip("robosuite")
    quiet = "from statevla.worlds.backend import keep_robosuite_quiet; keep_robosuite_quiet()\n"
    count = (
        "import logging, robosuite\n"
        "handlers = logging.getLogger('robosuite_logs').handlers\n"
        "print(sum(isinstance(handler, logging.FileHandler) for handler in handlers))\n"
    )

    def num_files(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
        return done.stdout.strip()

    assert num_files(quiet + count) == "0"
    assert num_files(count) == "1"  # the control


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux, as is Mesa in its way")
@pytest.mark.parametrize("module", ["libero.motion", "so101.world", "robosuite.scene"])
@pytest.mark.parametrize("real", [False, True])
def test_tritons_library_is_there_before_mesas(real: bool, module: str, tmp_path: Path) -> None:
    """PyTorch's CUDA builds bring Triton: loaded after Mesa it kills the process."""
    pytest.importorskip("mujoco")
    if real:
        pytest.importorskip("triton")
    else:  # any library will do to see when it is loaded
        folder = tmp_path / "triton" / "_C"
        folder.mkdir(parents=True)
        (tmp_path / "triton" / "__init__.py").touch()
        name, maps = str(ctypes.util.find_library("m")), Path("/proc/self/maps").read_text()
        shutil.copy(next(line.split()[-1] for line in maps.splitlines() if name in line), folder / "libtriton.so")
    script = f"""
import ctypes
loaded, load = [], ctypes.CDLL.__init__
def note(self, name, *more, **named):
    loaded.append(str(name))
    load(self, name, *more, **named)
ctypes.CDLL.__init__ = note
import statevla.worlds.{module}
triton, mesa = ([i for i, name in enumerate(loaded) if part in name] for part in ("libtriton.so", "libOSMesa"))
assert triton and mesa and triton[0] < mesa[0], loaded
{"import torch._dynamo" if real else ""}
"""
    # As a worker finds it, whose parent has chosen.
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
