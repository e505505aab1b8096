"""Absolute targets relative to where the robot is: there and back, which groups, and statistics of what is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from robot_files import bench_config
from statevla.checkpoints.checkpoint import DataInfo
from statevla.config import ModelConfig
from statevla.data import open_frame_cache
from statevla.errors import UserError
from statevla.model.language import build_language_encoder
from statevla.robots import ActionGroup, Camera, RobotSpec, StateField
from statevla.training.sources import measure_statistics, open_source
from statevla.transforms import FieldStatistics, RelativeActions, Statistics, Transform

TWO_ARMS = RobotSpec(
    name="two_arms",
    control_freq_hz=10,
    actions=(
        ActionGroup(name="left", dims=("a", "b"), state="left"),
        ActionGroup(name="grip", dims=("grip",), kind="binary", values=(0, 1)),
        ActionGroup(name="right", dims=("c", "d"), state="right"),
        ActionGroup(name="unseen", dims=("e",), state="unseen"),
        ActionGroup(name="base", dims=("x",), mode="delta"),
    ),
    # In another order than the actions, with one that nothing commands and one that the policy does not see.
    state=(
        StateField(name="right", dims=("c", "d")),
        StateField(name="unseen", dims=("e",), policy=False),
        StateField(name="force", dims=("z",)),
        StateField(name="left", dims=("a", "b")),
    ),
    cameras=(Camera(name="top"),),
)
MEASURED_BY = {"left": {0: 3, 1: 4}, "right": {3: 0, 4: 1}}  # number of an action → number of the state


@pytest.mark.parametrize("groups", [(), ("left",), ("right",), ("left", "right")])
@pytest.mark.parametrize("normalization", ["mean_std", "quantile"])
def test_relative_targets_survive_the_round_trip(groups: tuple[str, ...], normalization: str) -> None:
    rng = np.random.default_rng(0)
    chunks, state = rng.normal(size=(2, 3, 4, 7)).astype(np.float32), rng.normal(size=(2, 3, 5)).astype(np.float32)
    chunks[..., 2] = chunks[..., 2] > 0
    relative = chunks.copy()
    for group in groups:
        for action, measured in MEASURED_BY[group].items():
            relative[..., action] -= state[..., None, measured]
    own, of_targets = (FieldStatistics.of(values.reshape(-1, 7)) for values in (chunks, relative))
    of_state = FieldStatistics.of(state.reshape(-1, 5))
    statistics = Statistics(own, of_state, normalization, groups, of_targets if groups else None)
    transform = Transform(ModelConfig(), statistics, TWO_ARMS)
    given = torch.from_numpy(chunks), torch.from_numpy(state)
    targets = transform.chunks_to_targets(*given)
    shift, scale = of_targets.mean, of_targets.std
    if normalization == "quantile":
        shift, scale = (of_targets.q01 + of_targets.q99) / 2, (of_targets.q99 - of_targets.q01) / 2
    expected = (relative - shift) / scale
    expected[..., 2] = 2 * chunks[..., 2] - 1
    np.testing.assert_allclose(targets.numpy(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(transform.targets_to_chunks(targets, given[1]), given[0], rtol=0, atol=1e-5)
    assert set(transform.targets_to_chunks(targets, given[1])[..., 2].unique().tolist()) == {0.0, 1.0}
    # Acting elsewhere moves the relative numbers along, and nothing else.
    moved = transform.targets_to_chunks(targets, given[1] + 1.0) - given[0]
    wanted = torch.zeros(7)
    wanted[[action for group in groups for action in MEASURED_BY[group]]] = 1.0
    torch.testing.assert_close(moved, wanted.expand_as(moved), rtol=0, atol=1e-5)


def test_groups_that_cannot_be_relative_are_refused() -> None:
    words = "robot 'two_arms' has no action group 'arm', it has left, grip, right, unseen, base; choose among these"
    with pytest.raises(UserError, match=words) as error:
        RelativeActions(TWO_ARMS, ["left", "arm"])
    assert "\n" not in str(error.value)
    for name in ("grip", "base", "unseen"):
        words = f"action group '{name}' of robot 'two_arms' names no state field that the policy sees; add 'state: "
        with pytest.raises(UserError, match=words):
            RelativeActions(TWO_ARMS, [name])
    assert not RelativeActions(TWO_ARMS, [])


@pytest.mark.parametrize("chosen", ["all", ["arm"], "none"])
def test_statistics_are_those_of_the_relative_numbers(tmp_path: Path, chosen: str | list[str]) -> None:
    config = bench_config(tmp_path, relative_actions=chosen)
    cache, encoder = (
        open_frame_cache(config, progress=False),
        build_language_encoder(config.language, config.model.language_dim),
    )
    source = open_source(config, cache, DataInfo("", 0.7, 0), encoder, print)
    statistics = measure_statistics(config, cache.robot, [source])
    steps = np.concatenate([np.arange(cache.episodes[i].start, cache.episodes[i].stop) for i in source.train])
    for key, values in vars(FieldStatistics.of(cache.actions[steps])).items():
        np.testing.assert_array_equal(getattr(statistics.actions, key), values, err_msg=key)
    if chosen == "none":
        assert (statistics.relative_actions, statistics.targets) == ((), None)
        return
    assert statistics.relative_actions == ("arm",)
    rows = []
    for episode in (cache.episodes[index] for index in source.train):
        for start in range(episode.start, episode.stop):
            for step in range(start, min(start + 5, episode.stop)):
                target = cache.actions[step].astype(np.float64)
                target[:2] -= cache.robot_states["arm"][start]
                rows.append(target)
    for key, values in vars(FieldStatistics.of(np.array(rows))).items():
        np.testing.assert_allclose(getattr(statistics.targets, key), values, rtol=1e-5, atol=1e-6, err_msg=key)
