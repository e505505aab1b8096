"""What the model sees: orientation, size, normalisation, and that live frames equal cached ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robot_files import BENCH, bench_config
from statevla.config import AugmentationConfig, ModelConfig, config_from_dict
from statevla.data import open_frame_cache, open_reader
from statevla.data.pixels import frames_to_float, num_draws
from statevla.errors import UserError
from statevla.robots import LIBERO, LIBERO_HAND, Camera, ImageOrientation, RobotSpec
from statevla.transforms import (
    STD_FLOOR,
    FieldStatistics,
    Statistics,
    Transform,
    from_upright,
    pixel_table,
    planes_to_upright,
    resize_frames,
    square_planes,
    to_upright,
)
from statevla.types import Observation


def make_statistics(seed: int = 0, robot: RobotSpec = LIBERO, normalization: str = "mean_std") -> Statistics:
    rng = np.random.default_rng(seed)
    actions = rng.normal(0.1, 0.3, (200, robot.action_dim))
    actions[:, robot.is_binary] = np.sign(actions[:, robot.is_binary])
    state = FieldStatistics.of(rng.normal(1, 2, (200, robot.state_dim)))
    return Statistics(FieldStatistics.of(actions), state, normalization)


@pytest.fixture
def model() -> ModelConfig:
    return ModelConfig(image_size=32)


def observation(size: int = 32, **changes: object) -> Observation:
    rng = np.random.default_rng(0)
    frames = {c: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for c in ("agentview", "eye_in_hand")}
    state = LIBERO.named_state(rng.normal(size=9), "test")
    fields = {"images": frames, "robot_state": state, "instruction": "pick"}
    return Observation(**(fields | changes))


@pytest.mark.parametrize("orientation", list(ImageOrientation))
def test_orientations(orientation: ImageOrientation) -> None:
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    upright = to_upright(picture, orientation)
    corners = {"upright": (0, 0), "flipped_vertically": (1, 0), "rotated_180": (1, 2), "mirrored": (0, 2)}
    corner = corners[orientation.value]
    np.testing.assert_array_equal(upright[0, 0], picture[corner])
    np.testing.assert_array_equal(from_upright(upright, orientation), picture)
    planes = torch.from_numpy(picture).permute(2, 0, 1)
    np.testing.assert_array_equal(planes_to_upright(planes, orientation).permute(1, 2, 0), upright)


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(4, 40), st.integers(4, 40), st.just(3))),
    st.sampled_from([8, 16, 23]),
    st.sampled_from(["pad", "crop", "stretch"]),
)
def test_resizing_is_the_same_for_one_frame_and_many(frames: np.ndarray, size: int, fit: str) -> None:
    together = resize_frames(frames, size, fit)
    assert together.shape == (len(frames), size, size, 3)
    assert together.dtype == np.uint8
    for index in range(len(frames)):
        np.testing.assert_array_equal(resize_frames(frames[index : index + 1], size, fit)[0], together[index])
    # Averaging cannot leave the range; bars are black.
    has_bars = fit == "pad" and frames.shape[1] != frames.shape[2]
    assert together.min() >= (0 if has_bars else frames.min())
    assert together.max() <= frames.max()


def test_resizing_antialiases_and_keeps_the_right_size() -> None:
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    inner = resize_frames(stripes, 16)[:, 2:-2, 2:-2]
    assert np.abs(inner.astype(int) - 127).max() <= 2
    same = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_frames(same, 16), same)


def test_live_frames_equal_cached_frames(libero_dir: Path, tmp_path: Path, model: ModelConfig) -> None:
    tree = {
        "model": {"image_size": 32, "stem": {"kind": "patch", "patch_size": 8}},
        "data": {"path": str(libero_dir), "cache_dir": str(tmp_path)},
    }
    cache = open_frame_cache(config_from_dict(tree, "test"), progress=False)
    transform = Transform(model, cache.statistics(range(9)), cache.robot)
    with open_reader(libero_dir) as reader:
        arrays, robot = reader.read(0), reader.robot
    live = [
        Observation(
            images={c: to_upright(frames[t], robot.camera(c).orientation) for c, frames in arrays.images.items()},
            robot_state={name: values[t] for name, values in arrays.robot_states.items()},
            instruction="x",
        )
        for t in range(5)
    ]
    given = transform.observation_to_model_input(live, torch.zeros(5, 4))
    frames = cache.frames(torch.arange(5))
    assert torch.equal(given.images, transform.images_to_float(frames))
    # The trainer's fused path, frame by frame of the same window.
    assert torch.equal(given.images, frames_to_float(frames[None])[0])
    assert torch.equal(transform.raw_state(live), torch.from_numpy(cache.robot_state[:5]))
    parts = [cache.robot_states[name][:5] for name in ("joint_positions", "finger_positions")]
    states = torch.from_numpy(np.concatenate(parts, axis=1))
    assert torch.equal(given.robot_state, transform.normalize_robot_state(states))


def test_images_to_float(model: ModelConfig) -> None:
    transform = Transform(model, make_statistics(), LIBERO)
    images = torch.randint(0, 256, (2, 3, 2, 8, 8, 3), dtype=torch.uint8)
    floats = transform.images_to_float(images)
    assert floats.shape == (2, 3, 2, 3, 8, 8)
    assert torch.equal(floats, images.movedim(-1, -3).float() / 127.5 - 1)
    assert float(pixel_table()[0]) == -1
    assert float(pixel_table()[255]) == 1
    with pytest.raises(UserError, match="expected uint8"):
        transform.images_to_float(images.float())


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["mean_std", "quantile"]),
    hnp.arrays(np.float32, (5, 7), elements=st.floats(-1, 1, width=32)),
    st.integers(0, 20),
)
def test_actions_survive_the_round_trip(normalization: str, actions: np.ndarray, seed: int) -> None:
    transform = Transform(ModelConfig(image_size=32), make_statistics(seed, normalization=normalization), LIBERO)
    raw = torch.from_numpy(actions)
    normal = transform.normalize_actions(raw)
    # Nothing is relative: the state does not matter, and targets are normalised actions.
    state = torch.full((9,), float("nan"))
    assert torch.equal(transform.chunks_to_targets(raw, state), normal)
    torch.testing.assert_close(transform.targets_to_chunks(normal, state), raw, atol=2e-6, rtol=0)
    assert torch.equal(normal[:, -1], raw[:, -1])  # the gripper is left alone


def test_normalised_training_actions_are_standard(model: ModelConfig) -> None:
    rng = np.random.default_rng(0)
    actions = rng.normal(0.2, 0.4, (5000, 7)).astype(np.float32)
    measured, state = FieldStatistics.of(actions), make_statistics().robot_state
    by_std = Transform(model, Statistics(measured, state), LIBERO).normalize_actions(torch.from_numpy(actions))[:, :6]
    torch.testing.assert_close(by_std.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(by_std.std(0), torch.ones(6), atol=1e-3, rtol=0)
    quantile = Transform(model, Statistics(measured, state, "quantile"), LIBERO)
    by_quantile = quantile.normalize_actions(torch.from_numpy(actions))[:, :6]
    inside = (by_quantile.abs() <= 1).float().mean(0)
    torch.testing.assert_close(inside, torch.full((6,), 0.98), atol=2e-3, rtol=0)


def test_dims_that_never_move_stay_small(model: ModelConfig) -> None:
    actions = np.zeros((50, 7), np.float32)
    for normalization in ("mean_std", "quantile"):
        statistics = Statistics(FieldStatistics.of(actions), make_statistics().robot_state, normalization)
        transform = Transform(model, statistics, LIBERO)
        nudge = transform.normalize_actions(torch.full((1, 7), 1e-4))
        assert float(nudge[:, :6].abs().max()) <= 1e-4 / STD_FLOOR * 1.01


def test_normalization_travels_with_the_statistics(model: ModelConfig) -> None:
    statistics = make_statistics(normalization="quantile")
    again = Statistics.from_dict(json.loads(json.dumps(statistics.to_dict())))
    assert again.action_normalization == "quantile"
    assert (again.relative_actions, again.targets) == ((), None)
    actions = torch.randn(4, 7)
    expected = Transform(model, statistics, LIBERO).normalize_actions(actions)
    assert torch.equal(Transform(model, again, LIBERO).normalize_actions(actions), expected)
    assert not torch.equal(Transform(model, make_statistics(), LIBERO).normalize_actions(actions), expected)
    np.testing.assert_array_equal(again.actions.q99, statistics.actions.q99)


@pytest.mark.parametrize("damage", ["no_actions", "no_mean", "no_relative", "lengths", "normalization", "list"])
def test_malformed_statistics(damage: str) -> None:
    tree: dict = make_statistics().to_dict()
    if damage == "no_actions":
        del tree["actions"]
    elif damage == "no_mean":
        del tree["actions"]["mean"]
    elif damage == "no_relative":
        del tree["relative_actions"]
    elif damage == "lengths":
        tree["actions"]["std"] = [1.0]
    elif damage == "normalization":
        tree["action_normalization"] = "log"
    else:
        tree["robot_state"] = []
    with pytest.raises(UserError, match=r"^statistics here\.json"):
        Statistics.from_dict(tree, "here.json")


def refused(words: str, call: Callable[[], object]) -> None:
    """`call` ends in one line that says `words`."""
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_misfits_are_refused(model: ModelConfig) -> None:
    statistics = make_statistics()
    words = r"statistics: robot_state have 9 numbers, robot 'libero_hand' has 8; use those of the same data"
    refused(words, lambda: Transform(model, statistics, LIBERO_HAND))
    six = LIBERO.model_copy(update={"name": "six", "actions": LIBERO.actions[:1]})
    refused(r"statistics: actions have 7 numbers, robot 'six' has 6", lambda: Transform(model, statistics, six))
    short = replace(statistics, targets=make_statistics(robot=six).actions)
    refused(r"statistics: targets have 6 numbers, robot 'libero' has 7", lambda: Transform(model, short, LIBERO))
    other = replace(statistics, action_normalization="log")
    refused("expected mean_std or quantile", lambda: Transform(model, other, LIBERO))

    transform = Transform(model, statistics, LIBERO)

    def see(**changes: object) -> object:
        return transform.observation_to_model_input([observation(**changes)], torch.zeros(1, 4))

    whole = observation()
    one_camera = {"agentview": whole.images["agentview"]}
    words = r"observation: no camera 'eye_in_hand', it has agentview; robot 'libero' sends agentview, eye_in_hand"
    refused(words, lambda: see(images=one_camera))
    refused(r"no camera 'agentview', it has none", lambda: see(images={}))
    joints = whole.robot_state["joint_positions"]
    words = (
        r"observation: no state field 'finger_positions', it has joint_positions; robot 'libero' declares "
        r"joint_positions \(7\), finger_positions \(2\)"
    )
    refused(words, lambda: see(robot_state={"joint_positions": joints}))
    words = (
        r"state field 'joint_positions' of robot 'libero' has 7 numbers \(joint_1, .*\), got shape \[6\]; send these"
    )
    refused(words, lambda: see(robot_state={**whole.robot_state, "joint_positions": joints[:6]}))
    words = r"robot 'libero' has 9 state numbers \(joint_positions \(7\), .*\), got shape \[8\]; send these"
    refused(words, lambda: LIBERO.named_state(np.zeros(8), "observation"))
    see(robot_state={**whole.robot_state, "temperature": np.zeros(3)})  # more than declared does no harm
    with pytest.raises(UserError, match="one language embedding per observation, got 2 for 1"):
        transform.observation_to_model_input([observation()], torch.zeros(2, 4))


# Frames that are not square -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(4, 6), (7, 4), (5, 5)])
def test_frames_become_square_exactly(height: int, width: int) -> None:
    frames = np.random.default_rng(0).integers(1, 256, (2, height, width, 3), dtype=np.uint8)
    longer, shorter = max(height, width), min(height, width)
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2)
    padded, cropped = (square_planes(planes, fit).permute(0, 2, 3, 1).numpy() for fit in ("pad", "crop"))
    assert padded.shape == (2, longer, longer, 3)
    assert cropped.shape == (2, shorter, shorter, 3)
    top, left = (longer - height) // 2, (longer - width) // 2
    np.testing.assert_array_equal(padded[:, top : top + height, left : left + width], frames)
    assert int((padded != 0).sum()) == frames.size  # bars are black, and nothing else is
    top, left = (height - shorter) // 2, (width - shorter) // 2
    np.testing.assert_array_equal(cropped, frames[:, top : top + shorter, left : left + shorter])
    assert square_planes(planes, "stretch") is planes
    # The square frame is what is resized; bars are the default.
    for fit, square in (("pad", padded), ("crop", cropped)):
        np.testing.assert_array_equal(resize_frames(frames, 9, fit), resize_frames(square, 9))
    np.testing.assert_array_equal(resize_frames(frames, longer), padded)
    np.testing.assert_array_equal(resize_frames(frames, shorter, "crop"), cropped)


def test_stretching_fills_the_square() -> None:
    halves = np.zeros((1, 32, 64, 3), np.uint8)
    halves[:, :, 32:] = 200
    stretched = resize_frames(halves, 16, "stretch")
    assert (stretched[:, :, :7] == 0).all()
    assert (stretched[:, :, 9:] == 200).all()


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_live_frames_that_are_not_square_equal_cached_ones(tmp_path: Path, fit: str) -> None:
    robot = BENCH.model_copy(update={"cameras": (Camera(name="side", fit=fit),)})
    config = bench_config(tmp_path, robot)
    cache = open_frame_cache(config, progress=False)
    transform = Transform(config.model, cache.statistics([0]), cache.robot)
    with open_reader(tmp_path / "data") as reader:
        arrays = reader.read(0)
    frame = arrays.images["side"][3]
    assert frame.shape == (48, 64, 3)
    live = Observation({"side": frame}, {name: values[3] for name, values in arrays.robot_states.items()}, "x")
    given = transform.observation_to_model_input([live], torch.zeros(1, 4))
    assert torch.equal(given.images, transform.images_to_float(cache.frames(torch.tensor([3]))))


def reference_augmentation(frames: torch.Tensor, config: AugmentationConfig, draws: torch.Tensor) -> torch.Tensor:
    """The definition, pixel by pixel: shift with repeated edges, then gain and offset around mid-grey, then clip."""
    batch, _, cameras, height, width, _ = frames.shape
    out = torch.empty(*frames.shape[:3], 3, height, width)
    for b in range(batch):
        for v in range(cameras):
            reach = config.random_shift_px
            down, right = (int(draws[b, 2 * v + axis] * (2 * reach + 1)) - reach for axis in (0, 1))
            rows = (torch.arange(height) - down).clamp(0, height - 1)
            columns = (torch.arange(width) - right).clamp(0, width - 1)
            moved = frames[b, :, v][:, rows][:, :, columns].movedim(-1, -3).float() / 127.5 - 1
            offset = float(2 * draws[b, 2 * cameras] - 1) * config.brightness
            gain = 1 + float(2 * draws[b, 2 * cameras + 1] - 1) * config.contrast
            out[b, :, v] = (moved * gain + offset).clamp(-1, 1)
    return out


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9), st.floats(0, 0.9), st.floats(0, 0.9), st.integers(0, 2**31))
def test_augmentation_is_what_it_says(shift: int, brightness: float, contrast: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (3, 2, 2, 12, 12, 3), dtype=torch.uint8, generator=generator)
    config = AugmentationConfig(random_shift_px=shift, brightness=brightness, contrast=contrast)
    draws = torch.rand(3, num_draws(2), generator=generator, dtype=torch.float64)
    got = frames_to_float(frames, config, draws)
    torch.testing.assert_close(got, reference_augmentation(frames, config, draws), atol=1e-6, rtol=0)


def test_shifts_reach_both_ends_and_hold_for_the_whole_window() -> None:
    config = AugmentationConfig(random_shift_px=2)
    frame = torch.zeros(1, 1, 1, 9, 9, 3, dtype=torch.uint8)
    frame[..., 4, 4, :] = 255
    window = frame.expand(1, 5, 1, 9, 9, 3).contiguous()
    seen = set()
    for draw in torch.linspace(0, 0.999, 40, dtype=torch.float64):
        moved = frames_to_float(window, config, torch.tensor([[draw, draw, 0.5, 0.5]], dtype=torch.float64))
        assert (moved == moved[:, :1]).all()
        row, column = (moved[0, 0, 0, 0] == 1).nonzero()[0].tolist()
        assert row == column
        seen.add(row - 4)
    assert seen == {-2, -1, 0, 1, 2}
