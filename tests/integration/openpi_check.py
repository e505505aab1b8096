"""Compares what openpi's client gets from `statevla serve` with what the policy answers by itself.

python openpi_check.py <python with openpi-client>
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "serving"))

from tiny_server import HORIZON, INSTRUCTIONS, save_tiny_checkpoint  # noqa: E402

from statevla.acting.policy import StateVLAPolicy  # noqa: E402
from statevla.robots import ALOHA, DROID, LIBERO_EITHER, LIBERO_HAND, RobotSpec  # noqa: E402
from statevla.types import Observation  # noqa: E402

NUM_STEPS = 5
KEY = "a-key-for-this-check-only"
HAND = "hand_position (3), hand_orientation (3), finger_positions (2)"
CASES = (
    ("libero", LIBERO_HAND, LIBERO_HAND, HAND),
    ("libero", LIBERO_EITHER, LIBERO_HAND, HAND),
    ("droid", DROID, DROID, "joint_position"),
    ("aloha", ALOHA, ALOHA, "left_arm (6), left_gripper (1), right_arm (6), right_gripper (1)"),
)
"""Example of openpi's, the policy's robot, the one whose state is sent, and how a refusal describes it."""


def main() -> None:
    for case, robot, sent, words in CASES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            checkpoint = save_tiny_checkpoint(folder / "run", robot)
            inputs = write_inputs(folder / "inputs.npz", sent)
            (folder / "key").touch(mode=0o600)
            (folder / "key").write_text(KEY)
            query(sys.argv[1], case, checkpoint, folder)
            check(np.load(folder / "answers.npz"), inputs, checkpoint, sent, words)
    print("openpi-client, LIBERO, DROID and ALOHA: metadata, chunks, single actions, refusal and API key as expected")


def write_inputs(path: Path, robot: RobotSpec) -> dict[str, np.ndarray]:
    """Upright frames, one row per camera, and states."""
    rng = np.random.default_rng(3)
    inputs = {
        "frames": rng.integers(0, 256, (len(robot.cameras), NUM_STEPS, 32, 32, 3), dtype=np.uint8),
        "state": rng.normal(size=(NUM_STEPS, robot.state_dim)),
        "prompt": np.array(INSTRUCTIONS[0]),
    }
    np.savez(path, **inputs)
    return inputs


def query(python: str, case: str, checkpoint: Path, folder: Path) -> None:
    arguments = ["--checkpoint", str(checkpoint), "--port", "0", "--api-key-file", str(folder / "key")]
    arguments += ["--default-prompt", INSTRUCTIONS[0]]
    server = subprocess.Popen(
        [sys.executable, "-m", "statevla", "serve", *arguments], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        ports = (re.search(r"listening on ws://[\d.]+:(\d+)", line) for line in server.stderr)
        port = next(found[1] for found in ports if found)
        script = str(HERE / "openpi_client_side.py")
        files = [str(folder / "inputs.npz"), str(folder / "answers.npz")]
        subprocess.run([python, script, case, port, KEY, *files], check=True, timeout=120)
    finally:
        server.terminate()
        server.communicate(timeout=60)
    assert server.returncode == 0, f"the server ended with status {server.returncode}"


def check(
    answers: np.lib.npyio.NpzFile, inputs: dict[str, np.ndarray], checkpoint: Path, sent: RobotSpec, words: str
) -> None:
    policy = StateVLAPolicy.from_pretrained(checkpoint)
    robot = policy.robot

    def expected(step: int) -> np.ndarray:
        images = {camera: frames[step] for camera, frames in zip(robot.camera_names, inputs["frames"])}
        state = sent.named_state(inputs["state"][step].astype(np.float32), "inputs")
        return policy.act_chunk(Observation(images, state, INSTRUCTIONS[0])).actions

    assert str(answers["model"]) == "run"
    assert answers["chunks"].shape == (NUM_STEPS, HORIZON, robot.action_dim)
    np.testing.assert_allclose(answers["chunks"], [expected(step) for step in range(NUM_STEPS)], atol=1e-5)
    policy.reset()
    np.testing.assert_allclose(answers["singles"], expected(0), atol=1e-5)
    assert f"numbers ({words}), got shape [9]" in str(answers["refusal"])
    assert str(answers["robot"]) == robot.name
    assert set(answers["timing"]) == {"infer_ms", "prev_total_ms"}


if __name__ == "__main__":
    main()
