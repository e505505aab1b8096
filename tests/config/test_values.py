"""Values out of files and off the command line: text stays text, and impossible numbers are one line, at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from statevla.config import Config, config_from_dict, load_config
from statevla.errors import UserError


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    file = tmp_path / "c.yaml"
    file.write_text("")
    return file


def value_of(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.path=robot #2", "robot #2"),
        ("data.path=a: b", "a: b"),
        ("data.path=[x", "[x"),
        ("output_dir=2025-11-29", "2025-11-29"),
        ("output_dir=20251129", "20251129"),
        ("data.cache_dir=no", "no"),
        ("data.robot=007", "007"),
        ("training.wandb=off", "off"),
        ("data.orientation=upright", "upright"),
        ("language.encoder=null", "null"),
        ("data.relative_actions=none", "none"),
        ("data.relative_actions=[off, 1-2]", ["off", "1-2"]),
        ("data.demos_per_task=null", None),
        ("training.compile=off", False),
        ("training.compile=yes", True),
        ("training.phase2.learning_rate=1e-3", 1e-3),
        ("training.betas=[0.9, 0.99]", (0.9, 0.99)),
        ("model.stem.patch_size=8", 8),
        ("model.stem.kind=patch", "patch"),
        ("data.sources=[{path: 2025-11-29, weight: 0.5}]", None),
    ],
)
def test_overrides_are_read_by_the_type_of_their_key(empty: Path, override: str, value: Any) -> None:
    config = load_config(empty, [override])
    key = override.partition("=")[0]
    if key == "data.sources":
        assert config.data.sources[0].path == "2025-11-29"
    else:
        assert value_of(config, key) == value


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("training: {wandb: off}", "training.wandb", "off"),
        ("data: {path: 2025-11-29}", "data.path", "2025-11-29"),
        ("data: {path: no}", "data.path", "no"),
        ("training: {phase1: {learning_rate: 1e-3}}", "training.phase1.learning_rate", 1e-3),
        ("training: {compile: on}", "training.compile", True),
        ("model: {cameras: [on, front]}", "model.cameras", ["on", "front"]),
    ],
)
def test_files_hold_what_they_seem_to(tmp_path: Path, text: str, key: str, value: Any) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert value_of(load_config(file), key) == value


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {wandb: off}\nseed: 1\ntraining: {compile: true}\n", "line 3: key 'training' stands twice"),
        ("data: {path: 20251129}", "data.path: input should be a valid string, got 20251129; quote it"),
        ("model: {image_size: 1000000}", "model.image_size: expected at most 4,096, got 1,000,000"),
        ("model: {image_size: 4096, stem: {patch_size: 1}}", "makes 16,777,216 tokens a camera"),
        ("model: {embed_dim: 1000000}", "model.embed_dim: expected at most 65,536, got 1,000,000"),
        ("model: {mamba: {d_state: 100000}}", "model.mamba.d_state: expected at most 65,536, got 100,000"),
        ("training: {phase1: {batch_size: 1000000000000}}", "training.phase1.batch_size: expected at most 1,000,000,0"),
        ("seed: 99999999999999999999", "seed: input should be less than"),
        ("training: {phase1: {learning_rate: .inf}}", "training.phase1.learning_rate: input should be a finite number"),
        ("training: {weight_decay: .nan}", "training.weight_decay: input should be a finite number"),
        ("training: {betas: [.nan, 0.9]}", "training.betas.0: input should be"),
        ("1: 2", "config"),
        ("model: " + "[" * 50_000, "nested too deeply"),
        ("model: " + "[" * 90 + "]" * 90, "model: input should be a valid dictionary"),
        (BOMB, "more than 100,000 values"),
    ],
    ids=range(15),
)
def test_slips_in_files_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as raised:
        load_config(file)
    line = str(raised.value)
    assert message in line
    assert "c.yaml" in line
    assert "\n" not in line
    assert len(line) < 400


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.path=", "'data.path=': the value is empty"),
        ("training.phase1.learning_rate=nan", "training.phase1.learning_rate: input should be a finite number"),
        ("training.phase1.max_steps=[1", "not readable as YAML"),
        ("training={phase1: {batch_size: 1, batch_size: 2}}", "key 'batch_size' stands twice"),
        ("training.phase1=" + "[" * 50_000, "nested too deeply"),
    ],
)
def test_slips_in_overrides_are_one_line(empty: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        load_config(empty, [override])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("tree", [None, [], 3, "text"])
def test_a_configuration_is_a_mapping(tree: Any) -> None:
    with pytest.raises(UserError, match=r"config config\.json: expected a mapping of sections at the top, got"):
        config_from_dict(json.loads(json.dumps(tree)), "config.json")
