"""What `statevla rollout` exits with: errors of the world are no success of the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gymnasium")

import toy_worlds
from statevla.checkpoints.checkpoint import load_checkpoint
from statevla.commands.rollout import rollout
from statevla.config import Config
from statevla.errors import UserError
from statevla.worlds.evaluate import RolloutArgs
from untrained_policy import save_untrained


@pytest.fixture
def checkpoint(tiny_config: Config, tmp_path: Path) -> Path:
    return save_untrained(tiny_config, toy_worlds.DOT, (toy_worlds.INSTRUCTION,), tmp_path / "run")


def arguments(checkpoint: Path, world: str, out: Path, **changes: Any) -> RolloutArgs:
    options = {"num_trials": 1, "num_workers": 1, "videos": 0, "device": "cpu", **changes}
    return RolloutArgs(str(checkpoint), f"toy_worlds:{world}", out=str(out), **options)


def test_a_failure_of_the_policy_is_none_of_the_command(checkpoint: Path, tmp_path: Path) -> None:
    assert rollout(arguments(checkpoint, "DotWorld", tmp_path / "a")) == 0
    with pytest.raises(UserError, match=r"nothing was measured, all 1 episodes ended in an error \(.*no legs\)"):
        rollout(arguments(checkpoint, "BrokenWorld", tmp_path / "b"))


def test_some_errors_are_told_and_give_status_1(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # With this seed the square lies at the left in the first two of the three.
    assert rollout(arguments(checkpoint, "DarkWorld", tmp_path / "out", num_trials=3, seed=7)) == 1
    assert capsys.readouterr().err == (
        "warning: 2 of 3 episodes ended in an error and count for nothing (RuntimeError: the lamp is dark at -0.69); "
        "the same command runs these again\n"
    )


def test_brackets_are_no_markup(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an instruction, and of a folder, whose path stays on one line."""
    monkeypatch.setattr(toy_worlds.DotWorld, "instruction", "[red]go[/left]")
    run = save_untrained(load_checkpoint(checkpoint).config, toy_worlds.DOT, ("[red]go[/left]",), tmp_path / "brackets")
    out = tmp_path / f"[bold]{'far away ' * 20}"
    assert rollout(arguments(run, "DotWorld", out)) == 0
    shown = capsys.readouterr().out
    assert "[red]go[/left]" in shown
    assert f"results: {out}\n" in shown
