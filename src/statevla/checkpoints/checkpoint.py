"""A checkpoint is a folder that needs nothing else: weights, configuration, statistics, language, provenance.

    model.safetensors   the weights
    config.json         the whole configuration
    robot.json          whose actions, state and cameras these are
    statistics.json     of the training episodes: how states and actions are normalised
    language.json       which encoder embedded the instructions, its width and fingerprint
    data.json           which cache and which split the run saw
    metrics.json        step, losses, diagnostics
    version.json        format, versions, commit, SHA-256 of all these
    training_state/     only in `last`: all that an exact continuation needs (`state.safetensors`, `state.json`)

A run folder holds `last` and `best`, and `checkpoint_last.pt` and `checkpoint_best.pt` as links to them. Nothing is
ever pickled or unpickled.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from statevla.checkpoints.hub import download, is_repo_id
from statevla.checkpoints.lerobot_policy import as_checkpoint, is_lerobot_policy
from statevla.checkpoints.version import (
    MODEL_FILE,
    STATE_FOLDER,
    check_file,
    check_files,
    recorded_hash,
    write_version,
)
from statevla.config import PHASES, Config, bundled_dir, bundled_policies, config_from_dict, expand_path
from statevla.errors import UserError
from statevla.machine.storage import (
    read_json,
    read_tensors,
    recover_folder,
    replace_folder,
    whole_folder,
    write_json,
    write_tensors,
    writing,
)
from statevla.model.language import LanguageInfo
from statevla.model.statevla_model import StateVLA
from statevla.robots import RobotSpec
from statevla.transforms import Statistics

LAST, BEST = "last", "best"
ALIASES = {"checkpoint_last.pt": LAST, "checkpoint_best.pt": BEST}
STATE_FILE = "state.safetensors"
RUN_FILE = "run.json"
ALARM_FILE, MEMORY_FILE = "alarm.json", "alarm.safetensors"  # written by `statevla calibrate`
MAX_READS = 5
"""How often a checkpoint is read anew that a training replaces while it is read."""


@dataclass(frozen=True)
class DataInfo:
    """Which data a run saw, so that held-out episodes stay held out in later phases and in evaluation.

    Attributes:
        cache: fingerprint of the frame cache.
        train_split, split_seed: arguments of `split_episodes`.
        demos_per_task: the run's own; later phases set theirs.
        source_caches: fingerprints of the caches of `data.sources`.
        frame_size: longer side of the frames that it stores (pixels), which a world should draw as well; None where
            they differ.
    """

    cache: str
    train_split: float
    split_seed: int
    demos_per_task: int | None = None
    source_caches: tuple[str, ...] = ()
    frame_size: int | None = None


Fields = TypeVar("Fields", LanguageInfo, DataInfo)


@dataclass(frozen=True)
class TrainingState:
    """All that an exact continuation needs beside the model.

    Attributes:
        tensors: optimizer moments by parameter name, raw weights where the deployed ones are averages, RNG states.
        values: step, epoch and position of the sampler, best validation loss, ... as plain JSON.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds, apart from the training state.

    Attributes:
        model: the tensors to deploy, by name.
        metrics: `phase`, and what is known of the training: step, losses, diagnostics.
    """

    model: Mapping[str, Tensor]
    config: Config
    robot: RobotSpec
    statistics: Statistics
    language: LanguageInfo
    data: DataInfo
    metrics: dict[str, Any]


@dataclass(frozen=True)
class LoadedCheckpoint:
    """An opened checkpoint: `model` is in evaluation mode on the device asked for; `path` is the real folder."""

    model: StateVLA
    config: Config
    robot: RobotSpec
    statistics: Statistics
    language: LanguageInfo
    data: DataInfo
    metrics: dict[str, Any]
    path: Path


def save_checkpoint(run: Path, contents: Contents, state: TrainingState, is_best: bool) -> None:
    """Replace `<run>/last`, and `<run>/best` too where `is_best`; a kill at any moment leaves whole checkpoints.

    Raises:
        UserError: it cannot be written (disk full, no permission); what was there before is intact.
    """
    fresh, fresh_best = run / f".{LAST}.new", run / f".{BEST}.new"
    try:
        with writing(run / LAST):
            run.mkdir(parents=True, exist_ok=True)
            for leftover in (fresh, fresh_best):
                shutil.rmtree(leftover, ignore_errors=True)
            _write_contents(fresh, contents)
            (fresh / STATE_FOLDER).mkdir()
            write_tensors(fresh / STATE_FOLDER / STATE_FILE, state.tensors)
            write_json(fresh / STATE_FOLDER / "state.json", state.values)
            write_version(fresh)
            # Best goes first: the training state of `last` says that this step was the best one.
            if is_best:
                _link_files(fresh, fresh_best)
                replace_folder(fresh_best, run / BEST)
            replace_folder(fresh, run / LAST)
            for alias, name in ALIASES.items():
                _link_alias(run, alias, name)
    finally:
        for leftover in (fresh, fresh_best):
            shutil.rmtree(leftover, ignore_errors=True)


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder that `path` means.

    It may be a checkpoint, a run folder (its best, else its last), or `checkpoint_best.pt` / `checkpoint_last.pt` in
    a run folder, whether or not these links exist, a policy's folder of LeRobot's, the name of a policy that comes
    along, or `owner/repository` of the Hugging Face hub. What is here comes first.

    Raises:
        UserError: there is none; what is there instead is named.
    """
    wanted = expand_path(path)
    names = [wanted.parent / ALIASES[wanted.name]] if wanted.name in ALIASES else [wanted, wanted / BEST, wanted / LAST]
    for name in names:
        folder = whole_folder(name)
        if folder is not None and (folder / MODEL_FILE).exists():
            return (as_checkpoint(folder) if is_lerobot_policy(folder) else folder).resolve()
    if wanted.is_file():
        raise UserError(
            f"checkpoint {wanted}: is a file; a checkpoint is a folder with {MODEL_FILE} and its JSON files"
        )
    if str(path) in bundled_policies():
        return (bundled_dir("models") / path).resolve()
    if wanted.name not in ALIASES and is_repo_id(path):
        folder = download(str(path))
        return (as_checkpoint(folder) if is_lerobot_policy(folder) else folder).resolve()
    here = wanted if wanted.is_dir() else wanted.parent
    found = sorted(entry.name for entry in here.iterdir()) if here.is_dir() else []
    has = f"{here} has {', '.join(found[:8])}" if found else f"{here} is empty or absent"
    raise UserError(
        f"checkpoint {wanted}: not found ({has}); give a checkpoint folder, the folder of a run, or the name of a "
        f"policy that comes along: {', '.join(bundled_policies())}"
    )


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> LoadedCheckpoint:
    """Open a checkpoint, strictly.

    Args:
        path: as `resolve_checkpoint` takes it.
        device: where the model goes.

    Raises:
        UserError: absent, cut short, damaged, of another format, its weights are not finite, or they do not fit its
            configuration.
    """
    for _ in range(MAX_READS):
        folder = resolve_checkpoint(path)
        before = _identity(folder)
        try:
            loaded = _load(folder, device)
        except UserError:
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return loaded
    raise UserError(f"checkpoint {path}: is replaced more quickly than it can be read; give a copy of it")


