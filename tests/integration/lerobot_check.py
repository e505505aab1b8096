"""Trains StateVLA by lerobot-train on a small data set, and compares its answers with StateVLA's own policy.

python lerobot_check.py <python with lerobot and the plugin>
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from lerobot_citizen import check_citizen  # noqa: E402
from lerobot_commands import LeRobot, logged  # noqa: E402
from lerobot_data import INSTRUCTION, relative_targets, write_arm_data, write_libero_data  # noqa: E402

from libero_files import TASKS  # noqa: E402
from statevla.acting.policy import load_policy  # noqa: E402
from statevla.checkpoints.checkpoint import LoadedCheckpoint, load_checkpoint  # noqa: E402
from statevla.data import open_reader  # noqa: E402
from statevla.robots import LIBERO, ImageOrientation, RobotSpec, load_robot  # noqa: E402
from statevla.transforms import to_upright  # noqa: E402
from statevla.types import Observation  # noqa: E402

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
STEPS = 120


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_settings(folder)
        lerobot = LeRobot(sys.argv[1], folder)
        check_libero(lerobot)
        check_arm(lerobot)
        check_either(lerobot)
        check_citizen(lerobot)
    print("lerobot: all phases, resume, acting, both ways between the checkpoints, presets and adapters as expected")


def write_settings(folder: Path) -> None:
    """A tiny configuration and its embeddings."""
    rng = np.random.default_rng(0)
    instructions = [*(task.replace("_", " ") for task in TASKS), INSTRUCTION]
    vectors = {instruction: rng.normal(size=12).astype(np.float32) for instruction in instructions}
    np.savez(folder / "embeddings.npz", **vectors)
    (folder / "tiny.yaml").write_text(CONFIG.format(embeddings=folder / "embeddings.npz"))


def learn(lerobot: LeRobot, data: str, phase: str, output: str, *arguments: str) -> Path:
    """Train a phase long enough to see that it learns."""
    given = ("--policy.type=statevla", f"--policy.phase={phase}", "--batch_size=16", *arguments)
    folder, text = lerobot.train(lerobot.folder / data, output, STEPS, *given)
    losses = logged(text, "loss")
    assert len(losses) == STEPS, text[-3000:]
    first, late = np.mean(losses[:8]), np.mean(losses[STEPS // 2 :])
    assert late < 0.95 * first, f"phase {phase} does not learn: {losses}"
    return folder


def check_libero(lerobot: LeRobot) -> None:
    """The robot that a converted data set declares: both phases, and everything else."""
    folder = lerobot.folder
    write_libero_data(folder)
    settings = f"--policy.config_file={folder / 'tiny.yaml'}"
    phase1 = learn(lerobot, "libero", "1", "phase1", settings)
    check_phase1(phase1)
    phase2 = learn(lerobot, "libero", "2", "phase2", f"--policy.phase1_checkpoint={phase1}")
    check_phase2(phase1, phase2)
    learn(lerobot, "libero", "bc", "bc", settings)
    text = lerobot.resume("phase1", STEPS + 4)
    assert f"step:{STEPS + 4}" in text.replace(" ", ""), text[-3000:]
    weights = load_file(lerobot.checkpoint("phase1") / "model.safetensors")
    assert int(weights["num_updates"]) == STEPS + 4
    checkpoint = act(lerobot, phase2, "libero")
    assert checkpoint.robot.difference(LIBERO) is None
    check_answers(np.load(folder / "libero.npz"), checkpoint)
    # An encoder of StateVLA's own trainer serves as phase 1, too.
    again = learn(lerobot, "libero", "2", "phase2b", f"--policy.phase1_checkpoint={checkpoint.path}")
    check_phase2(phase1, again)
    other = ["--policy.type=statevla", "--policy.phase=2", f"--policy.phase1_checkpoint={phase1}"]
    refused = lerobot.fail(folder / "libero", *other, "--policy.robot=libero_hand")
    assert "of another robot than the data set" in refused, refused


def check_arm(lerobot: LeRobot) -> None:
    """A robot out of a YAML file: binary 0 / 1, absolute joints as relative targets, a feature of one number."""
    folder = lerobot.folder
    write_arm_data(folder)
    settings = [
        f"--policy.config_file={folder / 'tiny.yaml'}",
        f"--policy.robot={folder / 'arm.yaml'}",
        "--policy.overrides=['data.relative_actions=all', 'data.action_normalization=quantile']",
    ]
    trained = learn(lerobot, "arm", "bc", "bc_arm", *settings)
    checkpoint = act(lerobot, trained, "arm")
    robot = load_robot(folder / "arm.yaml")
    assert checkpoint.robot.difference(robot) is None
    check_arm_statistics(checkpoint, folder / "arm", robot)
    answers = np.load(folder / "arm.npz")
    check_answers(answers, checkpoint)
    assert np.abs(answers["chunks"][..., 1:] - answers["state/joints"][:, None]).max() < 1.0  # around where it is
    # Undeclared, the names of its features make it a robot of seven continuous numbers.
    derived = robot_of(learn(lerobot, "arm", "bc", "bc_derived", settings[0]))
    assert derived.describe_actions() == "action (7 continuous, absolute)"
    assert (derived.describe_state(), derived.control_freq_hz) == ("state (6)", 10.0)
    assert derived.action_names == robot.action_names
    assert any("taken as absolute" in sentence for sentence in derived.assumed)
    (folder / "wrong.yaml").write_text((folder / "arm.yaml").read_text().replace("j6]", "j6, j7]"))
    given = ["--policy.type=statevla", "--policy.phase=bc", *settings, f"--policy.robot={folder / 'wrong.yaml'}"]
    refused = lerobot.fail(folder / "arm", *given)
    assert "robot 'arm' declares 8" in refused, refused


def check_either(lerobot: LeRobot) -> None:
    """A robot whose state is said in several ways: the policy acts on the one that is sent; and one of one way."""
    bc = ("--policy.type=statevla", "--policy.phase=bc", f"--policy.config_file={lerobot.folder / 'tiny.yaml'}")
    instruction = next(iter(TASKS)).replace("_", " ")
    seen = "--policy.overrides=['model.robot_token_dropout=1', 'model.policy.condition.robot_state=true']"
    for robot in ("libero_either", "libero_hand"):
        trained, _ = lerobot.train(lerobot.folder / "libero", robot, 2, *bc, f"--policy.robot={robot}", seen)
        lerobot.run(str(HERE / "lerobot_ways.py"), str(trained), instruction)


def act(lerobot: LeRobot, policy: Path, data: str) -> LoadedCheckpoint:
    """Let a policy answer, into `<data>.npz`, and export it."""
    files = [str(lerobot.folder / name) for name in (data, f"{data}.npz", f"exported_{data}")]
    lerobot.run(str(HERE / "lerobot_plugin_side.py"), str(policy), *files)
    return load_checkpoint(lerobot.folder / f"exported_{data}" / "best")


def robot_of(checkpoint: Path) -> RobotSpec:
    """The robot that a policy of the plugin keeps."""
    saved = json.loads(json.loads((checkpoint / "config.json").read_text())["settings"])
    robot = RobotSpec.from_dict(saved["robot"], "config.json")
    assert saved["config"]["model"]["cameras"] == list(robot.camera_names)
    return robot


def check_phase1(checkpoint: Path) -> None:
    """The target follows the encoder without being it, and what the data set says has been understood."""
    weights = load_file(checkpoint / "model.safetensors")
    assert int(weights["num_updates"]) == STEPS
    pairs = [(n, n.replace(".target.", ".encoder.")) for n in weights if ".state_encoder.target." in n]
    apart = [float((weights[target] - weights[online]).abs().max()) for target, online in pairs if online in weights]
    assert len(apart) > 10
    assert 0 < max(apart) < 1
    robot = robot_of(checkpoint)
    assert robot.difference(LIBERO) is None
    assert robot.state_names == LIBERO.state_names
    assert robot.camera_names == ("agentview", "eye_in_hand")
    assert {camera.orientation for camera in robot.cameras} == {ImageOrientation.MIRRORED}


def check_phase2(phase1: Path, phase2: Path) -> None:
    """The encoder is phase 1's, bit for bit; the policy has moved."""
    before, after = (load_file(folder / "model.safetensors") for folder in (phase1, phase2))
    for name, tensor in before.items():
        if name.startswith("model.state_encoder."):
            assert torch.equal(tensor, after[name]), f"{name} changed in phase 2"
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("model.policy."))


