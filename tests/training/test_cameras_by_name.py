"""A checkpoint's cameras in later data: by name or by a key, never by their order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from lerobot_files import Dataset, Episode, write_dataset
from statevla.config import Config, config_from_dict
from statevla.data import open_frame_cache
from statevla.errors import UserError
from statevla.training.run import train
from statevla.training.setup import prepare

DIMS = ["pan", "lift"]


def config_on(data: Path, **more: object) -> Config:
    """A small model that takes dimensions and cameras from the data."""
    np.savez(data.parent / "language.npz", **{"push the block": np.ones(4, np.float32)})
    model = {"embed_dim": 16, "encoder_depth": 1, "state_dim": 16, "action_seq_len": 4, "image_size": 16}
    stem = {"kind": "patch", "patch_size": 8}
    auto = dict.fromkeys(("action_dim", "robot_state_dim", "cameras"), "auto")
    phase = {"num_epochs": 1, "max_steps": 1, "batch_size": 2, "warmup_steps": 0}
    tree = {
        "model": {**model, **auto, "language_dim": 4, "stem": stem},
        "language": {"encoder": str(data.parent / "language.npz")},
        "data": {"path": str(data), "cache_dir": str(data.parent / "cache"), **more},
        "training": {"phase1": {**phase, "frame_skip": 1, "num_frames": 2}, "phase2": phase, "bc": phase},
        "output_dir": str(data.parent / "runs"),
    }
    return config_from_dict(tree, "test")


def write_arm(root: Path, cameras: tuple[str, ...]) -> Path:
    rng = np.random.default_rng(0)
    columns = [{"observation.state": rng.normal(size=(12, 2)), "action": rng.normal(size=(12, 2))} for _ in range(3)]
    keys = [f"observation.images.{name}" for name in cameras]
    names = {"observation.state": DIMS, "action": DIMS}
    return write_dataset(root, Dataset(names, [Episode(each) for each in columns], keys))


@pytest.fixture(scope="module")
def phase1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on `arm_wrist` and `scene`, in this order, the alphabet's."""
    folder = tmp_path_factory.mktemp("trained")
    return train(config_on(write_arm(folder / "arm", ("scene", "arm_wrist"))), "1")


@pytest.mark.parametrize(("phase", "flag"), [("2", "phase1_checkpoint"), ("1", "init_checkpoint")])
def test_cameras_of_other_names_are_asked_for(phase1: Path, tmp_path: Path, phase: str, flag: str) -> None:
    """In alphabetical order the scene would be the wrist."""
    data = write_arm(tmp_path / "arm", ("agentview", "eye_in_hand"))
    with pytest.raises(UserError) as caught:
        prepare(config_on(data), phase, **{flag: phase1})
    message = str(caught.value)
    assert message.startswith(f"--{flag} ")
    assert "it sees the cameras arm_wrist, scene" in message
    assert "has agentview, eye_in_hand; say by a key which of these is 'arm_wrist'" in message
    assert not (tmp_path / "cache").exists()


def test_a_key_says_which_camera_is_which(phase1: Path, tmp_path: Path) -> None:
    data = write_arm(tmp_path / "arm", ("agentview", "eye_in_hand"))
    keys = {"scene": "agentview", "arm_wrist": "eye_in_hand"}
    robot = {
        "name": "arm",
        "control_freq_hz": 10,
        "actions": [{"name": "action", "dims": DIMS, "state": "state"}],
        "state": [{"name": "state", "dims": DIMS}],
        "cameras": [{"name": name, "key": f"observation.images.{key}"} for name, key in keys.items()],
    }
    (tmp_path / "arm.yaml").write_text(yaml.safe_dump(robot))
    config = config_on(data, robot=str(tmp_path / "arm.yaml"))
    setup = prepare(config, "2", phase1_checkpoint=phase1)
    assert setup.config.model.cameras == ["arm_wrist", "scene"]
    found = [(camera.name, camera.key) for camera in setup.main.cache.robot.cameras]
    assert found == [("arm_wrist", "observation.images.eye_in_hand"), ("scene", "observation.images.agentview")]
    assert open_frame_cache(config).cameras == ("scene", "arm_wrist")  # by itself: as declared


def test_more_cameras_and_another_order_do_not_matter(phase1: Path, tmp_path: Path) -> None:
    data = write_arm(tmp_path / "arm", ("aside", "scene", "arm_wrist"))
    for phase, flag in (("2", "phase1_checkpoint"), ("bc", "init_checkpoint")):
        setup = prepare(config_on(data), phase, **{flag: phase1})
        assert setup.main.cache.cameras == ("arm_wrist", "scene")
