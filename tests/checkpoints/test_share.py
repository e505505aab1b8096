"""Sharing: a copy that acts alike, a card with the numbers of the files, names of the hub."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from checkpoint_edits import edit
from robot_files import BENCH
from statevla.acting.options import ActingOptions
from statevla.acting.policy import StateVLAPolicy
from statevla.checkpoints.checkpoint import (
    MODEL_FILE,
    Contents,
    DataInfo,
    TrainingState,
    resolve_checkpoint,
    save_checkpoint,
    weights_hash,
)
from statevla.checkpoints.hub import is_repo_id
from statevla.commands.share import ShareArgs, share
from statevla.config import Config
from statevla.errors import UserError
from statevla.machine.sealed import seal
from statevla.model.language import build_language_encoder
from statevla.model.statevla_model import StateVLA
from statevla.robots import LIBERO, RobotSpec
from statevla.transforms import FieldStatistics, Statistics
from statevla.types import Observation

TEXT = "pick up the red block"


@pytest.fixture
def run(tiny_config: Config, tmp_path: Path) -> Path:
    """A run folder with a checkpoint that nobody trained; its instructions are read from a file elsewhere."""
    return save_run(tiny_config, tmp_path, LIBERO)


def save_run(tiny_config: Config, tmp_path: Path, robot: RobotSpec, relative: tuple[str, ...] = ()) -> Path:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "sentences.npz", **{TEXT: rng.normal(size=16).astype(np.float32)})
    language = tiny_config.language.model_copy(update={"encoder": str(tmp_path / "sentences.npz")})
    dims = {"action_dim": robot.action_dim, "robot_state_dim": robot.state_dim, "cameras": list(robot.camera_names)}
    model = tiny_config.model.model_copy(update=dims)
    config = tiny_config.model_copy(update={"language": language, "model": model})
    actions = FieldStatistics.of(rng.uniform(-0.8, 0.5, (200, robot.action_dim)))
    state = FieldStatistics.of(rng.normal(size=(200, robot.state_dim)))
    statistics = Statistics(actions, state, relative_actions=relative, targets=actions if relative else None)
    torch.manual_seed(0)
    info = build_language_encoder(language, 16).info
    parts = (config, robot, statistics, info, DataInfo("cache-1", 0.7, 3))
    contents = Contents(StateVLA(config, robot).state_dict(), *parts, {"phase": "2", "step": 8})
    save_checkpoint(tmp_path / "run", contents, TrainingState({}, {}), is_best=True)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"command": ["train.py", "--phase", "2"], "seed": 5}))
    return tmp_path / "run"


def observation() -> Observation:
    rng = np.random.default_rng(0)
    images = {camera: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for camera in ("agentview", "eye_in_hand")}
    return Observation(images, LIBERO.named_state(rng.normal(size=9), "test"), TEXT)


def test_a_shared_copy_needs_nothing_else_and_acts_alike(run: Path, tmp_path: Path) -> None:
    policy = StateVLAPolicy.from_pretrained(run, device="cpu")
    folder = policy.save_pretrained(tmp_path / "shared")
    before = policy.act_chunk(observation()).actions
    (tmp_path / "sentences.npz").unlink()
    copy = StateVLAPolicy.from_pretrained(folder, device="cpu")
    np.testing.assert_array_equal(copy.act_chunk(observation()).actions, before)
    assert not (folder / "training_state").exists()
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_card_has_the_numbers_of_the_files_and_says_what_is_missing(run: Path, tmp_path: Path) -> None:
    share(ShareArgs(str(run), str(tmp_path / "bare")))
    text = (tmp_path / "bare" / "README.md").read_text()
    assert "Nothing was measured" in text
    assert "Not calibrated" in text
    assert "`train.py --phase 2`" in text
    assert "seed: 5" in text
    assert "cache-1" in text
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "statevla"
    assert f"torch {torch.__version__}" in text


def test_card_says_what_the_robot_is(tiny_config: Config, tmp_path: Path) -> None:
    run = save_run(tiny_config, tmp_path, BENCH, relative=("arm",))
    share(ShareArgs(str(run), str(tmp_path / "shared")))
    text = (tmp_path / "shared" / "README.md").read_text()
    for line in (
        "It acts for the robot `bench`, 10 times a second.",
        "- actions, 4 numbers:",
        "    - `arm`: pan, lift: continuous, absolute, measured by arm",
        "    - `valve`: valve: binary, 0 (off) or 1 (on), gripper",
        "    - `base`: turn: continuous, delta, -1 to 1",
        "    - trained relative to the state at the start of a chunk: `arm`; it answers absolute ones",
        "- robot state, 3 numbers:",
        "    - `arm`: pan, lift (rad)",
        "- cameras, seen upright at 32 px; how the training data have them:",
        "    - `side`: stored upright; a frame that is not square is cropped to its middle",
    ):
        assert f"\n{line}\n" in text
    assert RobotSpec.from_dict(json.loads((tmp_path / "shared" / "robot.json").read_text()), "test") == BENCH


def test_card_quotes_evaluations_by_name(run: Path, tmp_path: Path) -> None:
    errors = {"mse": 0.25, "mae": 0.4, "mse_of_mean_action": 1.0}
    measured = {"mse": 0.5, "mae_per_dim": [0.04], "policy": {"mse": 0.25, "mae_per_dim": [0.03]}}
    actions = {
        "names": ["elbow"],
        "units": ["rad"],
        "normalized": errors,
        "real": errors,
        "repeat_state": {"names": ["elbow"], "units": ["rad"], "normalized": measured, "real": measured},
        "binary": {"valve": {"accuracy": 0.9, "f1": 0.8}},
    }
    # From before robots were declared.
    earlier = {"normalized": errors, "real": errors, "gripper": {"accuracy": 0.7}}
    for name, tree in (("evaluation", actions), ("evaluation_earlier", earlier)):
        (run / name).mkdir()
        results = {"num_episodes": 3, "split": "validation", "actions": tree}
        (run / name / "evaluation.json").write_text(json.dumps(results))
    share(ShareArgs(str(run), str(tmp_path / "shared")))
    text = (tmp_path / "shared" / "README.md").read_text()
    mean = "    - the policy's normalised MSE is 75% below that of always answering the mean action (0.25 against 1)\n"
    assert text.count(mean) == 2
    assert "50% below that of repeating the present state (0.25 against 0.5); off by 0.03" in text
    assert "    - valve: accuracy 0.900, F1 of switching on 0.800\n" in text


def test_card_shows_no_result_that_was_damaged(run: Path, tmp_path: Path) -> None:
    weights = {
        "weights_sha256": weights_hash(resolve_checkpoint(run)),
        "task_suite": "own",
        "seed": 0,
        "init_states": "official",
    }
    rates = {"episodes": 20, "successes": 13, "success_rate": 0.65, "interval_95": [0.433, 0.819], "errors": 1}
    whole = json.dumps(seal({"settings": weights, "complete": True, "total": rates, "tasks": []}))
    for name, text in (("whole", whole), ("damaged", whole.replace('"successes": 13', '"successes": 19'))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(text)
    (run / "evaluation_damaged").mkdir()
    (run / "evaluation_damaged" / "evaluation.json").write_text(whole.replace("13", "19"))
    share(ShareArgs(str(run), str(tmp_path / "shared"), rollouts=(str(tmp_path / "whole"), str(tmp_path / "damaged"))))
    text = (tmp_path / "shared" / "README.md").read_text()
    assert "13/20" in text
    assert "19/20" not in text


def test_card_shows_rollouts_of_these_weights_only(run: Path, tmp_path: Path) -> None:
    own = weights_hash(resolve_checkpoint(run))
    rates = {"episodes": 20, "successes": 13, "success_rate": 0.65, "interval_95": [0.433, 0.819], "errors": 1}
    for name, weights in (("own", own), ("other", "0" * 64)):
        settings = {"weights_sha256": weights, "task_suite": name, "init_states": "official", "seed": 0}
        tree = {"settings": settings, "complete": True, "total": rates, "tasks": [{"instruction": TEXT, **rates}]}
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(tree))
    folders = (str(tmp_path / "own"), str(tmp_path / "other"))
    share(ShareArgs(str(run), str(tmp_path / "shared"), rollouts=folders))
    text = (tmp_path / "shared" / "README.md").read_text()
    assert "`own`" in text
    assert "13/20 = 65.0% (Wilson 95 %: 43.3% to 81.9%), 1 errors" in text
    assert "`other`" not in text


def write_rollouts(folder: Path, checkpoint: Path, **settings: object) -> str:
    """A results folder of `statevla rollout` with a complete summary: 13 of 20."""
    rates = {"episodes": 20, "successes": 13, "success_rate": 0.65, "interval_95": [0.433, 0.819], "errors": 0}
    told = {"weights_sha256": weights_hash(checkpoint), "task_suite": "object", "init_states": "official", "seed": 0}
    tree = {"settings": told | settings, "complete": True, "total": rates, "tasks": [{"instruction": TEXT, **rates}]}
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(tree))
    return str(folder)


def test_results_travel_with_a_copy_that_is_shared_again(run: Path, tmp_path: Path) -> None:
    """Nobody else has the results folders."""
    rollouts = write_rollouts(tmp_path / "rollouts", resolve_checkpoint(run))
    (run / "evaluation").mkdir()
    actions = {"normalized": {"mse": 0.25, "mse_of_mean_action": 1.0}, "names": ["x"], "units": [""]}
    evaluation = {"num_episodes": 3, "split": "validation", "actions": actions}
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(evaluation))
    share(ShareArgs(str(run), str(tmp_path / "first"), rollouts=(rollouts,)))
    for folder in (tmp_path / "rollouts", run / "evaluation"):
        folder.rename(tmp_path / f"gone_{folder.name}")
    share(ShareArgs(str(tmp_path / "first"), str(tmp_path / "second")))
    share(ShareArgs(str(tmp_path / "second"), str(tmp_path / "half"), half=True))
    first, second, half = ((tmp_path / name / "README.md").read_text() for name in ("first", "second", "half"))
    measured = first.partition("## Measured")[2].partition("## Surprise")[0]
    assert "13/20 = 65.0%" in measured
    assert "75% below that of always answering the mean action" in measured
    assert measured == second.partition("## Measured")[2].partition("## Surprise")[0]
    assert "13/20 = 65.0% (Wilson 95 %: 43.3% to 81.9%), 0 errors, before rounding" in half
    assert StateVLAPolicy.from_pretrained(tmp_path / "second", device="cpu").act_chunk(observation()).actions.any()


def test_results_of_an_earlier_card_travel_too(run: Path, tmp_path: Path) -> None:
    """Copies of before `measured.json` have their results in the card alone."""
    share(ShareArgs(str(run), str(tmp_path / "first")))
    card = tmp_path / "first" / "README.md"
    line = "- success in simulation, `object`: 13/20"
    text = card.read_text().replace("Nothing was measured with this checkpoint.", f"{line}\n    - every task: 1/2")
    card.write_text(text)
    assert not (tmp_path / "first" / "measured.json").exists()
    for source, target in (("first", "second"), ("second", "third")):
        share(ShareArgs(str(tmp_path / source), str(tmp_path / target)))
        text = (tmp_path / target / "README.md").read_text()
        assert "Nothing was measured" not in text
        assert f"of the copy that this one was made of:\n    {line}\n        - every task: 1/2\n" in text


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("hub/datasets--lerobot--libero/snapshots/0123", ["lerobot/libero"]),
        ("huggingface/lerobot/user/cups", ["user/cups"]),
        ("data/cups", None),
    ],
)
def test_metadata_are_the_hubs(tiny_config: Config, tmp_path: Path, place: str, expected: list[str] | None) -> None:
    """Parsed by the hub's own library, which refuses a malformed model-index."""
    hub = pytest.importorskip("huggingface_hub")
    data = tiny_config.data.model_copy(update={"path": f"/home/user/{place}"})
    run = save_run(tiny_config.model_copy(update={"data": data}), tmp_path, LIBERO)
    checkpoint = resolve_checkpoint(run)
    shown = write_rollouts(tmp_path / "a", checkpoint), write_rollouts(tmp_path / "b", checkpoint, init_states="wide")
    other = write_rollouts(tmp_path / "c", checkpoint, instructions="shuffled")
    share(ShareArgs(str(run), str(tmp_path / "cup: policy"), rollouts=(*shown, other)))
    text = (tmp_path / "cup: policy" / "README.md").read_text()
    found = hub.ModelCard(text, ignore_metadata_errors=False).data
    assert (found.license, found.library_name, found.pipeline_tag) == ("mit", "statevla", "robotics")
    assert found.datasets == expected
    assert found.model_name == "cup: policy"
    results = [(r.dataset_name, r.metric_type, r.metric_value, r.metric_args["episodes"]) for r in found.eval_results]
    assert results == [
        (f"object, {states} initial states", "success_rate", 0.65, 20) for states in ("official", "wide")
    ]
    assert found.language is None  # instructions are a file of embeddings
    assert "minilm" not in text


