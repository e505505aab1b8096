"""When does z know where the hand is going?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from statevla.config import Config
from statevla.data.keyframes import UNIT_M, next_keyframe_offsets
from statevla.diagnostics.cli import result_tables
from statevla.diagnostics.goals import STEPS, measure_goals
from statevla.diagnostics.offline import measure_state
from statevla.diagnostics.sequences import Subject
from statevla.training.distributed import Processes
from statevla.training.setup import prepare


def subject_with(config: Config, weight: float) -> Subject:
    loss = config.training.phase1.loss.model_copy(update={"keyframe_weight": weight})
    phase1 = config.training.phase1.model_copy(update={"loss": loss})
    changed = config.model_copy(update={"training": config.training.model_copy(update={"phase1": phase1})})
    return prepare(changed, "1", None, torch.device("cpu"), Processes(), lambda _: None).subject


def test_error_is_the_distance_in_the_plane(tiny_config: Config) -> None:
    subject, episodes = subject_with(tiny_config, 1.0), [0, 1, 2, 3]
    head: Any = subject.model.state_encoder.keyframe
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.3, -0.4, 7.0]))  # 5 cm aside; the height does not count
    goals = measure_goals(subject, episodes)
    assert list(goals) == [str(step) for step in STEPS if str(step) in goals]
    offsets, known = next_keyframe_offsets(subject.cache)
    frames = np.array([subject.cache.episodes[i].start for i in episodes])
    frames = frames[known[frames]]
    truth = offsets[frames, :2] * UNIT_M
    wanted = np.median(np.linalg.norm(truth - [0.03, -0.04], axis=1))
    assert goals["0"]["median_m"] == pytest.approx(wanted, rel=1e-5)
    assert goals["0"]["chance_m"] == pytest.approx(np.median(np.linalg.norm(truth - truth.mean(0), axis=1)), rel=1e-5)
    assert goals["0"]["num_episodes"] == len(frames) > 0


def test_only_models_with_a_keyframe_head_are_asked(tiny_config: Config) -> None:
    assert measure_goals(subject_with(tiny_config, 0.0), [0, 1]) == {}
    found = measure_state(subject_with(tiny_config, 1.0), [0, 1], [2, 3], [2, 3], probes=False)
    tables = result_tables({**found, "checkpoint": "x", "num_episodes": 2, "split": "held-out"})
    assert any(table.title == "where is the hand going?" and table.row_count == len(found["goals"]) for table in tables)
    assert "goals" not in measure_state(subject_with(tiny_config, 0.0), [0, 1], [2, 3], [2, 3], probes=False)
