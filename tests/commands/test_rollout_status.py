"""What `statevla rollout` exits with: errors of the world are no success of the command."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gymnasium")

import toy_worlds
from statevla.commands.rollout import _status, rollout
from statevla.config import Config
from statevla.errors import UserError
from statevla.worlds.evaluate import RolloutArgs
from statevla.worlds.rollout_results import EpisodeResult, summarize
from untrained_policy import save_untrained


def ended(trial: int, error: str | None) -> EpisodeResult:
    return EpisodeResult(0, trial, "task", "do it", trial, 7, None if error else False, error, 100, 1, 2.0)


def test_a_failure_of_the_policy_is_none_of_the_command(tiny_config: Config, tmp_path: Path) -> None:
    checkpoint = save_untrained(tiny_config, toy_worlds.DOT, (toy_worlds.INSTRUCTION,), tmp_path / "run")
    options = {"num_trials": 1, "num_workers": 1, "videos": 0, "device": "cpu"}
    sound = RolloutArgs(str(checkpoint), "toy_worlds:DotWorld", out=str(tmp_path / "a"), **options)  # type: ignore[arg-type]
    assert rollout(sound) == 0
    broken = RolloutArgs(str(checkpoint), "toy_worlds:BrokenWorld", out=str(tmp_path / "b"), **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"nothing was measured, all 1 episodes ended in an error \(.*no legs\)"):
        rollout(broken)


def test_some_errors_are_told_and_give_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    summary = summarize([ended(0, None), ended(1, "the lamp\nis dark"), ended(2, "again")], 3)
    assert _status(summary) == 1
    assert capsys.readouterr().err == (
        "warning: 2 of 3 episodes ended in an error and count for nothing (the lamp is dark); the same command runs "
        "these again\n"
    )
    assert _status(summarize([ended(0, None)], 1)) == 0