def test_a_card_says_english_where_the_encoder_reads_nothing_else(run: Path, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    file = resolve_checkpoint(run) / "config.json"
    config = json.loads(file.read_text())
    config["language"]["encoder"] = "minilm"
    edit(file, json.dumps(config))
    share(ShareArgs(str(run), str(tmp_path / "shared")))
    card = hub.ModelCard.load(tmp_path / "shared" / "README.md", ignore_metadata_errors=False)
    assert card.data.language == ["en"]
    assert card.data.eval_results is None


def test_card_says_how_the_copy_is_loaded(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    share(ShareArgs(str(run), "models/small"))
    text = (tmp_path / "models" / "small" / "README.md").read_text()
    assert "# small\n" in text
    assert 'load_policy("models/small")' in text
    share(ShareArgs(str(run), str(tmp_path / "elsewhere")))
    assert 'load_policy("elsewhere")' in (tmp_path / "elsewhere" / "README.md").read_text()


def test_rounded_weights_act_nearly_alike_and_say_what_they_were(run: Path, tmp_path: Path) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    share(ShareArgs(str(run), str(whole)))
    (resolve_checkpoint(run) / "alarm.json").write_text("{}")
    share(ShareArgs(str(run), str(half), half=True))
    assert not (half / "alarm.json").exists()  # thresholds of other weights
    assert (half / MODEL_FILE).stat().st_size < 0.7 * (whole / MODEL_FILE).stat().st_size
    version = json.loads((half / "version.json").read_text())
    assert version["rounded_from_sha256"] == weights_hash(whole) != weights_hash(half)
    chunks = [StateVLAPolicy.from_pretrained(p, device="cpu").act_chunk(observation()).actions for p in (whole, half)]
    np.testing.assert_allclose(chunks[0], chunks[1], atol=0.02)
    assert not np.array_equal(chunks[0], chunks[1])
    (tmp_path / "rollouts").mkdir()
    rates = {"episodes": 4, "successes": 4, "success_rate": 1.0, "interval_95": [0.5, 1.0], "errors": 0}
    settings = {"weights_sha256": weights_hash(whole), "task_suite": "s", "init_states": "official", "seed": 0}
    tree = {"settings": settings, "complete": True, "total": rates, "tasks": []}
    (tmp_path / "rollouts" / "summary.json").write_text(json.dumps(tree))
    share(ShareArgs(str(half), str(tmp_path / "again"), rollouts=(str(tmp_path / "rollouts"),)))
    text = (tmp_path / "again" / "README.md").read_text()
    assert "0 errors, before rounding" in text
    assert "seed: 5" in text  # of the run, which the copies carry along


def test_a_folder_in_use_and_damage_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="empty folder"):
        share(ShareArgs(str(run), str(tmp_path / "full")))
    with pytest.raises(UserError, match="--push"):
        share(ShareArgs(str(run), str(tmp_path / "new"), private=True))
    path = resolve_checkpoint(run) / MODEL_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        share(ShareArgs(str(run), str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


def test_a_damaged_robot_is_found_before_anything_is_copied(run: Path, tmp_path: Path) -> None:
    edit(resolve_checkpoint(run) / "robot.json", '{"name": "arm"}')
    with pytest.raises(UserError, match=r"robot\.json: control_freq_hz: field required"):
        share(ShareArgs(str(run), str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


# What may come from anywhere ------------------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("the user's own")
    return tmp_path / "secret"


@pytest.mark.parametrize("name", ["notes.txt", "config.json", "run.json", "alarm.json"])
def test_links_out_of_a_checkpoint_are_refused(run: Path, tmp_path: Path, secret: Path, name: str) -> None:
    link = resolve_checkpoint(run) / name
    link.unlink(missing_ok=True)
    link.symlink_to(secret)
    with pytest.raises(UserError, match=rf"{name}: expected a file of its own folder, got a link to .*secret; remove"):
        share(ShareArgs(str(run), str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


def test_a_link_beside_a_checkpoint_is_refused_too(run: Path, tmp_path: Path, secret: Path) -> None:
    (run / "run.json").unlink()
    (run / "run.json").symlink_to(secret)
    with pytest.raises(UserError, match=r"got a link to .*secret"):
        share(ShareArgs(str(run), str(tmp_path / "new")))


def test_links_within_a_checkpoint_and_the_hubs_cache_are_followed(run: Path, tmp_path: Path) -> None:
    best = resolve_checkpoint(run)
    (best / "again.json").symlink_to("metrics.json")
    commit = tmp_path / "hub" / "models--owner--policy" / "snapshots" / "0123"
    blobs = commit.parent.parent / "blobs"
    blobs.mkdir(parents=True)
    share(ShareArgs(str(run), str(commit)))
    for number, file in enumerate(sorted(commit.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(f"../../blobs/{number}")
    share(ShareArgs(str(commit), str(tmp_path / "copy")))
    copied = list((tmp_path / "copy").iterdir())
    assert len(copied) == len(list(commit.iterdir()))
    assert not any(file.is_symlink() for file in copied)
    # A folder that only looks like the cache links where it likes.
    (commit / "notes.txt").symlink_to(tmp_path / "sentences.npz")
    with pytest.raises(UserError, match="got a link to"):
        share(ShareArgs(str(commit), str(tmp_path / "other")))


@pytest.mark.parametrize("name", ["secret", "secret.npz", "other.npz"])
def test_the_configuration_cannot_name_any_file_to_be_shared(
    run: Path, tmp_path: Path, secret: Path, name: str
) -> None:
    """The text of a secret, under two names, and embeddings of something else."""
    secret.with_suffix(".npz").write_text(secret.read_text())
    np.savez(tmp_path / "other.npz", **{TEXT: np.zeros(16, np.float32)})
    file = resolve_checkpoint(run) / "config.json"
    config = json.loads(file.read_text())
    config["language"]["encoder"] = str(tmp_path / name)
    edit(file, json.dumps(config))
    if name == "secret":
        share(ShareArgs(str(run), str(tmp_path / "new")))
        assert not (tmp_path / "new" / name).exists()
        return
    with pytest.raises(UserError, match=r"not readable|has the fingerprint .*, the checkpoint was trained with"):
        share(ShareArgs(str(run), str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


def test_a_policy_made_from_parts_has_nothing_to_share(run: Path, tmp_path: Path) -> None:
    policy = StateVLAPolicy.from_pretrained(run, device="cpu")
    made = StateVLAPolicy(policy.model, policy.transform, policy.language, ActingOptions(device="cpu"))
    with pytest.raises(UserError, match="from_pretrained"):
        made.save_pretrained(tmp_path / "new")


# The hub --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [("owner/policy-1.0", True), ("/owner/policy", False), ("owner", False), ("a/b/c", False), ("./a/b", False)],
)
def test_names_of_the_hub(name: str, expected: bool) -> None:
    assert is_repo_id(name) is expected
    assert not is_repo_id(Path(name))


def test_a_folder_here_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    assert not is_repo_id("owner/policy")
    with pytest.raises(UserError, match="empty or absent"):
        resolve_checkpoint("owner/policy")


def test_a_repository_in_the_hubs_cache_is_a_checkpoint(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own cache layout, so that its own code finds the files without a network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--owner--policy"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    share(ShareArgs(str(run), str(repository / "snapshots" / commit)))
    policy = StateVLAPolicy.from_pretrained("owner/policy", device="cpu")
    assert policy.act_chunk(observation()).actions.shape == (4, 7)
    with pytest.raises(UserError, match="owner/absent: no such folder here, and not from the hub"):
        resolve_checkpoint("owner/absent")


def test_upload_without_a_hub_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="owner/policy: not uploaded"):
        share(ShareArgs(str(run), "owner/policy", push=True))
