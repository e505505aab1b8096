"""What users of LeRobot expect of a policy: its names, its `--steps`, its paths, its adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from eval_world import INSTRUCTION, MAX_STEPS
from lerobot_commands import HERE, LeRobot, logged
from safetensors.torch import load_file

from lerobot_files import undeclare
from statevla.acting.policy import load_policy
from statevla.checkpoints.checkpoint import load_checkpoint
from statevla.data.lerobot_checksums import CHECKSUMS_PATH
from statevla.types import Observation

KEYFRAMES = [f"training.phase1.loss.{name}_weight=1.0" for name in ("keyframe", "later_keyframe")]
ALONE = "--policy.type=statevla"


def check_citizen(lerobot: LeRobot) -> None:
    """On the data sets, the configuration and the runs that `lerobot_check.py` has made."""
    check_preset(lerobot)
    check_batches(lerobot)
    check_lengths(lerobot)
    check_refusals(lerobot)
    check_own_checkpoints(lerobot)
    check_fine_tuning(lerobot)
    check_other_frames(lerobot)
    check_adapters(lerobot)
    check_eval(lerobot)


def check_preset(lerobot: LeRobot) -> None:
    """The policy's type alone: the measured recipe, both phases, and a policy that acts at the end."""
    folder, text = lerobot.train(lerobot.folder / "libero", "alone", 6, ALONE)
    rates = logged(text, "lr")
    assert len(rates) == 6
    assert min(rates) > 0
    assert "phase 2 begins" in text
    weights = load_file(folder / "model.safetensors")
    assert int(weights["switched_at"]) == 4
    saved = json.loads((folder / "config.json").read_text())
    assert (saved["chunk_size"], saved["n_action_steps"]) == (16, 16)
    loaded = load_checkpoint(folder)
    assert loaded.metrics["phase"] == "2"
    assert loaded.config.data.path.endswith("libero")


def check_batches(lerobot: LeRobot) -> None:
    """The trainer's own windows and chunks, keyframes and executed actions included."""
    data, config = lerobot.folder / "libero", lerobot.folder / "tiny.yaml"
    lerobot.run(str(HERE / "lerobot_batches.py"), str(data), str(config), *KEYFRAMES)


def check_lengths(lerobot: LeRobot) -> None:
    """`--steps` is the length of every schedule: of a run, of one that goes on, of one that starts from another."""
    tiny = (ALONE, f"--policy.config_file={lerobot.folder / 'tiny.yaml'}")
    _, text = lerobot.train(lerobot.folder / "libero", "short", 6, *tiny, "--policy.optimizer_lr=0.004")
    assert max(logged(text, "lr")) <= 0.004
    text = lerobot.resume("short", 10)
    rates = logged(text, "lr")
    assert len(rates) == 4
    assert min(rates) > 0
    assert "phase 1 begins" not in text  # it was in its second phase
    weights = load_file(lerobot.checkpoint("short") / "model.safetensors")
    assert (int(weights["num_updates"]), int(weights["switched_at"])) == (10, 4)
    again = f"--policy.path={lerobot.checkpoint('short')}"
    _, text = lerobot.train(lerobot.folder / "libero", "longer", 20, again)
    rates = logged(text, "lr")
    assert len(rates) == 20
    assert min(rates) > 0
    assert int(load_file(lerobot.checkpoint("longer") / "model.safetensors")["switched_at"]) == 12


def check_refusals(lerobot: LeRobot) -> None:
    """One line each."""
    data, tiny = lerobot.folder / "libero", f"--policy.config_file={lerobot.folder / 'tiny.yaml'}"
    for arguments, expected in (
        ((tiny, "--policy.n_action_steps=5"), "n_action_steps: expected 1 to 4"),
        ((tiny, "--policy.chunk_size=8", "--policy.n_action_steps=9"), "n_action_steps: expected 1 to 8"),
        ((tiny, "--policy.phase=2"), "needs --policy.phase1_checkpoint"),
        ((tiny, "--policy.phase=3"), "policy.phase: expected one of both, 1, 2, bc"),
        ((tiny, "--policy.robot=so101"), "robot 'so101' declares 6"),
    ):
        assert expected in lerobot.fail(data, ALONE, *arguments)
    assert "LeRobot recorded degrees or percent" in lerobot.fail(in_degrees(lerobot.folder), *of_arm(lerobot.folder))
    loaded = lerobot.fail(data, f"--policy.path={lerobot.checkpoint('short')}", "--policy.chunk_size=8")
    assert "answers chunks of 4" in loaded
    side = str(HERE / "lerobot_plugin_side.py")
    files = [str(lerobot.folder / name) for name in ("libero", "none.npz", "none")]
    refused = lerobot.refused(side, str(lerobot.checkpoint("phase1")), *files)
    assert "phase 1 trains no policy yet" in refused


