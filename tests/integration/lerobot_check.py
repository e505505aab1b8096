"""Trains StateVLA by lerobot-train on a small data set, and compares its answers with StateVLA's own policy.

python lerobot_check.py <python with lerobot and the plugin>
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from libero_files import TASKS, smooth_episode, write_official_file  # noqa: E402
from statevla.data.convert import convert  # noqa: E402
from statevla.language import build_language_encoder  # noqa: E402
from statevla.training.checkpoint import load_checkpoint  # noqa: E402
from statevla.transforms import Transform  # noqa: E402
from statevla.types import Observation, RobotStateLayout  # noqa: E402

CONFIG = """
model:
  embed_dim: 32
  encoder_depth: 2
  state_dim: 24
  image_size: 32
  language_dim: 12
  action_seq_len: 4
  policy: {{d_state: 8, mlp_hidden_dim: 32}}
language: {{encoder: '{embeddings}'}}
training:
  phase1: {{frame_skip: 2, num_frames: 3, learning_rate: 1.0e-3, warmup_steps: 5, temporal_predictor_hidden_dim: 32}}
  phase2: {{learning_rate: 2.0e-3, warmup_steps: 5}}
  bc: {{learning_rate: 2.0e-3, warmup_steps: 5}}
"""
STEPS = 40


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        lerobot = LeRobot(sys.argv[1], folder)
        phase1 = lerobot.train("1", folder / "phase1", [f"--policy.config_file={folder / 'tiny.yaml'}"])
        check_phase1(phase1)
        phase2 = lerobot.train("2", folder / "phase2", [f"--policy.phase1_checkpoint={phase1}"])
        check_phase2(phase1, phase2)
        lerobot.train("bc", folder / "bc", [f"--policy.config_file={folder / 'tiny.yaml'}"])
        lerobot.resume(folder / "phase1")
        lerobot.act(phase2)
        check_answers(folder)
        # An encoder of StateVLA's own trainer serves as phase 1, too.
        again = lerobot.train("2", folder / "phase2b", [f"--policy.phase1_checkpoint={folder / 'exported' / 'best'}"])
        check_phase2(phase1, again)
    print("lerobot: both phases, bc, resume, acting, export and re-import as expected")


def write_data(folder: Path) -> None:
    """Two tasks of small pictures as LIBERO files, converted to a LeRobotDataset v3, and a tiny configuration."""
    rng = np.random.default_rng(0)
    (folder / "libero").mkdir()
    for (task, color), count in zip(TASKS.items(), (3, 2)):
        episodes = [smooth_episode(rng, int(rng.integers(20, 31)), 64, color) for _ in range(count)]
        write_official_file(folder / "libero" / f"{task}_demo.hdf5", task.replace("_", " "), episodes)
    convert(folder / "libero", folder / "data", "lerobot")
    vectors = {task.replace("_", " "): rng.normal(size=12).astype(np.float32) for task in TASKS}
    np.savez(folder / "embeddings.npz", **vectors)
    (folder / "tiny.yaml").write_text(CONFIG.format(embeddings=folder / "embeddings.npz"))


class LeRobot:
    """Its commands, in its own environment, offline."""

    def __init__(self, python: str, folder: Path) -> None:
        self._python, self._folder = python, folder
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
        self._environment = {**os.environ, **offline, "OMP_NUM_THREADS": "1", "STATEVLA_HOME": str(folder / "home")}

    def train(self, phase: str, output: Path, arguments: list[str]) -> Path:
        """Run lerobot-train; returns the `pretrained_model` folder of the last step."""
        text = self._run(
            "lerobot.scripts.lerobot_train",
            "--dataset.repo_id=local/tiny",
            f"--dataset.root={self._folder / 'data'}",
            "--dataset.video_backend=pyav",
            "--policy.type=statevla",
            f"--policy.phase={phase}",
            f"--policy.training_steps={STEPS}",
            "--policy.push_to_hub=false",
            "--policy.device=cpu",
            f"--steps={STEPS}",
            f"--save_freq={STEPS}",
            "--log_freq=4",
            "--batch_size=8",
            "--num_workers=0",
            "--eval_freq=0",
            f"--output_dir={output}",
            *arguments,
        )
        losses = [float(value) for value in re.findall(r"loss:(\S+)", text)]
        assert len(losses) == STEPS // 4, text[-3000:]
        first, late = np.mean(losses[:2]), np.mean(losses[len(losses) // 2 :])
        assert late < 0.95 * first, f"phase {phase} does not learn: {losses}"
        return (output / "checkpoints" / "last" / "pretrained_model").resolve()

    def resume(self, output: Path) -> None:
        config = output / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
        text = self._run(
            "lerobot.scripts.lerobot_train", f"--config_path={config}", "--resume=true", f"--steps={STEPS + 4}"
        )
        assert re.search(rf"step:{STEPS + 4}\b", text), text[-3000:]
        weights = load_file(output / "checkpoints" / "last" / "pretrained_model" / "model.safetensors")
        assert int(weights["num_updates"]) == STEPS + 4

    def act(self, checkpoint: Path) -> None:
        self._run(str(HERE / "lerobot_plugin_side.py"), str(checkpoint), str(self._folder))

    def _run(self, *arguments: str) -> str:
        result = subprocess.run(
            [self._python, str(HERE / "lerobot_run.py"), *arguments],
            env=self._environment,
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
        return result.stdout + result.stderr


def check_phase1(checkpoint: Path) -> None:
    """The target follows the encoder without being it, and what the data set says has been understood."""
    weights = load_file(checkpoint / "model.safetensors")
    assert int(weights["num_updates"]) == STEPS
    pairs = [(n, n.replace(".target.", ".")) for n in weights if ".state_encoder.target." in n]
    apart = [float((weights[target] - weights[online]).abs().max()) for target, online in pairs if online in weights]
    assert len(apart) > 10
    assert 0 < max(apart) < 1
    settings = json.loads(json.loads((checkpoint / "config.json").read_text())["settings"])
    assert settings["model"]["cameras"] == ["agentview", "eye_in_hand"]
    assert settings["model"]["robot_state_layout"] == "ee_gripper"


def check_phase2(phase1: Path, phase2: Path) -> None:
    """The encoder is phase 1's, bit for bit; the policy has moved."""
    before, after = (load_file(folder / "model.safetensors") for folder in (phase1, phase2))
    for name, tensor in before.items():
        frozen = name.startswith("model.state_encoder.") or name.endswith("_statistics")
        if frozen:
            assert torch.equal(tensor, after[name]), f"{name} changed in phase 2"
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("model.policy."))


