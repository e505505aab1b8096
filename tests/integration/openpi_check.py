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
from statevla.robots import LIBERO_HAND  # noqa: E402
from statevla.types import Observation  # noqa: E402

NUM_STEPS = 5
KEY = "a-key-for-this-check-only"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = save_tiny_checkpoint(folder / "run", LIBERO_HAND)
        inputs = write_inputs(folder / "inputs.npz")
        (folder / "key").touch(mode=0o600)
        (folder / "key").write_text(KEY)
        query(sys.argv[1], checkpoint, folder)
        check(np.load(folder / "answers.npz"), inputs, checkpoint)
    print("openpi-client: metadata, chunks, single actions, refusal and API key as expected")


def write_inputs(path: Path) -> dict[str, np.ndarray]:
    """What a simulator would report: raw frames are upside down."""
    rng = np.random.default_rng(3)
    frames = {
        camera: rng.integers(0, 256, (NUM_STEPS, 32, 32, 3), dtype=np.uint8) for camera in ("agentview", "eye_in_hand")
    }
    inputs = {**frames, "state": rng.normal(size=(NUM_STEPS, 8)), "prompt": np.array(INSTRUCTIONS[0])}
    np.savez(path, **inputs)
    return inputs


def query(python: str, checkpoint: Path, folder: Path) -> None:
    arguments = ["--checkpoint", str(checkpoint), "--port", "0", "--api-key-file", str(folder / "key")]
    server = subprocess.Popen(
        [sys.executable, "-m", "statevla", "serve", *arguments], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        ports = (re.search(r"listening on ws://[\d.]+:(\d+)", line) for line in server.stderr)
        port = next(found[1] for found in ports if found)
        script = str(HERE / "openpi_client_side.py")
        files = [str(folder / "inputs.npz"), str(folder / "answers.npz")]
        subprocess.run([python, script, port, KEY, *files], check=True, timeout=120)
    finally:
        server.terminate()
        server.communicate(timeout=60)
    assert server.returncode == 0, f"the server ended with status {server.returncode}"


def check(answers: np.lib.npyio.NpzFile, inputs: dict[str, np.ndarray], checkpoint: Path) -> None:
    policy = StateVLAPolicy.from_pretrained(checkpoint)

    def expected(step: int) -> np.ndarray:
        upright = {camera: np.ascontiguousarray(inputs[camera][step][::-1]) for camera in ("agentview", "eye_in_hand")}
        state = LIBERO_HAND.named_state(inputs["state"][step].astype(np.float32), "inputs")
        return policy.act_chunk(Observation(upright, state, INSTRUCTIONS[0])).actions

    assert str(answers["model"]) == "run"
    assert answers["chunks"].shape == (NUM_STEPS, HORIZON, 7)
    np.testing.assert_allclose(answers["chunks"], [expected(step) for step in range(NUM_STEPS)], atol=1e-5)
    policy.reset()
    np.testing.assert_allclose(answers["singles"], expected(0), atol=1e-5)
    words = "observation/state: expected 8 numbers (hand_position (3), hand_orientation (3), finger_positions (2))"
    assert f"{words}, got shape [9]" in str(answers["refusal"])
    assert str(answers["robot"]) == "libero_hand"
    assert set(answers["timing"]) == {"infer_ms", "prev_total_ms"}


if __name__ == "__main__":
    main()
