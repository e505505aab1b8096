"""Diagnostics go by what a robot declares: names, units, what measures what, and roles that may be missing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robot_files import BENCH, write_bench_file
from statevla.checkpoints.comparisons import comparisons
from statevla.commands.calibrate import CalibrateArgs, calibrate
from statevla.commands.eval import EvalArgs, offline
from statevla.config import Config, ModelConfig, config_from_dict
from statevla.data import CachedEpisode, compute_statistics, open_frame_cache, split_episodes
from statevla.diagnostics.actions import ChunkSamples, action_metrics
from statevla.diagnostics.object_surprise import NO_POSES
from statevla.diagnostics.offline import evaluate, open_subject
from statevla.diagnostics.plots import draw_all
from statevla.diagnostics.probes import missing_roles, probe_targets
from statevla.diagnostics.tables import result_tables
from statevla.errors import UserError
from statevla.robots import KNOWN_ROBOTS, LIBERO, ActionGroup, RobotSpec, StateField
from statevla.training.run import train
from statevla.transforms import Transform

ALOHA, UNITREE_G1 = KNOWN_ROBOTS["aloha"], KNOWN_ROBOTS["unitree_g1"]


@pytest.fixture(scope="module")
def config(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The tiny model for a robot that only its file declares; its joints are answered relative to where they are."""
    folder = tmp_path_factory.mktemp("bench")
    write_bench_file(folder / "data" / "turn_demo.hdf5")
    np.savez(folder / "language.npz", **{"turn the handle": np.ones(16, np.float32)})
    tree = tiny_config.model_dump(mode="json")
    tree["model"] |= {"action_dim": "auto", "robot_state_dim": "auto", "cameras": "auto"}
    tree["data"] |= {"path": str(folder / "data"), "cache_dir": str(folder / "cache"), "relative_actions": "all"}
    tree["language"]["encoder"] = str(folder / "language.npz")
    tree["training"]["phase1"]["loss"]["keyframe_weight"] = 1.0
    tree["output_dir"] = str(folder / "runs")
    return config_from_dict(tree, "test")


@pytest.fixture(scope="module")
def run(config: Config) -> Path:
    return train(config, "2", train(config, "1"))


def bare_subject(robot: RobotSpec, states: dict[str, np.ndarray], actions: np.ndarray, **statistics: Any) -> Any:
    """As much of a subject as `action_metrics` looks at: frames with these states, of which the policy sees all."""
    state = robot.policy_state(states, "test")
    cache = SimpleNamespace(robot=robot, robot_states=states, robot_state=state)
    transform = Transform(ModelConfig(), compute_statistics(actions, state, **statistics), robot)
    return SimpleNamespace(robot=robot, cache=cache, transform=transform)


def bench_subject(relative: bool) -> tuple[Any, torch.Tensor, np.ndarray]:
    """A subject, chunks of its 20 frames in the robot's units, `[20, 5, 4]`, and the arm's state, `[20, 2]`."""
    rng = np.random.default_rng(0)
    states = {"arm": rng.normal(size=(20, 2)), "base": rng.normal(size=(20, 1))}
    states = {name: values.astype(np.float32) for name, values in states.items()}
    chunks = rng.normal(size=(20, 5, 4)).astype(np.float32) * [1.0, 3.0, 1.0, 0.2]
    chunks[..., 2] = chunks[..., 2] > 0
    targets = chunks.copy()
    targets[..., :2] -= states["arm"][:, None]
    more = {"relative_actions": ("arm",), "targets": targets.reshape(-1, 4)} if relative else {}
    subject = bare_subject(BENCH, states, chunks.reshape(-1, 4), **more)
    return subject, torch.from_numpy(chunks.astype(np.float32)), states["arm"]


