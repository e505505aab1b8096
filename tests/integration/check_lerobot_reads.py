"""Does LeRobot itself read what `statevla data convert --to lerobot` writes?

    python tests/integration/check_lerobot_reads.py [SOURCE] [--env FOLDER]

Converts SOURCE (LIBERO HDF5; by default a small data set made on the spot), installs lerobot 0.4.4 into an
environment of its own (about 8 GB, kept in FOLDER for the next time), loads the result there with `LeRobotDataset` and
compares frames, actions, states and instructions with the source. Needs a package index; not part of the test suite.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

from statevla.config import home_dir
from statevla.data import open_reader
from statevla.data.convert import convert
from statevla.robots import LIBERO_HAND
from statevla.transforms import to_upright

TESTS = Path(__file__).resolve().parents[1]
REQUIREMENTS = ["lerobot==0.4.4", "torch==2.10.0", "torchvision==0.25.0"]


def environment(folder: Path) -> Path:
    """The interpreter of an environment with LeRobot, made where it is missing."""
    python = folder / "bin" / "python"
    installed = (
        python.exists() and subprocess.run([python, "-c", "import lerobot"], capture_output=True).returncode == 0
    )
    if not installed:
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    return python


def small_dataset(folder: Path) -> Path:
    """The data set of the tests' `libero_dir`."""
    sys.path.insert(0, str(TESTS))
    from libero_files import make_libero_dir

    return make_libero_dir(folder)


def write_expectation(source: Path, target: Path) -> None:
    """Every episode's numbers and some of its frames, upright, in the order of the converted data set."""
    with open_reader(source) as reader:
        order = sorted(range(len(reader.episodes)), key=lambda i: (reader.episodes[i].task, i))
        expected: dict[str, np.ndarray] = {"lengths": np.array([reader.episodes[i].num_steps for i in order])}
        expected["instructions"] = np.array([reader.episodes[i].instruction for i in order])
        for number, index in enumerate(order):
            arrays = reader.read(index)
            steps = np.unique([0, 1, len(arrays.actions) // 2, len(arrays.actions) - 1])
            expected[f"{number}/steps"] = steps
            expected[f"{number}/actions"] = arrays.actions
            expected[f"{number}/state"] = LIBERO_HAND.policy_state(arrays.robot_states, "source")
            for camera in ("agentview", "eye_in_hand"):
                frames = to_upright(arrays.images[camera], reader.robot.camera(camera).orientation)
                expected[f"{number}/{camera}"] = frames[steps]
    np.savez(target, **expected)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--env", type=Path, default=home_dir() / "lerobot-0.4.4-env")
    options = parser.parse_args()
    python = environment(options.env)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = options.source or small_dataset(folder / "source")
        converted = convert(source, folder / "converted", "lerobot")
        write_expectation(source, folder / "expected.npz")
        reader = Path(__file__).with_name("read_with_lerobot.py")
        command = [python, reader, converted, folder / "expected.npz"]
        sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
