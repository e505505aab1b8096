"""LeRobot's commands in its own environment, offline."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


class LeRobot:
    """Runs what is installed beside `python`; everything it writes is in `folder`.

    Args:
        python: interpreter with LeRobot and the plugin.
        folder: of data sets and runs.
        timeout_s: of one command; None waits for as long as it takes.
    """

    def __init__(self, python: str, folder: Path, timeout_s: float | None = 1800.0) -> None:
        self._python, self.folder, self._timeout_s = python, folder, timeout_s
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
        self.environment = {**os.environ, **offline, "OMP_NUM_THREADS": "1", "STATEVLA_HOME": str(folder / "home")}

    def train(self, data: Path, output: str, steps: int, *arguments: str) -> tuple[Path, str]:
        """Run lerobot-train; returns the `pretrained_model` folder of the last step, and what it printed."""
        text = self.run("lerobot.scripts.lerobot_train", *self._arguments(data, output, steps), *arguments)
        return self.checkpoint(output), text

    def fail(self, data: Path, *arguments: str) -> str:
        """Run lerobot-train with arguments that it must refuse; returns what it says."""
        return self.refused("lerobot.scripts.lerobot_train", *self._arguments(data, "refused", 4), *arguments)

    def resume(self, output: str, steps: int) -> str:
        """Go on with a run, up to `steps`; returns what it printed."""
        config = self.checkpoint(output) / "train_config.json"
        arguments = (f"--config_path={config}", "--resume=true", f"--steps={steps}")
        return self.run("lerobot.scripts.lerobot_train", *arguments)

    def checkpoint(self, output: str) -> Path:
        """The last `pretrained_model` folder of a run."""
        return (self.folder / output / "checkpoints" / "last" / "pretrained_model").resolve()

    def run(self, *arguments: str) -> str:
        """A module or a script; returns what it printed."""
        result = self._start(*arguments)
        assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
        return result.stdout + result.stderr

    def refused(self, *arguments: str) -> str:
        """A module or a script that must fail; returns its last line."""
        result = self._start(*arguments)
        assert result.returncode != 0, f"it did not refuse: {arguments}"
        return result.stderr.strip().splitlines()[-1]

    def _arguments(self, data: Path, output: str, steps: int) -> list[str]:
        return [
            f"--dataset.repo_id=local/{data.name}",
            f"--dataset.root={data}",
            "--dataset.video_backend=pyav",
            "--policy.push_to_hub=false",
            "--policy.device=cpu",
            f"--steps={steps}",
            f"--save_freq={steps}",
            "--log_freq=1",
            "--batch_size=8",
            "--num_workers=0",
            f"--output_dir={self.folder / output}",
        ]

    def _start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._python, str(HERE / "lerobot_run.py"), *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=self._timeout_s,
        )


def logged(text: str, name: str) -> list[float]:
    """What lerobot-train logged under a name: `loss`, `lr`."""
    return [float(value) for value in re.findall(rf"\b{name}:(\S+)", text)]