def check_answers(answers: np.lib.npyio.NpzFile, checkpoint: LoadedCheckpoint) -> None:
    """The exported checkpoint answers as the plugin did, on the frames that LeRobot decoded."""
    robot = checkpoint.robot
    acting = load_policy(checkpoint.path, device="cpu")
    for step, chunk in enumerate(answers["chunks"]):
        images = {
            camera: to_upright(
                answers[f"image/{camera}"][step], ImageOrientation(str(answers[f"orientation/{camera}"]))
            )
            for camera in robot.camera_names
        }
        state = {field.name: answers[f"state/{field.name}"][step] for field in robot.policy_fields}
        seen = Observation(images, state, str(answers["task"]))
        mine = acting.act_chunk(seen, noise=[torch.from_numpy(answers["noise"][step])]).actions
        np.testing.assert_array_equal(chunk, mine)
        commands = {float(value) for values in robot.binary_values() for value in values}
        assert set(np.unique(chunk[:, robot.is_binary])) <= commands


def check_arm_statistics(checkpoint: LoadedCheckpoint, data: Path, robot: RobotSpec) -> None:
    """Those of the actions and the state are LeRobot's; those of relative targets are measured."""
    with open_reader(data, robot=robot) as reader:
        episodes = [reader.read(index, cameras=()) for index in range(len(reader.episodes))]
    found = checkpoint.statistics
    assert found.relative_actions == ("arm",)
    assert found.targets is not None
    assert found.action_normalization == "quantile"
    actions = np.concatenate([arrays.actions for arrays in episodes])
    states = np.concatenate([robot.policy_state(arrays.robot_states, "data") for arrays in episodes])
    targets = relative_targets(robot, episodes, checkpoint.config.model.action_seq_len)
    for field, values in ((found.actions, actions), (found.robot_state, states), (found.targets, targets)):
        np.testing.assert_allclose(field.mean, values.mean(0), atol=1e-4)
        np.testing.assert_allclose(field.std, values.std(0), atol=1e-4)
        np.testing.assert_allclose(field.min, values.min(0), atol=1e-5)
        np.testing.assert_allclose(field.max, values.max(0), atol=1e-5)
    np.testing.assert_allclose(found.targets.q99, np.quantile(targets, 0.99, axis=0), atol=1e-4)
    # Positive control: where the joints are, and how far they go.
    assert np.abs(found.targets.mean[1:]).max() < 0.3 < found.actions.mean[1:].min()


if __name__ == "__main__":
    main()