def in_degrees(folder: Path) -> Path:
    """The arm's data set, whose joints' statistics are those of degrees."""
    target = folder / "degrees"
    shutil.copytree(folder / "arm", target)
    stats = json.loads((target / "meta" / "stats.json").read_text())
    stats["observation.state"]["max"] = [57 * value for value in stats["observation.state"]["max"]]
    (target / "meta" / "stats.json").write_text(json.dumps(stats))
    return target


def of_arm(folder: Path) -> tuple[str, ...]:
    return ALONE, f"--policy.config_file={folder / 'tiny.yaml'}", f"--policy.robot={folder / 'arm.yaml'}"


def check_own_checkpoints(lerobot: LeRobot) -> None:
    """`--policy.path` takes StateVLA's checkpoints, and StateVLA takes LeRobot's: the same answers, bit for bit."""
    own = lerobot.folder / "exported_libero" / "best"
    lerobot.run(str(HERE / "lerobot_both_ways.py"), str(own), str(lerobot.checkpoint("phase2")))
    folder, text = lerobot.train(lerobot.folder / "libero", "from_own", 4, f"--policy.path={own}")
    assert min(logged(text, "lr")) > 0
    saved = json.loads((folder / "config.json").read_text())
    assert saved["phase"] == "2"
    mine, theirs = load_checkpoint(own), load_checkpoint(folder)
    encoder = "state_encoder."
    for name, tensor in mine.model.state_dict().items():
        if name.startswith(encoder):
            assert torch.equal(tensor, theirs.model.state_dict()[name]), name


def check_fine_tuning(lerobot: LeRobot) -> None:
    """Statistics stay, or become the new data's where asked."""
    before = load_checkpoint(lerobot.checkpoint("bc")).statistics
    moved = lerobot.folder / "moved"
    shutil.copytree(lerobot.folder / "libero", moved)
    stats = json.loads((moved / "meta" / "stats.json").read_text())
    for key in (name for name in stats if name.startswith("observation.state")):
        stats[key]["mean"] = [value + 0.5 for value in stats[key]["mean"]]
    (moved / "meta" / "stats.json").write_text(json.dumps(stats))
    for file in moved.glob("meta/*checksums*"):
        file.unlink()
    path = f"--policy.path={lerobot.checkpoint('bc')}"
    for name, arguments, shift in (("kept", (), 0.0), ("new", ("--policy.statistics=dataset",), 0.5)):
        folder, _ = lerobot.train(moved, f"tuned_{name}", 2, path, *arguments)
        tuned = load_checkpoint(folder)
        np.testing.assert_allclose(tuned.statistics.robot_state.mean, before.robot_state.mean + shift, atol=1e-6)
        # What the model card names.
        assert tuned.config.data.path == str(moved)


