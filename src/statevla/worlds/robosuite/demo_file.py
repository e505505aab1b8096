"""What demonstration files of robosuite and robomimic hold: simulator states, actions, the scene's XML; no pictures.

Sources: robosuite's `scripts/collect_human_demonstrations.py` (`env`, `env_info`) and robomimic's `env_args`. The wheel
of robosuite 1.4 brings three such files along.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from statevla.errors import UserError

PACKAGED_DEMOS = {
    "lift": "lift/demo.hdf5",
    "handover": "handover/panda_panda/demo.hdf5",
    "wipe": "wipe/panda/demo.hdf5",
}
"""Name → file under robosuite's `models/assets/demonstrations`. Actions of `lift` and `handover` lead from each state
to the next one here too (to 3e-5 and 4e-6 rad). Those of `wipe` do not: robosuite 1.0 recorded it, whose controller
moved the arm otherwise."""
_DRAWING = ("camera", "render", "has_", "use_camera_obs", "horizon", "ignore_done", "hard_reset")
"""How settings begin that concern pictures and the episode's end, which this package settles itself."""


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode as it was recorded.

    Attributes:
        key: its group in the file.
        states: float64 `[T, 1 + nq + nv]`: time (s), MuJoCo's positions and velocities, before each action.
        actions: float64 `[T, A]`, as they were sent: some tools send more than the environment takes.
        model_xml: the scene, as the robosuite of its day wrote it.
    """

    key: str
    states: np.ndarray
    actions: np.ndarray
    model_xml: str


@dataclass(frozen=True)
class DemoFile:
    """An open demonstration file.

    Attributes:
        path: the file.
        env_name: robosuite's environment, such as `TwoArmHandover`.
        env_kwargs: its settings (robots, controller, …) without those that concern drawing; `control_freq` (Hz) is in.
        episodes: groups of the episodes, in order.
    """

    path: Path
    env_name: str
    env_kwargs: dict[str, Any]
    episodes: tuple[str, ...]
    _data: h5py.Group

    def read(self, key: str) -> RecordedEpisode:
        """Read an episode.

        Raises:
            UserError: a part is missing, or states and actions do not pair up.
        """
        group, source = self._data[key], f"demonstrations {self.path}: {key}"
        for name in ("states", "actions"):
            if not isinstance(group.get(name), h5py.Dataset) or group[name].ndim != 2 or not len(group[name]):
                raise UserError(
                    f"{source}: expected '{name}' [T, n], it has {', '.join(group)}; record it with robosuite"
                )
        try:
            states, actions = np.asarray(group["states"], np.float64), np.asarray(group["actions"], np.float64)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{source}: states or actions are not readable ({reason}); copy the file again") from None
        if len(states) != len(actions):
            raise UserError(f"{source}: {len(states)} states but {len(actions)} actions, expected as many; drop it")
        if not (np.isfinite(states).all() and np.isfinite(actions).all()):
            raise UserError(f"{source}: states or actions are not finite numbers; drop this episode")
        return RecordedEpisode(key, states, actions, self._model_xml(group, source))

    def _model_xml(self, group: h5py.Group, source: str) -> str:
        text = str(group.attrs.get("model_file", "")).strip()
        if text.startswith("<"):
            return text
        # Before robosuite 1.1 the scene was a file of its own.
        file = self.path.parent / "models" / Path(text).name
        if not text or not file.is_file():
            raise UserError(
                f"{source}: expected the scene's XML in attribute 'model_file', found none; copy {file} too"
            )
        return file.read_text(encoding="utf-8")


def find_demo_file(source: str | Path) -> Path:
    """The file of a packaged demonstration's name, or of a path.

    Raises:
        UserError: there is no such file, or robosuite is not installed.
    """
    if str(source) not in PACKAGED_DEMOS:
        path = Path(source).expanduser()
        if not path.is_file():
            names = ", ".join(PACKAGED_DEMOS)
            raise UserError(f"demonstrations {path}: no such file; give an HDF5 file of robosuite, or one of {names}")
        return path
    found = find_spec("robosuite")
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "the simulator needs the package 'robosuite', which is not installed; run: pip install 'statevla[sim]'"
        )
    path = Path(found.submodule_search_locations[0]) / "models/assets/demonstrations" / PACKAGED_DEMOS[str(source)]
    if not path.is_file():
        raise UserError(f"demonstrations '{source}': {path} is missing; run: pip install robosuite==1.4.0")
    return path


@contextmanager
def open_demo_file(path: Path) -> Iterator[DemoFile]:
    """Open a demonstration file.

    Raises:
        UserError: it is not HDF5, or not a demonstration of robosuite.
    """
    try:
        handle = h5py.File(path, "r")
    except OSError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"demonstrations {path}: not a readable HDF5 file ({reason}); copy it again") from None
    with handle:
        data = handle.get("data")
        if not isinstance(data, h5py.Group) or not {"env", "env_args"} & set(data.attrs):
            raise UserError(
                f"demonstrations {path}: expected a group 'data' with attribute 'env' or 'env_args', found neither; "
                "give a file that robosuite or robomimic recorded"
            )
        groups = [key for key in data if key.startswith("demo") and isinstance(data[key], h5py.Group)]
        episodes = tuple(sorted(groups, key=_number))
        if not episodes:
            raise UserError(f"demonstrations {path}: expected groups 'data/demo_<i>', found none; record some")
        env_name, env_kwargs = _environment(data, path)
        env_kwargs["control_freq"] = _control_freq_hz(data, episodes, env_kwargs.get("control_freq"), path)
        yield DemoFile(path, env_name, env_kwargs, episodes, data)


def _number(key: str) -> int:
    return int("".join(filter(str.isdigit, key)) or 0)


def _environment(data: h5py.Group, path: Path) -> tuple[str, dict[str, Any]]:
    attribute = "env_args" if "env_args" in data.attrs else "env_info"
    try:
        tree = json.loads(data.attrs.get(attribute, "{}"))
        name = tree.get("env_name") or str(data.attrs["env"])
        kwargs = dict(tree["env_kwargs"] if attribute == "env_args" else tree)
    except (TypeError, ValueError, KeyError, AttributeError):
        raise UserError(
            f"demonstrations {path}: attribute '{attribute}' is not what robosuite writes (JSON of the environment's "
            "settings); record it again"
        ) from None
    return str(name), {key: kwargs[key] for key in kwargs if key != "env_name" and not key.startswith(_DRAWING)}


def _control_freq_hz(data: h5py.Group, episodes: tuple[str, ...], declared: Any, path: Path) -> float:
    """How often the recorded clock says that actions were taken; it must be what the file declares, if it does."""
    clocks = [np.asarray(data[key]["states"][:, 0]) for key in episodes if _has_clock(data[key])]
    steps = np.concatenate([np.diff(clock) for clock in clocks]) if clocks else np.zeros(0)
    if not steps.size or np.median(steps) <= 0:
        raise UserError(f"demonstrations {path}: expected two states or more, with their time first; record it again")
    measured = float(1 / np.median(steps))
    if declared is None:
        return round(measured, 3)
    if not isinstance(declared, int | float) or not 0.95 < declared / measured < 1.05:
        raise UserError(
            f"demonstrations {path}: declares {declared} Hz, but its states are {measured:.3g} Hz apart; "
            "correct 'control_freq' in 'env_args'"
        )
    return float(declared)


def _has_clock(group: h5py.Group) -> bool:
    states = group.get("states")
    return isinstance(states, h5py.Dataset) and states.ndim == 2 and len(states) > 1
