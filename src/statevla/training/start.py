"""What a run starts from: another checkpoint's weights, or its own last one; and whether these fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from statevla.checkpoints.checkpoint import LoadedCheckpoint, load_checkpoint, load_strict
from statevla.config import PHASES, Config
from statevla.data import open_reader
from statevla.errors import UserError
from statevla.model.statevla_model import StateVLA
from statevla.transforms import STD_FLOOR, Statistics

SHIFT_WARNING = 1.0
"""Standard deviations between the means of two data sets from which on a warning is due."""
WEIGHTLESS = {"robot_token_dropout": True, "policy": {"num_sampling_steps", "sampling_temperature"}}
"""Keys of the model that say how it trains and samples: another value fits the same weights."""


def open_phase1(
    config: Config, phase: str, path: str | Path | None, initial: LoadedCheckpoint | None
) -> LoadedCheckpoint | None:
    """The checkpoint whose encoder phase 2 builds on, checked against the configuration; None for other phases.

    A policy that goes on from `initial` builds on its encoder.

    Raises:
        UserError: it is missing, given to a phase that takes none, or of another architecture.
    """
    if phase != "2":
        if path is not None:
            raise UserError(f"--phase1_checkpoint: phase {phase} takes none; leave it out or use --phase 2")
        return None
    if initial is not None:
        if path is not None:
            raise UserError("--init_checkpoint brings its encoder; leave --phase1_checkpoint out")
        return initial
    if path is None:
        raise UserError(
            "phase 2 needs --phase1_checkpoint; run `python train.py --config ... --phase 1` first and give its "
            "checkpoints/phase1_temporal_jepa/checkpoint_best.pt"
        )
    phase1 = load_checkpoint(path)
    if differing := _model_differences(config, phase1.config, {"policy": True, "action_seq_len": True}):
        raise UserError(
            f"--phase1_checkpoint {path}: its encoder is another one; {differing}; "
            "use the configuration that phase 1 ran with"
        )
    return phase1


def open_initial(config: Config, phase: str, path: str | Path | None) -> LoadedCheckpoint | None:
    """The checkpoint whose weights a phase begins with, checked against the configuration; None without one.

    Raises:
        UserError: it is missing, of another architecture, or gives phase 2 no policy to go on from.
    """
    if path is None:
        return None
    initial = load_checkpoint(path)
    if phase == "2" and initial.metrics.get("phase") == "1":
        raise UserError(f"--init_checkpoint {path}: phase 1 made it, without a policy; give it as --phase1_checkpoint")
    if differing := _model_differences(config, initial.config, WEIGHTLESS):
        raise UserError(
            f"--init_checkpoint {path}: its model is another one; {differing}; "
            "use the configuration that it was trained with"
        )
    return initial


def begin_with(model: StateVLA, initial: LoadedCheckpoint, say: Callable[[str], None]) -> None:
    """Copy a checkpoint's weights; what only this run's losses need (an inverse model, say) stays random.

    Raises:
        UserError: a part of both has other shapes.
    """
    own, theirs = model.state_dict(), initial.model.state_dict()
    shared = {name: theirs.get(name, value) for name, value in own.items()}
    load_strict(model, shared, f"--init_checkpoint {initial.path}")
    fresh = sorted({name.rpartition(".")[0] for name in own.keys() - theirs.keys()})
    say(f"begins with the weights of {initial.path}" + (f"; random: {', '.join(fresh)}" if fresh else ""))


def with_cameras_of(config: Config, checkpoint: LoadedCheckpoint, flag: str) -> Config:
    """The configuration with the cameras of the checkpoint that `flag` gave, where it leaves them to the data.

    They go by name: weights know a camera by its place among the tokens. In the data's own order, the alphabet's where
    nothing is declared, a wrist would come into the place of a scene.

    Raises:
        UserError: the data has no camera of that name.
    """
    if config.model.cameras:
        return config
    data, cameras = config.data, checkpoint.robot.camera_names
    with open_reader(data.path, data.format, data.orientation, data.robot) as reader:
        missing = [name for name in cameras if name not in reader.cameras]
        if missing:
            raise UserError(
                f"{flag} {checkpoint.path}: it sees the cameras {', '.join(cameras)}, data {reader.path} has "
                f"{', '.join(reader.cameras) or 'none'}; say by a key which of these is '{missing[0]}', in a YAML file "
                f"for data.robot (cameras: [{{name: {missing[0]}, key: ...}}])"
            )
    return config.model_copy(update={"model": config.model.model_copy(update={"cameras": list(cameras)})})


def _model_differences(config: Config, trained: Config, left_out: dict[str, Any]) -> str:
    """The first keys of `model` that differ. Those that are `auto` are the robot's, which is compared by itself."""
    auto = {key: True for key in ("action_dim", "robot_state_dim", "cameras") if not getattr(config.model, key)}
    trees = [source.model.model_dump(mode="json", exclude={**left_out, **auto}) for source in (config, trained)]
    return "; ".join(_differences(*({"model": tree} for tree in trees))[:4])


