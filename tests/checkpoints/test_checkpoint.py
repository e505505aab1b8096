"""Checkpoints: strict, whole at every moment, and readable under every name they are given."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoint_edits import edit
from statevla.checkpoints.checkpoint import (
    Contents,
    DataInfo,
    TrainingState,
    load_checkpoint,
    load_strict,
    load_training_state,
    resolve_checkpoint,
    save_checkpoint,
)
from statevla.checkpoints.version import FORMAT_VERSION
from statevla.config import Config
from statevla.errors import UserError
from statevla.machine.storage import write_tensors
from statevla.model.language import LanguageInfo
from statevla.model.statevla_model import StateVLA
from statevla.robots import LIBERO
from statevla.transforms import FieldStatistics, Statistics


def statistics() -> Statistics:
    rng = np.random.default_rng(0)
    state = FieldStatistics.of(rng.normal(size=(50, 9)))
    return Statistics(FieldStatistics.of(rng.normal(size=(50, 7))), state)


def contents(config: Config, seed: int = 0) -> Contents:
    torch.manual_seed(seed)
    language = LanguageInfo("some encoder", config.model.language_dim, "abc")
    data = DataInfo("cache", 0.7, 0)
    metrics = {"phase": "1", "step": seed}
    return Contents(StateVLA(config).state_dict(), config, LIBERO, statistics(), language, data, metrics)


def save(run: Path, config: Config, seed: int = 0, is_best: bool = True) -> Contents:
    made = contents(config, seed)
    save_checkpoint(run, made, TrainingState({"optimizer.x.step": torch.tensor(3.0)}, {"step": seed}), is_best)
    return made


def assert_equal_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_what_was_saved_is_loaded(tiny_config: Config, tmp_path: Path) -> None:
    made = save(tmp_path / "run", tiny_config)
    loaded = load_checkpoint(tmp_path / "run" / "last")
    assert_equal_weights(loaded.model.state_dict(), dict(made.model))
    assert loaded.config == tiny_config
    assert (loaded.language, loaded.data, loaded.metrics) == (made.language, made.data, made.metrics)
    np.testing.assert_array_equal(loaded.statistics.actions.q99, made.statistics.actions.q99)
    assert not loaded.model.training
    state, _, _ = load_training_state(tmp_path / "run")
    assert state.values == {"step": 0}
    assert state.tensors["optimizer.x.step"] == 3.0


def test_nothing_is_pickled(tiny_config: Config, tmp_path: Path) -> None:
    save(tmp_path, tiny_config)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_best_stays_while_last_moves_on(tiny_config: Config, tmp_path: Path) -> None:
    first = save(tmp_path, tiny_config, seed=0, is_best=True)
    second = save(tmp_path, tiny_config, seed=1, is_best=False)
    assert_equal_weights(load_checkpoint(tmp_path / "best").model.state_dict(), dict(first.model))
    assert_equal_weights(load_checkpoint(tmp_path / "last").model.state_dict(), dict(second.model))


def test_aliases_work_with_and_without_links(tiny_config: Config, tmp_path: Path) -> None:
    save(tmp_path, tiny_config, seed=0, is_best=True)
    save(tmp_path, tiny_config, seed=1, is_best=False)
    best, last = tmp_path / "checkpoint_best.pt", tmp_path / "checkpoint_last.pt"
    assert best.is_symlink()
    assert str(best.readlink()) == "best"
    for remove_links in (False, True):
        if remove_links:
            best.unlink()
            last.unlink()
        assert resolve_checkpoint(best) == (tmp_path / "best").resolve()
        assert resolve_checkpoint(last) == (tmp_path / "last").resolve()
        assert resolve_checkpoint(tmp_path) == (tmp_path / "best").resolve()


def test_a_copied_checkpoint_needs_nothing_else(tiny_config: Config, tmp_path: Path) -> None:
    made = save(tmp_path / "run", tiny_config)
    shutil.copytree(tmp_path / "run" / "best", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "run")
    assert_equal_weights(load_checkpoint(tmp_path / "elsewhere").model.state_dict(), dict(made.model))


def test_a_replacement_cut_off_in_the_middle_is_recovered(tiny_config: Config, tmp_path: Path) -> None:
    made = save(tmp_path, tiny_config)
    # The moment between the two renames: `last` was moved away, the new one is not there yet.
    (tmp_path / "last").rename(tmp_path / ".last.old")
    assert_equal_weights(load_checkpoint(tmp_path / "checkpoint_last.pt").model.state_dict(), dict(made.model))
    load_training_state(tmp_path)
    assert (tmp_path / "last").is_dir()
    assert not (tmp_path / ".last.old").exists()


def test_an_unfinished_checkpoint_is_ignored_and_replaced(tiny_config: Config, tmp_path: Path) -> None:
    save(tmp_path, tiny_config, seed=0)
    shutil.copytree(tmp_path / "last", tmp_path / ".last.new")
    (tmp_path / ".last.new" / "model.safetensors").write_bytes(b"cut")
    second = save(tmp_path, tiny_config, seed=1)
    assert_equal_weights(load_checkpoint(tmp_path / "last").model.state_dict(), dict(second.model))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("damage", ["truncate", "flip a bit", "empty", "remove"])
@pytest.mark.parametrize("name", ["model.safetensors", "training_state/state.safetensors"])
def test_damaged_tensors_are_noticed(tiny_config: Config, tmp_path: Path, damage: str, name: str) -> None:
    save(tmp_path, tiny_config)
    path = tmp_path / "last" / name
    data = path.read_bytes()
    path.unlink()  # hard link: `best` must stay whole
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip a bit":
        path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif damage == "empty":
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"state\.safetensors|model\.safetensors|not found"):
        load_training_state(tmp_path)
    load_checkpoint(tmp_path / "best")


@pytest.mark.parametrize("name", ["config", "statistics", "language", "data", "metrics", "version"])
def test_damaged_json_is_noticed(tiny_config: Config, tmp_path: Path, name: str) -> None:
    save(tmp_path, tiny_config)
    path = tmp_path / "last" / f"{name}.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(UserError, match=f"{name}.json"):
        load_checkpoint(tmp_path / "last")


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics", "{}", "metrics.json: phase is None, expected one of 1, 2, bc"),
        ("metrics", "null", "metrics.json: phase is None"),
        ("metrics", '{"phase": ["1"]}', "metrics.json: phase is ['1']"),
        ("config", "null", "config.json: expected a mapping of sections at the top, got None"),
        ("config", "[" * 100_000, "config.json: not readable as JSON"),
        ("robot", "null", "robot.json: expected a mapping"),
        ("statistics", "null", "statistics.json: malformed"),
        ("language", "[]", "language.json: expected the keys encoder, dim, fingerprint"),
        ("language", '{"encoder": "x", "dim": "wide", "fingerprint": ""}', "language.json: expected the keys"),
        ("data", '{"cache": "x", "train_split": 0.9, "split_seed": 0, "source_caches": null}', "data.json: expected"),
        ("version", f'{{"format": {FORMAT_VERSION}, "sha256": null}}', "version.json: expected hashes by file"),
    ],
    ids=range(11),
)
def test_json_that_says_something_else_is_noticed(
    tiny_config: Config, tmp_path: Path, name: str, content: str, message: str
) -> None:
    save(tmp_path, tiny_config)
    path = tmp_path / "last" / f"{name}.json"
    if name == "version":
        path.write_text(content)
    else:
        edit(path, content)
    with pytest.raises(UserError) as raised:
        load_checkpoint(tmp_path / "last")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("field", "key", "value", "message"),
    [
        ("actions", "std", -0.1, "statistics.json: actions: a negative std at position 2"),
        ("robot_state", "std", float("nan"), "statistics.json: robot_state: std has NaN or infinite values"),
        ("actions", "mean", float("inf"), "statistics.json: actions: mean has NaN or infinite values"),
        ("actions", "q99", -1e9, "statistics.json: actions: a q01 above its q99 at position 2"),
        ("actions", "min", 1e9, "statistics.json: actions: a min above its max at position 2"),
        ("actions", "max", "much", "statistics.json: actions: expected lists of numbers"),
        ("actions", "max", None, "statistics.json: actions: max has NaN"),
    ],
)
def test_statistics_that_no_numbers_have_are_refused(
    tiny_config: Config, tmp_path: Path, field: str, key: str, value: object, message: str
) -> None:
    save(tmp_path, tiny_config)
    path = tmp_path / "last" / "statistics.json"
    tree = json.loads(path.read_text())
    tree[field][key][2] = value
    edit(path, json.dumps(tree))
    with pytest.raises(UserError) as raised:
        load_checkpoint(tmp_path / "last")
    assert message in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tiny_config: Config, tmp_path: Path, value: float) -> None:
    made = contents(tiny_config)
    made.model["state_encoder.projection.0.weight"][1, 2] = value
    save_checkpoint(tmp_path, made, TrainingState({}, {"step": 0}), is_best=True)
    message = r"model\.safetensors: 'state_encoder\.projection\.0\.weight' has NaN or infinite values"
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path)
    with pytest.raises(UserError, match=message):
        load_training_state(tmp_path)


def test_another_format_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    save(tmp_path, tiny_config)
    change_json(tmp_path / "last" / "version.json", format=99)
    with pytest.raises(UserError, match=f"format 99, this code reads {FORMAT_VERSION}"):
        load_checkpoint(tmp_path / "last")


def test_absent_checkpoints_say_what_is_there(tiny_config: Config, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"not found .*notes\.txt"):
        load_checkpoint(tmp_path / "checkpoint_best.pt")
    with pytest.raises(UserError, match="is a file"):
        load_checkpoint(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="no checkpoint to continue"):
        load_training_state(tmp_path)


def test_loading_lists_missing_unexpected_and_misshaped(tiny_config: Config) -> None:
    model = StateVLA(tiny_config)
    tensors = dict(model.state_dict())
    del tensors["state_encoder.projection.0.weight"]
    tensors["stranger"] = torch.zeros(1)
    tensors["gripper.mlp.0.bias"] = torch.zeros(3)
    with pytest.raises(UserError) as raised:
        load_strict(model, tensors, "somewhere")
    message = str(raised.value)
    assert message.startswith("somewhere: ")
    assert "missing: state_encoder.projection.0.weight" in message
    assert "unexpected: stranger" in message
    assert "gripper.mlp.0.bias (expected [256], got [3])" in message
    assert "\n" not in message


def test_shared_and_sliced_tensors_are_stored_apart(tmp_path: Path) -> None:
    from statevla.machine.storage import read_tensors

    whole = torch.arange(6.0)
    write_tensors(tmp_path / "t.safetensors", {"a": whole[:3], "b": whole[3:], "c": whole.view(2, 3).T})
    back = read_tensors(tmp_path / "t.safetensors")
    assert torch.equal(back["b"], torch.tensor([3.0, 4.0, 5.0]))
    assert torch.equal(back["c"], whole.view(2, 3).T)


def test_full_disk_keeps_what_was_there(tiny_config: Config, tmp_path: Path) -> None:
    """A limit on file size fails writes as a full disk does, with real errors from the kernel."""
    made = save(tmp_path / "run", tiny_config)
    (tmp_path / "config.json").write_text(tiny_config.model_dump_json())
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        sys.path[:0] = [sys.argv[2], str(Path(sys.argv[2]).parent)]
        from statevla.commands.entry import run_command
        from statevla.config import config_from_dict
        import json
        from test_checkpoint import save
        folder = Path(sys.argv[1])
        config = config_from_dict(json.loads((folder / "config.json").read_text()), "test")
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        run_command(lambda: save(folder / "run", config, seed=1) and None)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    for name in ("last", "best"):
        assert_equal_weights(load_checkpoint(tmp_path / "run" / name).model.state_dict(), dict(made.model))
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