@pytest.mark.parametrize("relative", [False, True])
def test_errors_and_baselines_by_hand(relative: bool) -> None:
    subject, chunks, arm = bench_subject(relative)
    start = torch.from_numpy(subject.cache.robot_state)
    truth = subject.transform.chunks_to_targets(chunks, start).numpy()
    off = np.array([0.1, -0.2, 0.0, 0.05], np.float32)
    sampled = subject.transform.chunks_to_targets(chunks + torch.from_numpy(off), start).numpy()[None]
    sampled[..., 2] = truth[..., 2]
    valid = np.ones((20, 5), bool)
    valid[:4, 3:] = False
    samples = ChunkSamples(truth, sampled, valid, np.arange(20), BENCH.action_names)
    metrics = action_metrics(samples, subject)
    assert (metrics["names"], metrics["units"]) == (["pan", "lift", "turn"], ["rad", "rad", ""])
    statistics = subject.transform.statistics
    scale = (statistics.targets or statistics.actions).std[[0, 1, 3]]
    assert metrics["real"]["mae_per_dim"] == pytest.approx([0.1, 0.2, 0.05], rel=1e-4)
    assert metrics["normalized"]["mae_per_dim"] == pytest.approx(np.array([0.1, 0.2, 0.05]) / scale, rel=1e-4)
    assert metrics["binary"]["valve"]["accuracy"] == 1.0

    still = metrics["repeat_state"]
    assert (still["names"], still["units"]) == (["pan", "lift"], ["rad", "rad"])
    sums, by_step, count = np.zeros(2), np.zeros((5, 2)), np.zeros(5)
    for frame in range(20):
        for step in range(5):
            if valid[frame, step]:
                error = np.abs(arm[frame] - chunks[frame, step, :2].numpy())
                sums += error
                by_step[step] += error
                count[step] += 1
    assert still["real"]["mae_per_dim"] == pytest.approx(sums / valid.sum(), rel=1e-4)
    assert still["real"]["mae"] == pytest.approx(sums.mean() / valid.sum(), rel=1e-4)
    assert still["real"]["mae_per_step"] == pytest.approx((by_step / count[:, None]).mean(1), rel=1e-4)
    assert still["normalized"]["mae_per_dim"] == pytest.approx(sums / valid.sum() / scale[:2], rel=1e-4)
    assert still["real"]["policy"]["mae_per_dim"] == pytest.approx([0.1, 0.2], rel=1e-4)
    assert still["normalized"]["policy"]["mse"] == pytest.approx(np.mean((off[:2] / scale[:2]) ** 2), rel=1e-3)

    mean = statistics.actions.mean
    errors = np.abs(mean[[0, 1, 3]] - chunks.numpy()[..., [0, 1, 3]])[valid]
    assert metrics["real"]["mse_of_mean_action"] == pytest.approx((errors**2).mean(), rel=1e-4)
    assert metrics["normalized"]["mse_of_mean_action"] == pytest.approx(((errors / scale) ** 2).mean(), rel=1e-4)


def test_sentences_say_by_how_much_the_policy_is_better_or_worse() -> None:
    subject, chunks, _ = bench_subject(relative=False)
    truth = subject.transform.chunks_to_targets(chunks, torch.from_numpy(subject.cache.robot_state)).numpy()
    for off, verdict in ((0.5, "83% below"), (3.0, "6 times")):
        sampled = truth.copy()[None]
        sampled[..., [0, 1, 3]] += off
        samples = ChunkSamples(truth, sampled, np.ones((20, 5), bool), np.arange(20), BENCH.action_names)
        metrics = action_metrics(samples, subject)
        metrics["normalized"]["mse_of_mean_action"] = 1.5
        mean, state = comparisons(metrics)
        assert mean.startswith(f"the policy's normalised MSE is {verdict} that of always answering the mean action (")
        assert "that of repeating the present state, 2 of 3 numbers (" in state
        own, other = (np.mean(part["mae_per_dim"]) for part in _real(metrics))
        assert state.endswith(f"; off by {own:.4g} against {other:.4g} on average (rad)")


