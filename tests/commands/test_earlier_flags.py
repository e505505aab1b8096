"""Flags of the project's earlier scripts lead to today's, in one line; flags of text need a value."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from statevla.commands.earlier_flags import EARLIER_FLAGS
from statevla.commands.eval import EvalArgs
from statevla.commands.table import dispatch
from statevla.commands.train import TrainArgs, parse_overrides
from statevla.config import all_keys
from statevla.errors import UserError
from statevla.worlds.evaluate import RolloutArgs

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("train", ["--batch_size", "8"], "unknown flag --batch_size; here it is --training.phase1.batch_size N, --tr"),
        ("train", ["--data_directory=x"], "unknown flag --data_directory; here it is --data.path FOLDER"),
        ("train", ["--data-directory", "x"], "unknown flag --data-directory; here it is --data.path FOLDER"),
        ("train", ["--checkpoint", "x"], "unknown flag --checkpoint; here it is --phase1_checkpoint RUN .* --resume"),
        ("train", ["--action_chunk_size", "5"], "here it is --model.action_seq_len N"),
        ("train", ["--sample_steps", "5"], "here it is --model.policy.num_sampling_steps N"),
        ("eval", ["--checkpoint_path", "x"], "unknown flag --checkpoint_path; here it is --checkpoint RUN"),
        ("eval", ["--sample_steps", "5"], "here it is --steps N"),
        ("rollout", ["--checkpoint", "x", "--save_video"], "unknown flag --save_video; here it is --videos N"),
        ("rollout", ["--checkpoint", "x", "--action_chunk_size", "5"], "here it is --replan_steps N"),
        ("rollout", ["--checkpoint", "x", "--sample_steps", "5"], "here it is --num_sampling_steps N"),
        ("rollout", ["--checkpoint", "x", "--env_resolution", "5"], "here it is --render_size N"),
    ],
)
def test_an_earlier_flag_is_named_as_it_is_now(command: str, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        dispatch([command, *arguments])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("script", "flag"),
    [("train.py", "--batch_size"), ("eval.py", "--checkpoint_path"), ("run_libero_eval.py", "--save_video")],
)
def test_scripts_say_it_too(script: str, flag: str) -> None:
    done = subprocess.run([sys.executable, str(ROOT / script), flag, "8"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: unknown flag {flag}; here it is --[^\n]*\n", done.stderr)


def test_what_is_named_exists() -> None:
    """A flag that an answer names is one of the command's, or a key of the configuration."""
    for command, arguments in (("train", TrainArgs), ("eval", EvalArgs), ("rollout", RolloutArgs)):
        own = {field.name for field in dataclasses.fields(arguments)} | ({*all_keys()} if command == "train" else set())
        named = {flag for text in EARLIER_FLAGS[command].values() for flag in re.findall(r"--([a-z0-9_.]+)", text)}
        assert named
        assert named <= own


def test_a_key_of_text_needs_its_value() -> None:
    for words in (["--data.path"], ["--data.path", "--training.compile"], ["--training.wandb"]):
        with pytest.raises(UserError, match=rf"argument '{words[0]}': expected a value after it"):
            parse_overrides(words)
    assert parse_overrides(["--training.compile", "--data.path", "robot #2"]) == [
        "training.compile=true",
        "data.path=robot #2",
    ]
