"""When, and where on the table, does z know where the hand is going?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import statevla.diagnostics.goals as diagnostics_goals
from statevla.config import Config
from statevla.data.keyframes import UNIT_M, next_keyframes
from statevla.diagnostics.goals import SQUARE_M, STEPS, measure_goal_places, measure_goals
from statevla.diagnostics.offline import measure_state
from statevla.diagnostics.plots import draw_all
from statevla.diagnostics.sequences import Subject
from statevla.diagnostics.tables import result_tables
from statevla.training.setup import prepare


def subject_with(config: Config, weight: float) -> Subject:
    loss = config.training.phase1.loss.model_copy(update={"keyframe_weight": weight})
    phase1 = config.training.phase1.model_copy(update={"loss": loss})
    changed = config.model_copy(update={"training": config.training.model_copy(update={"phase1": phase1})})
    return prepare(changed, "1").subject


def always_expect(subject: Subject, offset: list[float]) -> None:
    head: Any = subject.model.state_encoder.keyframe
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(offset))


def test_error_is_the_distance_in_the_plane(tiny_config: Config) -> None:
    subject, episodes = subject_with(tiny_config, 1.0), [0, 1, 2, 3]
    always_expect(subject, [0.3, -0.4, 7.0])  # 5 cm aside; the height does not count
    goals = measure_goals(subject, episodes)
    assert list(goals) == [str(step) for step in STEPS if str(step) in goals]
    offsets, known = next_keyframes(subject.cache, subject.transform)
    frames = np.array([subject.cache.episodes[i].start for i in episodes])
    frames = frames[known[frames]]
    truth = offsets[frames, :2] * UNIT_M
    wanted = np.median(np.linalg.norm(truth - [0.03, -0.04], axis=1))
    assert goals["0"]["median_m"] == pytest.approx(wanted, rel=1e-5)
    assert goals["0"]["chance_m"] == pytest.approx(np.median(np.linalg.norm(truth - truth.mean(0), axis=1)), rel=1e-5)
    assert goals["0"]["num_episodes"] == len(frames) > 0


def test_places_are_told_apart(tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goals in two places, one of which is always expected: the errors belong to their squares."""
    subject, hands = subject_with(tiny_config, 1.0), "hand_position"
    always_expect(subject, [0.0, 0.0, 0.0])
    starts = np.array([episode.start for episode in subject.cache.episodes])
    known = np.flatnonzero(next_keyframes(subject.cache, subject.transform)[1][starts])
    near, far = known[: len(known) // 2], known[len(known) // 2 :]
    states = np.zeros_like(subject.cache.robot_states[hands])
    for i in known:
        episode = subject.cache.episodes[i]
        # The hand waits at the goal, or jumps there after the first frame.
        states[episode.start : episode.stop, :2] = (0.05, 0.05) if i in near else (-0.15, 0.25)
        if i in far:
            states[episode.start, :2] += 0.03
    subject.cache.robot_states[hands] = states
    monkeypatch.setattr(diagnostics_goals, "MIN_PER_SQUARE", len(near))
    squares = {(s["x_m"], s["y_m"]): s for s in measure_goal_places(subject, list(known))}
    assert sorted(squares) == [pytest.approx((-0.15, 0.25)), pytest.approx((0.05, 0.05))]
    (_, worse), (_, better) = sorted(squares.items())
    assert worse["median_m"] == pytest.approx(0.03 * np.sqrt(2), rel=1e-5)
    assert better["median_m"] == 0.0
    assert better["num_episodes"] == len(near) > 1
    assert measure_goal_places(subject, list(near[1:])) == []  # too few to say anything about a place
    assert SQUARE_M == 0.1  # the places above are middles of squares
    drawn = draw_all({"goal_places": list(squares.values())}, None, tmp_path)
    assert [path.name for path in drawn] == ["goal_places.png"]


def test_only_models_with_a_keyframe_head_are_asked(tiny_config: Config) -> None:
    assert measure_goals(subject_with(tiny_config, 0.0), [0, 1]) == {}
    assert measure_goal_places(subject_with(tiny_config, 0.0), [0, 1]) == []
    found = measure_state(subject_with(tiny_config, 1.0), [0, 1], [2, 3], [2, 3], probes=False)
    tables = result_tables({**found, "checkpoint": "x", "num_episodes": 2, "split": "held-out"})
    assert any(table.title == "where is the hand going?" and table.row_count == len(found["goals"]) for table in tables)
    assert "goals" not in measure_state(subject_with(tiny_config, 0.0), [0, 1], [2, 3], [2, 3], probes=False)
