"""Every file of a checkpoint is as it was written, or said not to be; edits are accepted in one way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_checkpoint import contents

from checkpoint_edits import edit
from statevla.acting.policy import StateVLAPolicy
from statevla.checkpoints import checkpoint
from statevla.checkpoints.checkpoint import (
    TrainingState,
    load_checkpoint,
    load_training_state,
    resolve_checkpoint,
    save_checkpoint,
    weights_hash,
)
from statevla.checkpoints.version import check_files, read_version, write_version
from statevla.commands.share import ShareArgs, share
from statevla.config import Config, bundled_dir, bundled_policies
from statevla.errors import UserError
from statevla.robots import LIBERO
from untrained_policy import save_untrained

JSON_FILES = ["config", "robot", "statistics", "language", "data", "metrics"]


@pytest.fixture
def folder(tiny_config: Config, tmp_path: Path) -> Path:
    """A checkpoint `last`, with its training state."""
    save_checkpoint(tmp_path / "run", contents(tiny_config), TrainingState({}, {"step": 7}), is_best=True)
    return tmp_path / "run" / "last"


def change(path: Path) -> None:
    """Another number or letter in a JSON file, which stays JSON of the same keys; `best` keeps the old file."""
    text = path.read_text()
    place = max(text.rfind(digit) for digit in "0123456789")
    place = place if place >= 0 else text.rfind("a")
    path.unlink()
    path.write_text(text[:place] + ("8" if text[place] == "9" else "9") + text[place + 1 :])


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_number_that_changed_is_noticed_and_may_be_meant(folder: Path, name: str) -> None:
    path = folder / f"{name}.json"
    before = json.loads(path.read_text())
    change(path)
    assert json.loads(path.read_text()) != before
    message = (
        f"{path}: damaged or cut short, or edited (its SHA-256 is not the one in version.json); take another "
        'checkpoint, or, to accept an edit, write "edited" in place of the SHA-256 there'
    )
    for read in (lambda: load_checkpoint(folder), lambda: share(ShareArgs(str(folder), str(folder.parent / "copy")))):
        with pytest.raises(UserError) as raised:
            read()
        assert str(raised.value) == message
    assert not (folder.parent / "copy").exists()
    with pytest.raises(UserError, match=f"{name}.json: damaged"):
        load_training_state(folder.parent)
    load_checkpoint(folder.parent / "best")
    edit(path, path.read_text())
    check_files(folder)


def test_an_accepted_edit_is_what_is_loaded_and_shared(folder: Path, tmp_path: Path) -> None:
    path = folder / "config.json"
    tree = json.loads(path.read_text())
    tree["data"]["path"], tree["language"]["encoder"] = "moved", "minilm"
    edit(path, json.dumps(tree))
    share(ShareArgs(str(folder), str(tmp_path / "copy")))
    for each in (folder, tmp_path / "copy"):
        assert load_checkpoint(each).config.data.path == "moved"
    # The copy is as it was written, edits and all.
    assert "edited" not in read_version(tmp_path / "copy")["sha256"].values()
    change(tmp_path / "copy" / "config.json")
    with pytest.raises(UserError, match=r"config\.json: damaged"):
        load_checkpoint(tmp_path / "copy")


def test_the_training_state_is_checked_when_it_is_resumed(folder: Path) -> None:
    change(folder / "training_state" / "state.json")
    load_checkpoint(folder)
    with pytest.raises(UserError, match=r"training_state/state\.json: damaged"):
        load_training_state(folder.parent)


@pytest.mark.parametrize("key", ["git_commit", "versions"])
def test_what_the_version_says_besides_is_sealed(folder: Path, key: str) -> None:
    path = folder / "version.json"
    tree = json.loads(path.read_text())
    tree[key] = {"torch": "1.0"}
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"version\.json: damaged, or edited \(its 'seal' is not .*\); take another"):
        load_checkpoint(folder)
    path.write_text(json.dumps(tree | {"seal": "edited"}))
    load_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "robot.json"])
def test_a_file_that_is_gone_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file, which version.json lists; the checkpoint|not found"):
        load_checkpoint(folder)


def test_a_listed_file_that_nothing_reads_by_its_name_is_missed_too(folder: Path) -> None:
    """Else the embeddings beside the weights could make room for others elsewhere."""
    (folder / "language.npz").write_bytes(b"vectors")
    write_version(folder)
    check_files(folder)
    (folder / "language.npz").unlink()
    with pytest.raises(UserError, match=r"language\.npz: no such file"):
        load_checkpoint(folder)


def test_earlier_checkpoints_without_these_hashes_are_read(folder: Path) -> None:
    path = folder / "version.json"
    tree = json.loads(path.read_text())
    hashes = {name: digest for name, digest in tree["sha256"].items() if name.endswith(".safetensors")}
    path.write_text(json.dumps({"format": 3, "versions": {}, "git_commit": None, "sha256": hashes}))
    change(folder / "data.json")
    assert load_checkpoint(folder).path == folder.resolve()
    assert weights_hash(folder) == hashes["model.safetensors"]
    path.write_text(json.dumps({"format": 3, "sha256": {}}))
    assert weights_hash(folder) is None
    load_checkpoint(folder)


@pytest.mark.parametrize("name", bundled_policies())
def test_policies_that_come_along_list_all_their_files(name: str, tmp_path: Path) -> None:
    folder = bundled_dir("models") / name
    check_files(folder)
    listed = set(read_version(folder)["sha256"])
    assert listed == {f.name for f in folder.iterdir()} - {"version.json", "README.md"} - {
        f.name for f in folder.glob("alarm*")
    }
    copy = Path(shutil.copytree(folder, tmp_path / name))
    for file in copy.glob("*.json"):
        text = file.read_text()
        change(file)
        with pytest.raises(UserError, match=file.name):
            StateVLAPolicy.from_pretrained(copy, device="cpu")
        file.write_text(text)
    StateVLAPolicy.from_pretrained(copy, device="cpu")


@pytest.mark.parametrize("moment", ["check_files", "read_config", "read_robot", "read_tensors", "read_language"])
def test_a_checkpoint_may_be_replaced_while_it_is_read(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """As a training does it, at any moment: what is loaded is one of the two, whole."""
    made, run = [contents(tiny_config, seed) for seed in (0, 1)], tmp_path / "run"
    save_checkpoint(run, made[0], TrainingState({}, {}), is_best=True)
    real = getattr(checkpoint, moment)

    def replaced(*arguments: object) -> object:
        monkeypatch.undo()
        save_checkpoint(run, made[1], TrainingState({}, {}), is_best=True)
        return real(*arguments)

    monkeypatch.setattr(checkpoint, moment, replaced)
    loaded = load_checkpoint(run / "best")
    assert loaded.metrics["step"] == 1
    for name, tensor in loaded.model.state_dict().items():
        assert tensor.equal(made[1].model[name]), name


def test_a_checkpoint_that_is_replaced_all_the_time_is_said_to_be(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, real = contents(tiny_config), checkpoint.read_config
    save_checkpoint(tmp_path, made, TrainingState({}, {}), is_best=True)

    def replaced(folder: Path) -> Config:
        save_checkpoint(tmp_path, made, TrainingState({}, {}), is_best=True)
        return real(folder)

    monkeypatch.setattr(checkpoint, "read_config", replaced)
    with pytest.raises(UserError, match="is replaced more quickly than it can be read; give a copy of it"):
        load_checkpoint(tmp_path / "best")


def test_instructions_read_by_another_file_than_in_training_are_refused(tiny_config: Config, tmp_path: Path) -> None:
    best = save_untrained(tiny_config, LIBERO, ["pick up the red block"], tmp_path)
    StateVLAPolicy.from_pretrained(best, device="cpu")
    save_untrained(tiny_config, LIBERO, ["pick up the blue block"], tmp_path / "other")
    shutil.copy(tmp_path / "other" / "language.npz", tmp_path / "language.npz")
    with pytest.raises(UserError, match=r"language\.npz' has fingerprint .* was trained with"):
        StateVLAPolicy.from_pretrained(resolve_checkpoint(best), device="cpu")