def check_other_frames(lerobot: LeRobot) -> None:
    """What was said of one data set's frames is said of that alone: its runs go on with it, another one is asked."""
    said = (*of_arm(lerobot.folder), "--policy.phase=bc", "--policy.image_orientation=mirrored")
    folder, _ = lerobot.train(lerobot.folder / "arm", "mirrored", 2, *said)
    data = load_checkpoint(folder).config.data
    assert (data.orientation, data.robot) == ("mirrored", str(lerobot.folder / "arm.yaml"))
    assert stored_by(folder) == {"mirrored"}
    lerobot.resume("mirrored", 4)
    assert stored_by(lerobot.checkpoint("mirrored")) == {"mirrored"}
    shutil.copytree(lerobot.folder / "arm", lerobot.folder / "arm2")
    path = f"--policy.path={folder}"
    tuned, text = lerobot.train(lerobot.folder / "arm2", "upright", 2, path)
    assert "taken for this one, its frames as stored: front upright" in text, text[-6000:]
    assert stored_by(tuned) == {"upright"}
    assert load_checkpoint(tuned).config.data.orientation == "auto"
    # LIBERO's are as likely mirrored: nobody guesses.
    shutil.copytree(lerobot.folder / "libero", lerobot.folder / "silent")
    undeclare(lerobot.folder / "silent")
    (lerobot.folder / "silent" / CHECKSUMS_PATH).unlink()
    path = f"--policy.path={lerobot.checkpoint('bc')}"
    assert "nothing says how the frames" in lerobot.fail(lerobot.folder / "silent", path)
    tuned, _ = lerobot.train(lerobot.folder / "silent", "spoken", 2, path, "--policy.image_orientation=upright")
    assert stored_by(tuned) == {"upright"}


def stored_by(policy: Path) -> set[str]:
    """How the frames are stored that a policy was trained on."""
    return {camera.orientation.value for camera in load_checkpoint(policy).robot.cameras}


def check_adapters(lerobot: LeRobot) -> None:
    """LoRA on the Mamba projections trains, all of them, and nothing else; then it resumes."""
    path = f"--policy.path={lerobot.checkpoint('bc')}"
    lora = ("--peft.method_type=LORA", "--peft.r=2")
    folder, text = lerobot.train(lerobot.folder / "libero", "lora", 3, path, *lora)
    assert min(logged(text, "lr")) > 0
    adapters = load_file(folder / "adapter_model.safetensors")
    ups = {name: tensor for name, tensor in adapters.items() if "lora_B" in name}
    assert len(ups) == 4 * 5  # two layers of the encoder, three of the policy
    still = [name for name, tensor in ups.items() if not tensor.any()]
    assert not still, still
    assert not (folder / "model.safetensors").exists()
    assert "phase both trains the encoder anew" in lerobot.fail(
        lerobot.folder / "libero", f"--policy.path={lerobot.checkpoint('short')}", *lora
    )
    assert "step:5" in lerobot.resume("lora", 5).replace(" ", "")


def check_eval(lerobot: LeRobot) -> None:
    """lerobot-eval on a world of StateVLA's: the policy sees what the world shows, and the world gets its answers."""
    policy, record = lerobot.checkpoint("phase2"), lerobot.folder / "noted.npz"
    given = (
        f"--policy.path={policy}",
        "--policy.device=cpu",
        "--env.type=statevla",
        "--env.task=eval_world:EvalWorld",
        "--eval.batch_size=1",
        "--eval.n_episodes=2",
    )
    command = ("lerobot.scripts.lerobot_eval", *given, f"--output_dir={lerobot.folder / 'evaluated'}")
    lerobot.run(*command, f"--env.options={{record: {record}}}")
    overall = json.loads((lerobot.folder / "evaluated" / "eval_info.json").read_text())["overall"]
    assert (overall["pc_success"], overall["n_episodes"]) == (100, 2)
    assert [Path(video).stat().st_size > 0 for video in overall["video_paths"]] == [True, True]
    noted, acting = np.load(record), load_policy(policy, device="cpu")
    assert len(noted["action"]) == MAX_STEPS > acting.horizon  # over the end of a chunk
    robot = acting.robot
    acting.reset(1)  # LeRobot resets what it has just made
    for step, action in enumerate(noted["action"]):
        images = {name: noted[name][step] for name in robot.camera_names}
        state = {field.name: noted[field.name][step].astype(np.float32) for field in robot.policy_fields}
        np.testing.assert_array_equal(action, acting.act(Observation(images, state, INSTRUCTION)))
    for arguments, expected in (
        (("--env.options={}",), "record"),
        ((f"--env.options={{record: {record}}}", "--env.task_ids=[1]"), "it has tasks 0 to 0"),
        (("--env.task=nowhere",), "there is no such world"),
    ):
        assert expected in lerobot.refused(*command, *arguments)