def _real(metrics: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    still = metrics["repeat_state"]["real"]
    return still["policy"], still


def test_robots_of_one_kind_of_numbers_only() -> None:
    rng = np.random.default_rng(0)
    states = {"arm": rng.normal(size=(10, 2)).astype(np.float32)}
    field = StateField(name="arm", dims=("pan", "lift"))
    switches = ActionGroup(name="switches", dims=("a", "b"), kind="binary", values=(0, 1))
    arm = ActionGroup(name="arm", dims=("pan", "lift"), state="arm")
    for group, has in (
        (switches, {"binary"}),
        (arm, {"names", "units", "normalized", "real", "spread", "repeat_state"}),
    ):
        robot = RobotSpec(name="some", control_freq_hz=10, actions=(group,), state=(field,))
        subject = bare_subject(robot, states, rng.integers(0, 2, (10, 2)).astype(np.float32))
        truth = np.sign(rng.normal(size=(10, 3, 2))).astype(np.float32)
        samples = ChunkSamples(truth, truth[None], np.ones((10, 3), bool), np.arange(10), robot.action_names)
        metrics = action_metrics(samples, subject)
        assert metrics.keys() == {"num_samples", "num_seeds", *has}
        results = {"actions": metrics, "checkpoint": "x", "num_episodes": 1, "split": "train"}
        assert len(comparisons(metrics)) == (2 if "real" in has else 0)
        (table,) = result_tables(results)
        assert table.row_count == (5 if "real" in has else 0)
        assert (table.caption or "").count("accuracy 1.000") == (2 if "binary" in has else 0)


def test_evaluation_of_a_declared_robot(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offline(EvalArgs(str(run), out=str(tmp_path), max_samples=40, device="cpu"))
    results = json.loads((tmp_path / "evaluation.json").read_text())
    actions, printed = results["actions"], capsys.readouterr().out
    assert actions["names"] == ["pan", "lift", "turn"]
    assert actions["binary"].keys() == {"valve"}
    assert actions["repeat_state"]["names"] == ["pan", "lift"]
    for text in ("pan (rad)", "lift (rad)", "valve: accuracy", "repeating the present state, 2 of 3 numbers ("):
        assert text in printed
    assert RobotSpec.from_dict(results["robot"], "test") == BENCH
    # What needs a role that nobody has is left out, and says so.
    hand, gripper = missing_roles(BENCH).values()
    assert results["notes"] == [hand, gripper, NO_POSES]
    assert "no state field of the role hand_position: nothing is measured of where the hand is" in hand
    assert "no state field of the role gripper_opening: there is no probe of the gripper's width" in gripper
    assert hand in printed
    assert results["probes"].keys() == {"next_keyframe_state", "progress"}
    assert "goals" not in results
    assert (tmp_path / "chunks.png").stat().st_size > 5_000


def test_the_next_keyframe_is_a_state_where_no_hand_is_declared(run: Path) -> None:
    subject = open_subject(run, None, "cpu").subject
    episode = subject.cache.episodes[1]
    frames = np.arange(episode.start, episode.stop)
    targets = probe_targets(subject, frames)
    valve = subject.cache.actions[frames, 2]
    opens = int(np.flatnonzero(valve)[0])
    states = subject.transform.normalize_robot_state(torch.from_numpy(subject.cache.robot_state)).numpy()
    np.testing.assert_allclose(targets["next_keyframe_state"][:opens], np.tile(states[frames[opens]], (opens, 1)))
    assert {"end_effector", "next_keyframe", "gripper_width"}.isdisjoint(targets)


def test_calibration_sees_named_states(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate(CalibrateArgs(str(run), alpha=0.4))
    assert "2 held-out episodes" in capsys.readouterr().out


def test_data_of_another_robot_are_refused_before_a_cache_is_built(run: Path, config: Config, libero_dir: Path) -> None:
    before = sorted(Path(config.data.cache_dir).iterdir())
    words = r"of another robot than the data; action groups: .*valve.*against hand"
    with pytest.raises(UserError, match=words) as error:
        evaluate(run, data=str(libero_dir), probes=False, device="cpu")
    assert "\n" not in str(error.value)
    assert sorted(Path(config.data.cache_dir).iterdir()) == before


def fake_subject(robot: RobotSpec, states: dict[str, np.ndarray]) -> Any:
    count = len(next(iter(states.values())))
    cache = SimpleNamespace(
        robot=robot,
        robot_states=states,
        robot_state=robot.policy_state(states, "test"),
        actions=np.zeros((count, robot.action_dim), np.float32),
        episodes=[CachedEpisode("e", "t", 0, 0, count)],
        object_poses=None,
    )
    transform = SimpleNamespace(normalize_robot_state=lambda states: states)
    return SimpleNamespace(cache=cache, transform=transform, robot=robot)


def test_gripper_widths_go_by_role() -> None:
    rng = np.random.default_rng(0)
    for robot, names in (
        (LIBERO, {"gripper_width": "finger_positions"}),
        (ALOHA, {f"gripper_width_{side}_gripper": f"{side}_gripper" for side in ("left", "right")}),
        (UNITREE_G1, {}),
    ):
        states = {field.name: rng.normal(size=(5, field.size)).astype(np.float32) for field in robot.state}
        found = probe_targets(fake_subject(robot, states), np.arange(5))
        assert {name for name in found if name.startswith("gripper_width")} == names.keys()
        for name, field in names.items():
            opening = states[field].astype(np.float64)
            # Two fingers: how far apart they are; one number: itself.
            expected = opening if robot is ALOHA else opening[:, :1] - opening[:, 1:]
            np.testing.assert_array_equal(found[name], expected)


def test_pictures_of_26_numbers_stay_legible(tmp_path: Path) -> None:
    """A page is about 1,000 pixels wide: pictures grow downwards, and every number has a panel or a bar of its own."""
    rng, count = np.random.default_rng(0), UNITREE_G1.action_dim
    truth = rng.normal(size=(6, 16, count)).astype(np.float32)
    samples = ChunkSamples(truth, truth[None], np.ones((6, 16), bool), np.arange(6), UNITREE_G1.action_names)
    states = {field.name: rng.normal(size=(6, field.size)).astype(np.float32) for field in UNITREE_G1.state}
    subject = bare_subject(UNITREE_G1, states, truth.reshape(-1, count))
    draw_all({"actions": action_metrics(samples, subject)}, samples, tmp_path)
    sizes = {}
    for name, least in (("chunks", 7 * 100), ("action_errors", count * 20)):
        with Image.open(tmp_path / f"{name}.png") as picture:
            sizes[name] = picture.size
        assert sizes[name][0] <= 1_200
        assert sizes[name][1] >= least


def test_episodes_of_a_declared_robot_are_split_like_any(config: Config) -> None:
    cache = open_frame_cache(config, progress=False)
    assert cache.cameras == ("side",)
    assert [len(part) for part in split_episodes(cache, 0.7, 0)] == [4, 2]