def warn_of_other_data(statistics: Statistics, phase1: LoadedCheckpoint, say: Callable[[str], None]) -> None:
    """Check the data's statistics against the checkpoint's.

    Raises:
        UserError: other dimensions or another normalisation.
    """
    trained = phase1.statistics
    if statistics.action_normalization != trained.action_normalization:
        raise UserError(
            f"data.action_normalization: {statistics.action_normalization} here, {trained.action_normalization} in "
            f"{phase1.path}; use the same"
        )
    if set(statistics.relative_actions) != set(trained.relative_actions):
        here, there = (", ".join(own.relative_actions) or "none" for own in (statistics, trained))
        raise UserError(f"data.relative_actions: {here} here, {there} in {phase1.path}; use the same")
    robot = phase1.robot
    for what, names, own, theirs in (
        ("actions", robot.action_names, statistics.actions, trained.actions),
        ("robot states", robot.state_names, statistics.robot_state, trained.robot_state),
    ):
        shift = np.abs(own.mean - theirs.mean) / np.maximum(theirs.std, STD_FLOOR)
        if len(shift) and shift.max() > SHIFT_WARNING:
            say(
                f"warning: {what} differ from phase 1's data ({names[shift.argmax()]} by {shift.max():.1f} standard "
                "deviations); they are normalised with phase 1's statistics"
            )


def resume_differences(config: Config, saved: Config, saved_phase: str, phase: str) -> list[str]:
    """Why a saved run is not the one to continue: `key is … here and … in the checkpoint`, or nothing.

    How long to train, how often to save and log, threads and places may change; what the weights depend on may not.
    """
    section = PHASES[phase].section
    free_training = {
        "validate_every_steps",
        "max_validation_batches",
        "checkpoint_every_steps",
        "checkpoint_every_s",
        "log_every_steps",
        "wandb",
        "compile",
        *(other.section for other in PHASES.values()),
    }
    free: dict[str, Any] = dict.fromkeys(("output_dir", "device", "num_threads", "data", "language"), True)
    free["training"] = {**dict.fromkeys(free_training, True), section: {"num_epochs", "max_steps"}}
    of_data = {"train_split", "demos_per_task", "augmentation", "action_normalization", "relative_actions", "wordings"}

    def kept(source: Config, its_phase: str) -> dict[str, Any]:
        data = source.data.model_dump(include=of_data)
        return source.model_dump(mode="json", exclude=free) | {"data": data, "phase": its_phase}

    return _differences(kept(config, phase), kept(saved, saved_phase))


def _differences(our_tree: dict[str, Any], their_tree: dict[str, Any]) -> list[str]:
    ours, theirs = _flatten_tree(our_tree), _flatten_tree(their_tree)
    return [
        f"{key} is {ours.get(key)} here and {theirs.get(key)} in the checkpoint"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]


def _flatten_tree(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys; scan backends are left out, they compute the same."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten_tree(value, f"{prefix}{key}.")
        elif key != "scan_backend":
            flat[prefix + key] = value
    return flat
