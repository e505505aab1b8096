"""From a configuration and a data set to what a policy is: configuration, robot, statistics, language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from lerobot.configs.types import FeatureType
from torch import Tensor

from lerobot_policy_statevla.batches import same_names
from lerobot_policy_statevla.configuration_statevla import AUTO, OF_DATASET, StateVLAConfig
from lerobot_policy_statevla.own_checkpoints import features_of
from lerobot_policy_statevla.robot import robot_of_dataset, trained_on
from lerobot_policy_statevla.statistics import statistics_of
from statevla.checkpoints.checkpoint import load_checkpoint
from statevla.checkpoints.lerobot_policy import PolicySettings
from statevla.config import Config, config_from_dict, expand_path, fit_to_robot
from statevla.errors import UserError
from statevla.model.language import build_language_encoder
from statevla.robots import ImageOrientation, RobotSpec, load_robot
from statevla.training.sources import relative_groups


@dataclass(frozen=True)
class Resolved:
    """What a policy is made of.

    Attributes:
        robot_of_data: the policy's robot, with the data set's features as keys.
        aliases: feature of the policy's robot → what it may be called instead.
        encoder: tensors of phase 1's state encoder, for a fresh phase 2.
    """

    settings: PolicySettings
    robot_of_data: RobotSpec
    aliases: Mapping[str, str]
    encoder: Mapping[str, Tensor] | None = None


def resolve(config: StateVLAConfig, meta: Any = None, stats: Mapping[str, Mapping[str, Any]] | None = None) -> Resolved:
    """What `config` and a data set mean together; written into `config.settings`.

    Args:
        meta, stats: LeRobot's metadata and statistics of the data set; needed the first time.

    Raises:
        UserError: settings, phase-1 checkpoint and data set do not fit each other.
        ValueError: the data set lacks pictures or actions.
    """
    if config.settings is not None:
        resolved = _of_trained(config, meta, stats)
    else:
        config.validate_features()
        if meta is None:
            raise UserError(
                "statevla: no data set to learn the robot from; make the policy with one, or load a trained one"
            )
        on_phase1 = config.phase == "2"
        resolved = _on_phase1(config, meta) if on_phase1 else _fresh(config, meta, stats)
    config.settings = resolved.settings.to_json()
    config.chunk_size = resolved.settings.config.model.action_seq_len
    config.n_action_steps = config.n_action_steps or config.chunk_size
    if meta is not None:
        # Said of this data set, and kept with it; the next one that the policy is trained on is asked anew.
        config.robot = config.image_orientation = AUTO
    return resolved


def _fresh(config: StateVLAConfig, meta: Any, stats: Mapping[str, Mapping[str, Any]] | None) -> Resolved:
    robot = robot_of_dataset(meta.root, *_said(config))
    tree = config.statevla().model_dump(mode="json")
    tree["model"] |= dict.fromkeys(("cameras", "robot_state_dim", "action_dim"), "auto")
    fitted, robot = fit_to_robot(_of_dataset(tree, config, meta), robot)
    statistics = statistics_of(meta.root, stats, fitted, robot)
    language = build_language_encoder(fitted.language, fitted.model.language_dim).info
    return Resolved(PolicySettings(fitted, robot, statistics, language), robot, {})


def _on_phase1(config: StateVLAConfig, meta: Any) -> Resolved:
    """Encoder, statistics and language of phase 1's checkpoint, of LeRobot's or of StateVLA's own."""
    path = config.phase1_checkpoint
    if path is None:
        raise UserError(
            "policy.phase=2 needs --policy.phase1_checkpoint; run --policy.phase=1 first, or --policy.phase=both"
        )
    source = f"policy.phase1_checkpoint {path}"
    loaded = load_checkpoint(path)
    same_data = _is_data_of(loaded.config, meta)
    robot = trained_on(loaded.robot, meta.root, *_said(config), source, may_rename=False, same_data=same_data)
    tree = config.statevla().model_dump(mode="json")
    fitted, robot = fit_to_robot(_of_dataset(tree, config, meta, same_data), robot)
    here, there = (relative_groups(robot, each.data.relative_actions) for each in (fitted, loaded.config))
    if here != there:
        raise UserError(
            f"{source}: data.relative_actions {list(there)}, here {list(here)}; use the same, statistics are part of a "
            "checkpoint"
        )
    language = build_language_encoder(fitted.language, fitted.model.language_dim).info
    if loaded.language.fingerprint not in ("", language.fingerprint):
        raise UserError(f"{source}: trained with another language encoder; use its own")
    settings = PolicySettings(fitted, robot, loaded.statistics, language)
    return Resolved(settings, robot, {}, loaded.model.state_encoder.state_dict())


def _of_trained(config: StateVLAConfig, meta: Any, stats: Mapping[str, Mapping[str, Any]] | None) -> Resolved:
    """A trained policy, and the data set that it is trained on further, if any."""
    settings = replace(config.trained(), config=config.statevla())
    groups = relative_groups(settings.robot, settings.config.data.relative_actions)
    if groups != settings.statistics.relative_actions:
        raise UserError(
            f"policy.overrides: data.relative_actions {list(groups)}, this policy was trained with "
            f"{list(settings.statistics.relative_actions)}; leave it out"
        )
    if meta is None:
        return Resolved(settings, settings.robot, {})
    source = f"policy {config.pretrained_path or ''}".strip()
    same_data = _is_data_of(settings.config, meta)
    robot = trained_on(settings.robot, meta.root, *_said(config), source, may_rename=True, same_data=same_data)
    names = {camera.key for camera in robot.cameras}
    features, _ = features_of(robot, {key: prod(feature["shape"]) for key, feature in meta.features.items()})
    if config.input_features and names <= set(meta.features) and not names <= set(config.input_features):
        # The data set's cameras have other names; with --rename_map batches still come with the policy's.
        config.input_features = features
    elif config.input_features:
        config.input_features |= {key: each for key, each in features.items() if each.type is FeatureType.STATE}
    statistics = settings.statistics
    if config.statistics == OF_DATASET:
        statistics = statistics_of(meta.root, stats, settings.config, robot)
    trained = _of_dataset(settings.config.model_dump(mode="json"), config, meta, same_data)
    resolved = replace(settings, config=trained, robot=robot, statistics=statistics)
    return Resolved(resolved, robot, same_names(robot, settings.robot))


def _said(config: StateVLAConfig) -> tuple[RobotSpec | None, ImageOrientation | None]:
    """What the user says of the data set: its robot, and how its frames are stored."""
    declared = None if config.robot == AUTO else load_robot(config.robot)
    return declared, None if config.image_orientation == AUTO else ImageOrientation(config.image_orientation)


def _is_data_of(trained: Config, meta: Any) -> bool:
    """Whether a checkpoint was trained on this data set."""
    return expand_path(trained.data.path).resolve() == Path(meta.root).resolve()


def _of_dataset(tree: dict[str, Any], config: StateVLAConfig, meta: Any, same_data: bool = False) -> Config:
    """The configuration `tree`, which notes what it is trained on and what the user says of it."""
    said = {"robot": _whole_path(config.robot), "orientation": config.image_orientation}
    if same_data:
        said = {key: value for key, value in said.items() if value != AUTO}
    tree["data"] |= {"path": str(meta.root), "format": "lerobot", "sources": [], **said}
    return config_from_dict(tree, "policy")


def _whole_path(robot: str) -> str:
    """A robot's name as it is; its file from everywhere."""
    return str(Path(robot).resolve()) if Path(robot).is_file() else robot
