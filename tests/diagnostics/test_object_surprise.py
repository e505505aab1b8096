"""A moved object surprises an encoder that sees it, and only it; `statevla probe` writes what it found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from libero_files import smooth_episode, write_official_file
from statevla.commands.probe import ProbeArgs, choose_exchange, probe
from statevla.config import Config
from statevla.diagnostics.object_surprise import NO_PAIRS, NO_POSES, measure_object_surprise
from statevla.diagnostics.offline import measure_state
from statevla.diagnostics.probes import beats_baselines
from statevla.diagnostics.sequences import Subject, encode_frames
from statevla.errors import UserError
from statevla.training.run import train
from statevla.training.setup import prepare

PLACES = ((0.10, 0.08), (-0.12, -0.06))
SIZE = 64


def still_object_episode(seed: int, place: tuple[float, float]) -> dict:
    """The same slow arm in every episode; the object lies at `place` and both cameras see it."""
    episode = smooth_episode(np.random.default_rng(0), 24, SIZE, (0, 0, 250))
    objects = np.tile([*place, 0.0, 1.0, 0, 0, 0], (24, 1))
    objects[:, :2] += np.random.default_rng(seed).normal(scale=0.002, size=2)
    row, column = ((0.5 + np.array(place)) * SIZE).astype(int)
    images = np.full_like(episode["images"], 60)
    images[:, :, row - 6 : row + 6, column - 6 : column + 6] = (250, 250, 0)
    return episode | {"object_states": objects, "images": images}


@pytest.fixture(scope="module")
def config(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("objects")
    episodes = [still_object_episode(seed, PLACES[seed % 2]) for seed in range(8)]
    write_official_file(folder / "pick_up_the_red_block_demo.hdf5", "pick up the red block", episodes)
    data = tiny_config.data.model_copy(update={"path": str(folder)})
    return tiny_config.model_copy(update={"data": data, "output_dir": str(folder / "runs")})


@pytest.fixture
def subject(config: Config) -> Subject:
    """A random encoder, and a predictor that expects nothing to change: right here, as only the arm moves."""
    subject = prepare(config, "1").subject
    with torch.no_grad():
        subject.model.state_encoder.predictor.delta[-1].weight.zero_()
        subject.model.state_encoder.predictor.delta[-1].bias.zero_()
    return subject


def test_a_moved_object_surprises_and_a_repeated_frame_does_not(subject: Subject) -> None:
    found = measure_object_surprise(subject, [0, 1, 2, 3])
    assert found["source"] == "other episodes"
    assert found["num_pairs"] == 4 * 23
    assert found["repeated_ratio"] == pytest.approx(1.0, rel=1e-3)
    assert found["moved_ratio"] > 2 * found["unmoved_ratio"]
    assert found["moved_more"] > 0.9
    assert found["p_value"] < 1e-6
    # The control's arm is no nearer than that of the moved picture.
    assert found["details"]["arm_off_unmoved_std"] >= found["details"]["arm_off_moved_std"]


def test_stand_ins_with_another_arm_are_refused(subject: Subject) -> None:
    # The arm of every episode now stands somewhere else: whatever surprised would be the arm.
    for number, episode in enumerate(subject.cache.episodes):
        subject.cache.robot_state[episode.start : episode.stop] += 5.0 * number
    assert measure_object_surprise(subject, [0, 1, 2, 3]) == {}
    assert measure_state(subject, [0, 1, 2, 3], [4, 5], [4, 5], thorough=False)["notes"] == [NO_PAIRS]


def test_an_encoder_that_does_not_look_is_not_surprised(subject: Subject) -> None:
    with torch.no_grad():
        for parameter in subject.model.state_encoder.tokenizer.stems.parameters():
            parameter.zero_()
        subject.model.state_encoder.target.load_state_dict(subject.model.state_encoder.encoder.state_dict())
    found = measure_object_surprise(subject, [0, 1, 2, 3])
    assert found["moved_ratio"] == pytest.approx(found["unmoved_ratio"])
    assert found["p_value"] > 0.5


def test_given_pictures_are_encoded_in_place_of_the_frames(subject: Subject) -> None:
    frames, other = torch.tensor([0, 5]), torch.tensor([24, 29])
    own = encode_frames(subject, frames)
    given = encode_frames(subject, frames, pictures=subject.cache.frames(other))
    torch.testing.assert_close(given, encode_frames(subject, frames, images_from=other))
    assert not torch.allclose(given, own)


def test_data_without_object_poses_skips_with_one_line(subject: Subject) -> None:
    subject.cache.object_poses = None
    found = measure_state(subject, [0, 1, 2, 3], [4, 5], [4, 5], thorough=False)
    assert found["notes"] == [NO_POSES]
    assert "object_surprise" not in found
    assert {"end_effector", "gripper_width", "progress"} <= found["probes"].keys()
    assert not {"target_object", "object_from_hand"} & found["probes"].keys()
    assert measure_object_surprise(subject, [0, 1]) == {}


def test_beating_the_baselines_means_all_of_them() -> None:
    scores = {"ridge": 0.5, "mlp": 0.7, "robot_state": 0.6, "episode_mean": 0.1}
    assert beats_baselines(scores)
    assert not beats_baselines({**scores, "random_encoder_mlp": 0.75})


def test_training_and_the_command_write_what_was_found(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(config, "1", overwrite=True)
    quick = json.loads((run / "probe.json").read_text())
    assert {"ridge", "robot_state", "episode_mean", "random_encoder"} == quick["probes"]["end_effector"].keys()
    assert "copy_skill_1" in quick["world_model"]
    assert (run / "probes.png").exists()

    probe(ProbeArgs(str(run), out=tmp_path / "out", simulator="off", device="cpu"))
    results = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert results["num_episodes"] == 2
    assert {"ridge", "mlp", "robot_state_mlp", "random_encoder_mlp"} <= results["probes"]["target_object"].keys()
    assert results["object_surprise"]["source"] == "other episodes"
    for picture in ("world_model", "probes", "object_surprise"):
        assert (tmp_path / "out" / f"{picture}.png").stat().st_size > 5_000
    printed = capsys.readouterr().out
    assert "surprise at a moved object" in printed
    assert "probe.json" in printed


def test_without_a_simulator_other_episodes_stand_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # None in sys.modules makes the import fail, as it does where MuJoCo is absent.
    monkeypatch.setitem(sys.modules, "statevla.worlds.libero.moved_objects", None)
    assert choose_exchange("auto") is None
    assert "pictures of other episodes stand in" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--simulator on: .*; pip install"):
        choose_exchange("on")


def test_behaviour_cloning_has_no_world_model(config: Config, tmp_path: Path) -> None:
    run = train(replace_output(config, tmp_path), "bc")
    with pytest.raises(UserError, match="trains no world model; give a run of phase 1 or 2"):
        probe(ProbeArgs(str(run), out=tmp_path / "out", device="cpu"))


def test_nothing_held_out_is_said_and_not_measured(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = config.data.model_copy(update={"train_split": 1.0})
    run = train(replace_output(config, tmp_path).model_copy(update={"data": data}), "1")
    assert "probes: skipped, no episodes are held out" in capsys.readouterr().out
    assert not (run / "probe.json").exists()
    with pytest.raises(UserError, match="no held-out episodes; train with data"):
        probe(ProbeArgs(str(run), out=tmp_path / "out", device="cpu"))


def replace_output(config: Config, folder: Path) -> Config:
    return config.model_copy(update={"output_dir": str(folder)})
