"""What LeRobot trained is a checkpoint: every command takes its folder, and answers bit for bit as it would."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from statevla.acting.policy import load_policy
from statevla.checkpoints.checkpoint import LoadedCheckpoint, load_checkpoint, resolve_checkpoint
from statevla.checkpoints.lerobot_policy import NUM_UPDATES, PREFIX, SWITCHED_AT, PolicySettings
from statevla.checkpoints.share import copy_checkpoint
from statevla.config import Config, results_dir
from statevla.errors import UserError
from statevla.machine.storage import write_tensors
from statevla.robots import LIBERO
from statevla.types import Observation
from untrained_policy import save_untrained

INSTRUCTION = "pick up the cup"


@pytest.fixture(scope="module")
def own(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> LoadedCheckpoint:
    """A checkpoint of StateVLA's."""
    config = tiny_config.model_copy(update={"model": tiny_config.model.model_copy(update={"language_dim": 16})})
    return load_checkpoint(save_untrained(config, LIBERO, [INSTRUCTION], tmp_path_factory.mktemp("own")))


def write_policy(folder: Path, own: LoadedCheckpoint, phase: str = "2", switched_at: int = 3) -> Path:
    """The same as LeRobot's `save_pretrained` writes it with the plugin."""
    folder.mkdir(parents=True)
    settings = PolicySettings(own.config, own.robot, own.statistics, own.language)
    tree = {"type": "statevla", "phase": phase, "settings": settings.to_json(), "n_action_steps": 8}
    (folder / "config.json").write_text(json.dumps(tree))
    tensors = {PREFIX + name: tensor for name, tensor in own.model.state_dict().items()}
    counts = {NUM_UPDATES: torch.tensor(7), SWITCHED_AT: torch.tensor(switched_at)}
    write_tensors(folder / "model.safetensors", tensors | counts)
    return folder


def test_acts_bit_for_bit(own: LoadedCheckpoint, tmp_path: Path) -> None:
    folder = write_policy(tmp_path / "pretrained_model", own)
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (96, 96, 3), np.uint8) for name in own.robot.camera_names}
    state = {field.name: rng.normal(size=field.size) for field in own.robot.policy_fields}
    seen = Observation(images, state, INSTRUCTION)
    mine, theirs = (load_policy(path, precision="fp32").act_chunk(seen).actions for path in (own.path, folder))
    assert np.array_equal(mine, theirs)


def test_is_a_whole_checkpoint(own: LoadedCheckpoint, tmp_path: Path) -> None:
    folder = write_policy(tmp_path / "pretrained_model", own, phase="both")
    loaded = load_checkpoint(folder)
    assert loaded.statistics.to_dict() == own.statistics.to_dict()
    assert loaded.language == own.language
    assert loaded.metrics == {"phase": "2", "step": 7}
    assert loaded.data.train_split == 1.0  # LeRobot holds nothing out
    # Made once; results go where the user is, and it can be shared.
    assert resolve_checkpoint(folder) == loaded.path
    assert results_dir(loaded.path, "eval") == Path("eval")
    copy_checkpoint(loaded.path, tmp_path / "shared")
    assert load_checkpoint(tmp_path / "shared").robot == own.robot


def test_its_card_names_the_data_it_was_trained_on(own: LoadedCheckpoint, tmp_path: Path) -> None:
    data = own.config.data.model_copy(update={"path": "/home/user/.cache/huggingface/lerobot/user/cups"})
    trained = replace(own, config=own.config.model_copy(update={"data": data}))
    copy_checkpoint(resolve_checkpoint(write_policy(tmp_path / "policy", trained)), tmp_path / "shared")
    text = (tmp_path / "shared" / "README.md").read_text()
    assert "\ndatasets:\n- user/cups\n" in text
    assert "\n- data: `cups`" in text
    assert "libero_object" not in text


def test_is_called_as_its_run(own: LoadedCheckpoint, tmp_path: Path) -> None:
    """By the name that the user chose, where LeRobot puts the policy, `last` included, or where it was copied to."""
    checkpoints = tmp_path / "cups" / "checkpoints"
    folder = write_policy(checkpoints / "000100" / "pretrained_model", own)
    (checkpoints / "last").symlink_to("000100")
    made = resolve_checkpoint(folder)
    assert made.name.startswith("cups_")
    assert resolve_checkpoint(checkpoints / "last" / "pretrained_model") == made
    assert resolve_checkpoint(folder.rename(tmp_path / "mine")).name.startswith("mine_")


def test_other_weights_are_another_checkpoint(own: LoadedCheckpoint, tmp_path: Path) -> None:
    first, again, later = (
        resolve_checkpoint(write_policy(tmp_path / place / "cups", own, switched_at=step))
        for place, step in (("first", 3), ("again", 3), ("later", 4))
    )
    assert first == again != later


def test_phase_1_does_not_act(own: LoadedCheckpoint, tmp_path: Path) -> None:
    for name, phase in (("one", "1"), ("both", "both")):
        folder = write_policy(tmp_path / name, own, phase, switched_at=-1)
        with pytest.raises(UserError, match="phase 1 trains no policy yet"):
            load_policy(folder)


def test_damage_is_one_line(own: LoadedCheckpoint, tmp_path: Path) -> None:
    folder = write_policy(tmp_path / "policy", own)
    tree = json.loads((folder / "config.json").read_text())
    for settings, expected in (("{}", "not what the plugin writes"), (None, "was not trained")):
        (folder / "config.json").write_text(json.dumps(tree | {"settings": settings}))
        with pytest.raises(UserError, match=expected) as error:
            load_checkpoint(folder)
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)
