"""The configuration tree: defaults, presets, overrides, errors, and no key that nothing reads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from statevla.config import Config, ModelConfig, all_keys, config_from_dict, fit_to_robot, load_config
from statevla.errors import UserError
from statevla.robots import KNOWN_ROBOTS, LIBERO

ROOT = Path(__file__).parents[2]
SPEC = {
    "model": {
        "embed_dim": 256,
        "encoder_depth": 12,
        "state_dim": 256,
        "action_dim": 7,
        "action_seq_len": 10,
        "robot_state_dim": 9,
    },
    "training": {
        "phase1": {"num_epochs": 1000, "learning_rate": 1.0e-4, "temporal_predictor_hidden_dim": 512},
        "phase2": {"num_epochs": 1000, "learning_rate": 5.0e-5},
    },
}


def contains(tree: dict, part: dict) -> bool:
    return all(contains(tree[k], v) if isinstance(v, dict) else tree[k] == v for k, v in part.items())


def test_faithful_preset_has_the_specs_keys_and_values() -> None:
    assert contains(yaml.safe_load((ROOT / "conf/config.yaml").read_text()), SPEC)
    config = load_config(ROOT / "conf/config.yaml")
    assert contains(config.model_dump(), SPEC)
    assert config.model == ModelConfig()
    assert config.model.num_tokens == 395


@pytest.mark.parametrize("preset", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda p: p.stem)
def test_presets_load_and_round_trip(preset: Path) -> None:
    config = load_config(preset)
    assert config_from_dict(config.model_dump(mode="json"), source="round trip") == config


def test_overrides() -> None:
    config = load_config(
        ROOT / "conf/config.yaml",
        ["training.phase1.batch_size=8", "model.cameras=[front]", "training.phase2.learning_rate=1e-3", "seed=7"],
    )
    assert config.training.phase1.batch_size == 8
    assert config.model.cameras == ["front"]
    assert config.training.phase2.learning_rate == 1e-3
    assert config.seed == 7
    assert config.model.num_tokens == 3 + 196


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.embed_dmi=3", "unknown key 'model.embed_dmi'; did you mean 'model.embed_dim'?"),
        ("trainig.seed=1", "did you mean 'training'?"),
        ("model.stem.patch_sze=8", "did you mean 'model.stem.patch_size'?"),
        ("model.stem.channels=[8]", "unknown key 'model.stem.channels' where kind is 'patch'"),
        ("model.stem={kind: conv, patch_size: 8}", "unknown key 'model.stem.patch_size' where kind is 'conv'"),
        ("model.embed_dim=-1", "model.embed_dim: input should be greater than or equal to 1, got -1"),
        ("data.train_split=2", "data.train_split"),
        ("model.cameras=[]", "model.cameras: expected at least one, or auto"),
        ("model.action_dim=0", "model.action_dim: expected at least one, or auto"),
        ("model.cameras=[a, a]", "cameras must differ"),
        ("model.image_size=100", "no multiple of the stem's stride 16"),
        ("model.robot_state_dim=-8", "model.robot_state_dim: input should be greater than or equal to 0"),
        ("model.policy.solver=late", "model.policy.solver"),
        ("training.phase1.loss.keyframe_weight=-1", "training.phase1.loss.keyframe_weight"),
        ("seed", "expected key=value"),
        ("seed.deep=1", "'seed' is a value, not a section"),
    ],
)
def test_bad_keys_and_values_give_one_clear_line(override: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("seed: 0\n")
    with pytest.raises(UserError) as error:
        load_config(file, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("{kind: patch, patch_size: 8}", {"kind": "patch", "patch_size": 8}),
        ("{kind: conv, keypoints: 4}", {"kind": "conv", "channels": [8, 192], "strides": [4, 8], "keypoints": 4}),
        ("{strides: [8, 4]}", {"kind": "conv", "channels": [8, 192], "strides": [8, 4], "keypoints": 2}),
    ],
)
def test_a_section_of_another_kind_takes_nothing_from_its_base(
    stem: str, expected: dict[str, object], tmp_path: Path
) -> None:
    below = "model: {embed_dim: 192, stem: {kind: conv, channels: [8, 192], strides: [4, 8], keypoints: 2}}"
    (tmp_path / "below.yaml").write_text(below)
    (tmp_path / "above.yaml").write_text(f"base: below.yaml\nmodel: {{stem: {stem}}}")
    config = load_config(tmp_path / "above.yaml")
    assert config.model.embed_dim == 192
    assert expected.items() <= config.model.stem.model_dump().items()


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_bad_files(text: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_config(file)
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path / "absent.yaml")


def test_every_key_is_read_somewhere() -> None:
    """A key whose name appears in no source file but the configuration's is a promise that nothing keeps."""
    text = "\n".join(p.read_text() for p in (ROOT / "src").rglob("*.py") if p.parent.name != "config")
    own = "\n".join(p.read_text() for p in (ROOT / "src/statevla/config").glob("*.py"))
    unread = [
        key
        for key in {k.rpartition(".")[2] for k in all_keys()}
        if not re.search(rf"\.{key}\b", text) and not re.search(rf"self(\.\w+)*\.{key}\b", own)
    ]
    assert unread == []


def test_dimensions_are_those_of_the_robot() -> None:
    config, robot = fit_to_robot(load_config(ROOT / "conf/compact.yaml"), KNOWN_ROBOTS["so101"])
    assert (config.model.action_dim, config.model.robot_state_dim, config.model.cameras) == (6, 6, ["front"])
    assert robot.camera_names == ("front",)
    # Only some cameras, in another order.
    chosen = load_config(ROOT / "conf/config.yaml", ["model.cameras=[eye_in_hand, agentview]"])
    assert fit_to_robot(chosen, LIBERO)[1].camera_names == ("eye_in_hand", "agentview")


@pytest.mark.parametrize(
    ("override", "robot", "message"),
    [
        ("model.action_dim=7", "so101", r"model\.action_dim is 7, robot 'so101' has 6: arm \(5 continuous, absolute\)"),
        (
            "model.robot_state_dim=9",
            "so101",
            r"is 9, robot 'so101' has 6: .*set model.robot_state_dim to",
        ),
        ("model.cameras=[wrist]", "so101", r"no camera 'wrist', robot 'so101' has front; set model.cameras to auto"),
    ],
)
def test_a_written_number_is_checked_against_the_robot(override: str, robot: str, message: str) -> None:
    config = load_config(ROOT / "conf/compact.yaml", [override])
    with pytest.raises(UserError, match=message):
        fit_to_robot(config, KNOWN_ROBOTS[robot])


def test_sections_are_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        Config().seed = 3  # type: ignore[misc]


def test_reference_page_is_current() -> None:
    script = ROOT / "scripts" / "config_reference.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