def _load(folder: Path, device: torch.device | str) -> LoadedCheckpoint:
    check_files(folder)
    config, robot = read_config(folder), read_robot(folder)
    model = StateVLA(config, robot)
    load_strict(model, _read_finite(folder / MODEL_FILE), str(folder / MODEL_FILE))
    return LoadedCheckpoint(
        model=model.to(device).eval(),
        config=config,
        robot=robot,
        statistics=Statistics.from_dict(read_json(folder / "statistics.json"), str(folder / "statistics.json")),
        language=read_language(folder),
        data=_read_fields(DataInfo, folder / "data.json"),
        metrics=_read_metrics(folder / "metrics.json"),
        path=folder,
    )


def _identity(folder: Path) -> tuple[int, int] | None:
    """Tells whether a folder is still the one that it was."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def read_config(folder: Path) -> Config:
    """The configuration of a checkpoint's folder.

    Raises:
        UserError: it is damaged, or the checkpoint is of another format.
    """
    path = check_file(folder, "config.json")
    return config_from_dict(read_json(path), source=str(path))


def read_robot(folder: Path) -> RobotSpec:
    """The robot of a checkpoint's folder.

    Raises:
        UserError: it is damaged, or the checkpoint is of another format.
    """
    path = check_file(folder, "robot.json")
    return RobotSpec.from_dict(read_json(path), str(path))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The deployed tensors of a checkpoint: as their recorded hash says, and finite.

    Raises:
        UserError: they are not.
    """
    return _read_finite(check_file(folder, MODEL_FILE))


def weights_hash(folder: Path) -> str | None:
    """SHA-256 of the deployed weights as the checkpoint records it; None where it does not."""
    return recorded_hash(folder, MODEL_FILE)


