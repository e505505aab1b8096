"""HDF5 files that hold other shapes, kinds or sizes than an episode can have: one line each, at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from libero_files import smooth_episode, write_official_file
from statevla.data import open_reader
from statevla.data.inspect import inspect_dataset
from statevla.errors import UserError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lift_demo.hdf5"
    rng = np.random.default_rng(1)
    write_official_file(path, "lift", [smooth_episode(rng, steps, 32, (200, 10, 10)) for steps in (12, 9)])
    return path


def replace(path: Path, key: str, value: Any) -> None:
    """Put `value` in the place of a data set of the second episode; a shape declares one that holds nothing."""
    with h5py.File(path, "a") as opened:
        demo = opened["data/demo_1"]
        if key in demo:
            del demo[key]
        if isinstance(value, tuple):
            demo.create_dataset(key, shape=value, chunks=(1, *value[1:]), dtype="f4")
        else:
            demo[key] = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("actions", 3.0, "demo_1: 'actions' is a single float64, expected an array with a row per step"),
        ("actions", [b"left", b"right"], "demo_1: 'actions' holds object [2], expected numbers [steps, n]"),
        ("actions", np.zeros(9), "demo_1: 'actions' holds float64 [9], expected numbers [steps, n]"),
        ("actions", (10**12, 7), "demo_1: 'actions' declares [1000000000000, 7] values, 28,000 GB in one episode"),
        ("executed_actions", 1.0, "demo_1: 'executed_actions' is a single float64"),
        ("executed_actions", (10**12, 7), "demo_1: 'executed_actions' declares"),
        ("obs/agentview_rgb", 1.0, "demo_1/obs: 'agentview_rgb' is a single float64"),
        ("obs/agentview_rgb", (10**9, 64, 64, 3), "demo_1/obs: 'agentview_rgb' declares [1000000000, 64, 64, 3]"),
        ("obs/joint_states", [b"a"] * 9, "demo_1: obs/joint_states holds object [9], expected numbers"),
        ("obs/joint_states", (10**12, 7), "demo_1/obs: 'joint_states' declares"),
        ("obs/object_states", [b"a"] * 9, "demo_1/obs: 'object_states' holds object [9], expected numbers [steps, n]"),
        ("obs/is_seen", np.ones((9, 2), bool), "demo_1/obs: 'is_seen' holds bool [9, 2], expected numbers [steps]"),
    ],
)
def test_arrays_of_other_kinds_are_named(file: Path, key: str, value: Any, message: str) -> None:
    replace(file, key, value)
    with pytest.raises(UserError) as raised:
        open_reader(file).read(1)
    assert message in str(raised.value)
    assert file.name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_says_nothing_of_success_is_no_error(file: Path) -> None:
    for value in (1.0, [b"yes"], np.zeros((0,))):
        replace(file, "dones", value)
        assert open_reader(file).read(1).success is None


def test_an_episode_is_a_group_and_names_are_a_list(file: Path) -> None:
    with h5py.File(file, "a") as opened:
        opened["data/demo_1/obs/object_states"].attrs["names"] = "{"
    with pytest.raises(UserError, match=r"demo_1: attribute 'names' of 'obs/object_states' is no list as JSON"):
        open_reader(file).read(1)
    with h5py.File(file, "a") as opened:
        opened["data/demo_2"] = [1.0]
    with pytest.raises(UserError, match=r"'demo_2' is no group with 'actions' and 'obs'"):
        open_reader(file)


@pytest.mark.parametrize(
    ("key", "row", "message"),
    [
        ("actions", 4, r"demo_1: actions number 2 is 1e\+30 at step 4, where 0\.\d+ is usual"),
        ("obs/joint_states", 0, r"demo_1: robot state 'joint_positions' number 2 is 1e\+30 at step 0, where"),
        ("obs/object_states", 8, r"demo_1: object_states number 2 is 1e\+30 at step 8, where"),
    ],
)
def test_finite_but_absurd_numbers_are_refused_and_inspected(file: Path, key: str, row: int, message: str) -> None:
    with h5py.File(file, "a") as opened:
        values = opened["data/demo_1"][key][()]
        values[row, 2] = 1e30
        del opened["data/demo_1"][key]
        opened["data/demo_1"][key] = values
    with pytest.raises(UserError, match=message):
        open_reader(file).read(1)
    result = inspect_dataset(file)
    assert result.num_read == 1
    assert [anomaly.where for anomaly in result.anomalies] == [f"{file.name}/demo_1"]


@pytest.mark.parametrize("value", [5e5, -900_000.0])
def test_large_units_are_no_slip(file: Path, value: float) -> None:
    """Encoders count in hundreds of thousands; a joint that rests at zero may."""
    with h5py.File(file, "a") as opened:
        opened["data/demo_1/obs/joint_states"][4:, 2] = value
    assert open_reader(file).read(1).robot_states["joint_positions"][5, 2] == value


def test_a_file_that_is_being_written_is_called_so(file: Path) -> None:
    code = f"import h5py, sys; f = h5py.File({str(file)!r}, 'a'); print('open', flush=True); sys.stdin.read()"
    writer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(UserError, match=r"lift_demo\.hdf5: another program has it open for writing .*close it"):
            open_reader(file)
    finally:
        writer.communicate("")
