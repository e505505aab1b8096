"""Flags of the project's earlier scripts: whoever still types one is told what it is called now."""

from __future__ import annotations

from collections.abc import Sequence

from statevla.errors import UserError

EARLIER_FLAGS = {
    "train": {
        "batch_size": "--training.phase1.batch_size N, --training.phase2.batch_size N or --training.bc.batch_size N",
        "data_directory": "--data.path FOLDER",
        "checkpoint": "--phase1_checkpoint RUN (what phase 2 builds on), --init_checkpoint RUN (weights to begin with) "
        "or --resume (go on in the output folder)",
        "action_chunk_size": "--model.action_seq_len N",
        "sample_steps": "--model.policy.num_sampling_steps N",
    },
    "eval": {
        "checkpoint_path": "--checkpoint RUN",
        "data_directory": "--data FOLDER",
        "sample_steps": "--steps N",
    },
    "rollout": {
        "checkpoint_path": "--checkpoint RUN",
        "save_video": "--videos N (per task; 0 for none)",
        "action_chunk_size": "--replan_steps N",
        "sample_steps": "--num_sampling_steps N",
        "env_resolution": "--render_size N",
    },
}
"""Command → earlier flag → what does the same here."""


def refuse_earlier_flags(command: str, arguments: Sequence[str]) -> None:
    """Raise a UserError that names today's flag if an argument of `command` (`rollout`) is an earlier one."""
    here = EARLIER_FLAGS.get(command, {})
    for argument in arguments:
        flag = argument.partition("=")[0]
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in here:
            raise UserError(f"unknown flag {flag}; here it is {here[name]}")