def load_training_state(run: Path) -> tuple[TrainingState, dict[str, Tensor], Config]:
    """State, weights and configuration of `<run>/last`, to continue from.

    Raises:
        UserError: there is nothing to resume, or it is damaged.
    """
    with writing(run):
        recover_folder(run / LAST)
        recover_folder(run / BEST)
    folder = run / LAST
    if not (folder / STATE_FOLDER).is_dir():
        raise UserError(f"--resume: {run} holds no checkpoint to continue from; leave --resume out to start anew")
    check_files(folder)
    tensors = _read_finite(check_file(folder, f"{STATE_FOLDER}/{STATE_FILE}"))
    state = TrainingState(tensors, read_json(check_file(folder, f"{STATE_FOLDER}/state.json")))
    return state, _read_finite(folder / MODEL_FILE), read_config(folder)


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a module; every name and shape must fit.

    Raises:
        UserError: lists what is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    problems = []
    if missing := [name for name in own if name not in tensors]:
        problems.append(f"missing: {_some(missing)}")
    if unexpected := [name for name in tensors if name not in own]:
        problems.append(f"unexpected: {_some(unexpected)}")
    shapes = [
        f"{name} (expected {list(own[name].shape)}, got {list(tensors[name].shape)})"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    ]
    if shapes:
        problems.append(f"other shapes: {_some(shapes)}")
    if problems:
        raise UserError(f"{source}: weights do not fit the configuration; {'; '.join(problems)}")
    module.load_state_dict(dict(tensors), strict=True)


def _write_contents(folder: Path, contents: Contents) -> None:
    folder.mkdir()
    write_tensors(folder / MODEL_FILE, contents.model)
    trees = {
        "config": contents.config.model_dump(mode="json"),
        "robot": contents.robot.to_dict(),
        "statistics": contents.statistics.to_dict(),
        "language": asdict(contents.language),
        "data": asdict(contents.data),
        "metrics": contents.metrics,
    }
    for name, tree in trees.items():
        write_json(folder / f"{name}.json", tree)


def _read_fields(kind: type[Fields], path: Path) -> Fields:
    tree, names = read_json(path), [field.name for field in fields(kind)]
    try:
        if not isinstance(tree, dict) or not set(tree) <= set(names):
            raise TypeError
        return TypeAdapter(kind).validate_python(tree)
    except (TypeError, ValidationError):
        raise UserError(f"{path}: expected the keys {', '.join(names)}; the file is damaged") from None


def _read_metrics(path: Path) -> dict[str, Any]:
    metrics = read_json(path)
    phase = metrics.get("phase") if isinstance(metrics, dict) else None
    if not isinstance(phase, str) or phase not in PHASES:
        raise UserError(
            f"{path}: phase is {phase!r}, expected one of {', '.join(PHASES)}; the file is damaged, take another "
            "checkpoint"
        )
    return metrics


def _read_finite(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors.

    Raises:
        UserError: damaged, or not finite.
    """
    tensors = read_tensors(path)
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{path}: '{key}' has NaN or infinite values; its training failed, take another checkpoint")
    return tensors


def _link_files(source: Path, target: Path) -> None:
    """A second name for each file of a checkpoint, without the training state: `best` is for deployment."""
    target.mkdir()
    for file in source.iterdir():
        if file.is_file():
            try:
                os.link(file, target / file.name)
            except OSError:  # file systems without hard links
                shutil.copy2(file, target / file.name)


def _link_alias(run: Path, alias: str, name: str) -> None:
    link = run / alias
    if (run / name).exists() and not link.is_symlink():
        try:
            link.symlink_to(name)
        except OSError:  # no symbolic links here: `resolve_checkpoint` knows the name anyway
            return


def _some(names: list[str], limit: int = 4) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def read_language(folder: Path) -> LanguageInfo:
    """How instructions were embedded for a checkpoint."""
    return _read_fields(LanguageInfo, folder / "language.json")


def check_language(language: LanguageInfo, folder: Path) -> None:
    """Raise a UserError unless instructions are embedded as they were for the checkpoint in `folder`.

    The same encoder may lie elsewhere by now: what counts is what it is. A fingerprint that was not taken is empty.
    """
    trained = read_language(folder)
    for key in ("dim", "fingerprint") if trained.fingerprint else ("dim",):
        if getattr(language, key) != getattr(trained, key):
            raise UserError(
                f"language.encoder: '{language.encoder}' has {key} {getattr(language, key)}, {folder} was trained with "
                f"'{trained.encoder}', {key} {getattr(trained, key)}; use the same language.encoder"
            )


def check_robot(robot: RobotSpec, other: RobotSpec, source: str) -> None:
    """Raise a UserError unless a checkpoint's robot `other` is the data's; `source` names the checkpoint."""
    if difference := other.difference(robot, in_data=True):
        raise UserError(f"{source}: of another robot than the data; {difference}; use data of the same robot")