def check_answers(folder: Path) -> None:
    """The exported checkpoint answers as the plugin did, on the frames that LeRobot decoded."""
    answers = np.load(folder / "answers.npz")
    checkpoint = load_checkpoint(folder / "exported" / "best")
    transform = Transform(checkpoint.config.model, checkpoint.statistics)
    language = build_language_encoder(checkpoint.config.language, checkpoint.config.model.language_dim)
    known = checkpoint.statistics.actions
    turned = {"upright": (1, 1), "flipped_vertically": (-1, 1), "rotated_180": (-1, -1), "mirrored": (1, -1)}
    rows, columns = turned[str(answers["orientation"])]
    for step, chunk in enumerate(answers["chunks"]):
        images = {
            camera: np.ascontiguousarray(answers[key][step][::rows, ::columns])
            for camera, key in (("agentview", "image"), ("eye_in_hand", "image2"))
        }
        seen = Observation(images, answers["state"][step], RobotStateLayout.EE_GRIPPER, str(answers["task"]))
        batch = transform.observation_to_model_input([seen], language.encode([seen.instruction]))
        sampled = checkpoint.model.sample_actions(batch, noise=torch.from_numpy(answers["noise"][step : step + 1]))
        mine = transform.denormalize_actions(sampled)[0].numpy()
        np.testing.assert_allclose(chunk, mine.clip(known.min, known.max), atol=2e-4)
        assert set(np.unique(chunk[:, -1])) <= {-1.0, 1.0}


if __name__ == "__main__":
    main()
